"""Count the outcomes of `infer` in odd environments: `python -m tests.scripts.odd_situations`.

Runs the command as a process of its own, with closed, full or unread standard streams, full and read-only disks, few
resources, results named as inputs, and signals at moments spread over a run. Exit code 1 if one ends in a traceback, in
another way than expected, or leaves an unfinished file behind.
"""

import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from latentsync.utils.paths import PACKAGE_PARENT
from tests.media.synthetic import tone, write_audio
from tests.pipelines.scenes import clip
from tests.scripts.odd_inputs import HANG_SECONDS, MAX_LINE, OUTCOMES, Bench, table

INTERRUPTED = 130
MOMENTS = 12  # of a run, at which a signal arrives
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class Situation:
    """A shell command. expect: its exit codes; result: whether out.mp4 is there in the end (None: either)."""

    group: str
    name: str
    command: str
    expect: int
    result: bool | None


def situations(bench: Bench, disk: Path | None) -> Iterator[Situation]:
    """disk: a small one of its own, if one can be mounted."""
    source = clip(bench.folder / "source.mp4", 30)
    write_audio(bench.folder / "long.wav", tone(16000, 1.0), 16000)

    def infer(*words: object, video: object = source, out: object = "out.mp4") -> str:
        found = bench.infer("--max_seconds=1", *words, video=video, audio=bench.folder / "long.wav", out=out)
        return shlex.join([sys.executable, "-m", "latentsync", *found])

    group, plain = "standard streams", infer()
    for redirection in (">&-", "2>&-", "<&- >&- 2>&-", "2>/dev/full"):
        yield Situation(group, redirection, f"{plain} {redirection}", 0, True)
    yield Situation(group, ">/dev/full", f"{plain} >/dev/full", 1, True)
    yield Situation(group, "| true", f"set -o pipefail; {plain} | true", 1, True)
    yield Situation(group, "2> >(true)", f"{plain} 2> >(true)", 0, True)

    group = "disk and resources"
    yield Situation(group, "files of at most 4 KB", f"ulimit -f 4; {plain}", 1, False)
    yield Situation(group, "no temporary folder", f"TMPDIR=/sys {plain}", 0, True)
    yield Situation(group, "the current folder is gone", f"mkdir gone; cd gone; rmdir ../gone; {plain}", 1, False)
    yield Situation(group, "no environment", f"env -i PYTHONPATH={PACKAGE_PARENT} {plain}", 0, True)
    if disk is not None:
        full, small = infer(out=disk / "out.mp4"), f"head -c 70000 /dev/zero > {disk}/filler; "
        yield Situation(group, "a full disk", f"{small}{full}; c=$?; rm {disk}/*; exit $c", 1, False)
        yield Situation(
            group, "a full temp_dir", f"{small}{infer('--temp_dir', disk)}; c=$?; rm -r {disk}/*; exit $c", 1, False
        )
        report = infer("--report", disk / "report.json")
        yield Situation(group, "a disk full of reports", f"{small}{report}; c=$?; rm {disk}/*; exit $c", 1, None)
        read_only = f"mount -o remount,ro {disk}; {{}}; c=$?; mount -o remount,rw {disk}; exit $c"
        yield Situation(group, "a read-only disk", read_only.format(full), 1, False)
        yield Situation(group, "a read-only temp_dir", read_only.format(infer("--temp_dir", disk / "t")), 1, False)

    group = "result over input"
    os.link(source, bench.folder / "hard.mp4")
    (bench.folder / "soft.mp4").symlink_to(source)
    for name in ("source.mp4", "hard.mp4", "soft.mp4", "./nothing/../source.mp4"):
        yield Situation(group, name, infer(out=name), 1, False)
    yield Situation(group, "the report", infer("--report", source), 1, False)
    yield Situation(group, "the report over the result", infer("--report", bench.folder / "out.mp4"), 1, False)


