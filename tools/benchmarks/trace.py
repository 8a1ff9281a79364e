"""Summary of a profiler trace: kernels of a device, and its idle time."""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

ON_DEVICE = frozenset({"kernel", "gpu_memcpy", "gpu_memset"})  # categories of events in a trace
ON_HOST = frozenset({"cpu_op"})
MAX_NAME = 60  # characters of a kernel's name


@dataclass(frozen=True)
class Trace:
    """Seconds of a trace.

    Args:
        span: from the start of the first event to the end of the last one.
        busy: at least one event was running.
        longest_gap: nothing was running.
        seconds, counts: of the events by name; nested or concurrent ones count in full.
    """

    span: float
    busy: float
    longest_gap: float
    seconds: dict[str, float]
    counts: dict[str, int]

    @property
    def idle(self) -> float:
        """Share of the span in which nothing was running."""
        return 1 - self.busy / self.span if self.span else 0.0

    def top(self, most: int) -> list[tuple[str, float, int]]:
        """The events that took longest: name, share of the sum of all, number."""
        total = sum(self.seconds.values())
        ranked = sorted(self.seconds, key=lambda name: -self.seconds[name])[:most]
        return [(name, self.seconds[name] / total, self.counts[name]) for name in ranked]


def record(call: Callable[[], object], path: Path, device: torch.device) -> Trace:
    """Run `call` under the profiler; the trace is written to `path`, for Perfetto or chrome://tracing."""
    on_gpu = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as profiler:
        call()
        if on_gpu:
            torch.cuda.synchronize(device)
    profiler.export_chrome_trace(str(path))
    return read_trace(path, ON_DEVICE if on_gpu else ON_HOST)


def read_trace(path: Path, categories: frozenset[str]) -> Trace:
    """Summarize the events of these categories in a trace file."""
    with path.open(encoding="utf-8") as file:
        events = json.load(file)["traceEvents"]
    events = [event for event in events if event.get("ph") == "X" and event.get("cat") in categories]
    events.sort(key=lambda event: float(event["ts"]))
    seconds, counts = Counter[str](), Counter[str]()
    busy = gap = 0.0
    end = float(events[0]["ts"]) if events else 0.0
    first = end
    for event in events:  # microseconds
        start, stop = float(event["ts"]), float(event["ts"]) + float(event["dur"])
        name = event["name"][:MAX_NAME]
        seconds[name] += float(event["dur"]) / 1e6
        counts[name] += 1
        gap = max(gap, start - end)
        busy += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return Trace((end - first) / 1e6, busy / 1e6, gap / 1e6, dict(seconds), dict(counts))
