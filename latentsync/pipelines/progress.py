"""Progress of a run: the time left, from measured speeds of its stages, as a progress bar and for a callback."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from latentsync.utils.progress import Countdown, OnProgress, Progress, duration

PREPARING, LIPSYNC, FINISHING = "preparing", "lip-sync", "finishing"
FADING = 0.7  # weight of earlier measurements when a new one arrives
DECODE_TO_ENCODE = 1.2  # time of decoding over that of encoding both images of a frame, until it is measured
MEASURED_WRITES = 4  # frames; the first ones are written before interpolation begins
BAR = "{desc} {percentage:3.0f}%|{bar}|"
Speeds = dict[str, float]  # stage -> seconds per frame


class Watch:
    """Receives reports while a batch of chunks is denoised; this base class ignores them."""

    def begin(self, frames: int) -> None:
        """A batch begins that delivers so many frames."""

    def step(self, latents: Tensor) -> None:
        """A denoising step of it is done; latents (B, C, F, h, h)."""


@dataclass
class Stage:
    """A stage of the work on each frame, and its measured speed. `known`: seconds per frame in earlier runs."""

    known: float | None = None
    _seconds: float = 0.0
    _frames: float = 0.0

    def add(self, seconds: float, frames: int) -> None:
        self._seconds = FADING * self._seconds + seconds
        self._frames = FADING * self._frames + frames

    @property
    def pace(self) -> float | None:
        """Seconds per frame; None if unknown."""
        return self._seconds / self._frames if self._frames else self.known


@dataclass
class Work:
    """The work of a run: a batch of chunks is read, encoded, denoised in steps, decoded, and its frames are written.

    Encoding is measured together with the first step, and decoding together with enhancement and delivery. Frames are
    written by another thread, which lags by up to `queue` frames.

    Args:
        total: number of frames.
        steps: denoising steps of each frame.
        queue: frames that wait to be written.
        speeds: of an earlier run, updated by `remember`.
        interpolates: frames are interpolated while they are written, which may take most of the time.
    """

    total: int
    steps: int
    queue: int
    speeds: Speeds = field(default_factory=dict)
    clock: Callable[[], float] = time.monotonic
    interpolates: bool = False

    def __post_init__(self) -> None:
        self.stages = {name: Stage(self.speeds.get(name)) for name in ("read", "first", "step", "last", "write")}
        self.delivered = self.written = 0
        self._batch = self._step = self._to_measure = 0
        self._begun, self._load = 0, 1.0
        self._mark: float | None = None

    def begin(self, frames: int) -> None:
        if self._mark is not None:  # before the first batch, decoders and detectors start, which happens once
            self.stages["read"].add(self._lap(), frames)
        self._lap()
        self._begun += frames
        self._batch, self._step, self._to_measure = frames, 0, frames

    def step(self, frames: int) -> None:
        self.stages["step" if self._step else "first"].add(self._lap(), frames)
        self._step += 1

    def deliver(self) -> None:
        """A frame is delivered; the first one of a batch includes the decoding of all."""
        seconds = self._lap()
        if self._to_measure:
            self.stages["last"].add(seconds, self._to_measure)
            self._to_measure = 0
        self.delivered += 1
        self._batch = max(0, self._batch - 1)
        if not self._batch and self._begun:  # several faces in a frame, or none
            self._load = self._begun / self.delivered

    def write(self, seconds: float) -> None:
        self.stages["write"].add(seconds, 1)
        self.written += 1

    def seconds_left(self) -> float | None:
        """Estimate; None as long as there is no measurement of the steps, or of interpolation."""
        first, step = self.stages["first"].pace, self.stages["step"].pace if self.steps > 1 else 0.0
        last, read, write = (self.stages[name].pace for name in ("last", "read", "write"))
        write = write or 0.0
        unwritten = (self.total - self.written) * write
        if self.delivered >= self.total:
            return unwritten
        if self.interpolates and self.stages["write"].known is None and self.written < MEASURED_WRITES:
            return None
        if first is None or step is None or (last is None and self.steps == 1):
            return None
        last = DECODE_TO_ENCODE * max(0.0, first - step) if last is None else last
        upcoming = self._load * max(0, self.total - self.delivered - self._batch)
        left = upcoming * ((read or 0.0) + first + (self.steps - 1) * step + last)
        if self._to_measure:
            steps_left = self.steps - max(self._step, 1)
            left += self._batch * ((0.0 if self._step else first) + steps_left * step + last)
        return max(left + min(self.queue, self.total - self.written) * write, unwritten)

    def remember(self) -> None:
        """Store the measured speeds for the next run."""
        self.speeds.update({name: stage.pace for name, stage in self.stages.items() if stage.pace is not None})

    def _lap(self) -> float:
        now = self.clock()
        seconds, self._mark = now - (now if self._mark is None else self._mark), now
        return seconds


class ProgressReport(Watch):
    """Context manager that reports progress after each step and each frame. Exceptions in the callback propagate.

    Args:
        work: the work of the run.
        callback: called with the progress; while the last frames are written, in the thread that writes them.
        shown: show a progress bar on standard error.
    """

    def __init__(self, work: Work, callback: OnProgress | None = None, *, shown: bool = False) -> None:
        self.work, self._callback = work, callback
        self._countdown = Countdown(work.clock)
        self._stage, self._calling = PREPARING, threading.Lock()
        self._step_end: Any = None
        self._frames = 0  # of the batch
        self._bar = tqdm(total=1.0, desc=f"{PREPARING}:", bar_format=BAR, disable=not shown, leave=False)

    def __enter__(self) -> "ProgressReport":
        self._report()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.close()
        if kind is None:
            self.work.remember()

    def begin(self, frames: int) -> None:
        self._stage, self._frames = LIPSYNC, frames
        self.work.begin(frames)
        self._report()

    def step(self, latents: Tensor) -> None:
        if latents.is_cuda:  # stay one step ahead of the device, so that times are real and the run can be stopped
            earlier, self._step_end = self._step_end, torch.cuda.Event()
            self._step_end.record()
            if earlier is not None:
                earlier.synchronize()
        self.work.step(self._frames)
        self._report()

    def frame(self) -> None:
        """Count one generated frame."""
        self._stage = LIPSYNC
        self.work.deliver()
        self._report()

    def wrote(self, seconds: float) -> None:
        """Count one written frame, which took so long."""
        self.work.write(seconds)
        if self._stage == FINISHING:
            self._report()

    def finishing(self) -> None:
        """Report that all frames are generated and the last ones are being written."""
        self._stage = FINISHING
        self._report()

    def _report(self) -> None:
        with self._calling:
            estimate = self.work.seconds_left()
            if estimate is not None:
                self._countdown.update(estimate)
            left, fraction = self._countdown.left, self._countdown.fraction
            self._show(left, fraction)
            if self._callback is not None:
                self._callback(Progress(self._stage, self.work.delivered, self.work.total, fraction, left))

    def _show(self, left: float | None, fraction: float) -> None:
        remaining = "" if left is None else f", about {duration(left)} left"
        text = f"{self._stage}: frame {self.work.delivered}/{self.work.total}{remaining}"
        self._bar.set_description_str(text, refresh=False)
        self._bar.update(fraction - self._bar.n)