def interruptions(bench: Bench) -> Iterator[tuple[str, str, str]]:
    """(name, outcome, output) for signals at moments spread over the CPU time of a run."""
    words = bench.infer("--max_seconds=1", video=bench.folder / "source.mp4", audio=bench.folder / "long.wav")
    line = [sys.executable, "-m", "latentsync", *words]
    whole = _cpu_seconds(subprocess.Popen(line, cwd=bench.folder, **_quiet()), float("inf"))
    for moment in range(MOMENTS):
        (bench.folder / "out.mp4").unlink(missing_ok=True)
        process = subprocess.Popen(line, cwd=bench.folder, **_quiet())
        _cpu_seconds(process, whole * (moment + 0.5) / MOMENTS)
        which = SIGNALS[moment % len(SIGNALS)]
        process.send_signal(which)
        printed = process.communicate(timeout=HANG_SECONDS)[1]
        finished = (bench.folder / "out.mp4").exists()
        # The interpreter ends itself by SIGINT when a native library has seen the interruption; a shell shows 130, too.
        by_signal = process.returncode in (INTERRUPTED, -which, -signal.SIGINT)
        name = f"{which.name} at {(moment + 0.5) / MOMENTS:.0%}"
        if "Traceback" in printed:
            yield name, "traceback", printed
        elif _left_behind(bench.folder) or not (by_signal or (finished and process.returncode == 0)):
            yield name, "wrong outcome", f"exit code {process.returncode}: {printed}"
        else:
            yield name, "result" if finished else "clear error", printed


def outcome(situation: Situation, bench: Bench) -> tuple[str, str]:
    """One of `OUTCOMES`, and what was printed."""
    result = bench.folder / "out.mp4"
    result.unlink(missing_ok=True)
    source = (bench.folder / "source.mp4").read_bytes()
    try:
        run = subprocess.run(
            ["bash", "-c", situation.command], cwd=bench.folder, timeout=HANG_SECONDS, capture_output=True, **_text()
        )
    except subprocess.TimeoutExpired:
        return "hang", ""
    if "Traceback" in run.stderr:
        return "traceback", run.stderr
    errors = [line for line in run.stderr.splitlines() if "error: " in line]
    is_right = situation.result is None or result.exists() == situation.result
    untouched = (bench.folder / "source.mp4").read_bytes() == source and not _left_behind(bench.folder)
    if run.returncode != situation.expect or not is_right or not untouched:
        return "wrong outcome", f"exit code {run.returncode}: {run.stderr}"
    # A lost output that nobody reads is not reported.
    if run.returncode == 1 and "|" not in situation.command and (len(errors) != 1 or len(errors[0]) > MAX_LINE):
        return "unclear error", run.stderr
    return ("result" if run.returncode == 0 else "clear error"), run.stderr


def _cpu_seconds(process: subprocess.Popen, until: float) -> float:
    """Wait until a process has used that much CPU time, or has ended; returns what it has used."""
    used, tick = 0.0, os.sysconf("SC_CLK_TCK")
    while process.poll() is None and used < until:
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        used = sum(map(int, fields[11:13])) / tick
        time.sleep(0.005)
    return used


def _left_behind(folder: Path) -> list[str]:
    return [name for name in os.listdir(folder) if name.startswith((".latentsync", "latentsync-")) or ".tmp" in name]


def _text() -> dict:
    return {"text": True, "env": os.environ | {"PYTHONPATH": str(PACKAGE_PARENT)}}


def _quiet() -> dict:
    return {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, **_text()}


def _small_disk(folder: Path) -> Path | None:
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], capture_output=True)
    return folder if mounted.returncode == 0 else None


def main() -> int:
    counts: dict[str, Counter] = {}
    signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell ignore it

    def note(group: str, name: str, found: str, printed: str) -> None:
        counts.setdefault(group, Counter())[found] += 1
        last = printed.strip().splitlines()[-1][:160] if printed.strip() else ""
        print(f"{found:14} {group}: {name}: {last}", flush=True)
        if found in OUTCOMES[2:]:
            print(printed[-1500:], flush=True)

    with tempfile.TemporaryDirectory() as folder:
        bench, disk = Bench(Path(folder)), _small_disk(Path(folder) / "disk")
        try:
            for situation in situations(bench, disk):
                note(situation.group, situation.name, *outcome(situation, bench))
            for name, found, printed in interruptions(bench):
                note("interruptions", name, found, printed)
        finally:
            if disk is not None:
                subprocess.run(["umount", "-l", disk], check=True)
    print(table(counts))
    return int(any(found[name] for found in counts.values() for name in OUTCOMES[2:]))


if __name__ == "__main__":
    sys.exit(main())
