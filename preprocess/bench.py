"""Throughput of data processing, single-pass and stepwise: `python -m preprocess.bench --input_dir DIR --clips 60`

Stepwise processing is how such pipelines are usually built: each step decodes the files of the previous step and
encodes its own. Both use the same step functions and the same number of worker processes.
"""

import argparse
import logging
import multiprocessing
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from latentsync.constants import FPS, SAMPLE_RATE, SAMPLES_PER_FRAME
from latentsync.media.audio import load_audio
from latentsync.media.probe import probe_video
from latentsync.media.timeline import available_frames, open_timeline
from latentsync.utils.commands import command
from latentsync.utils.errors import UserError
from preprocess.clip import Clip, Segment
from preprocess.executors import limit_threads
from preprocess.runner import RunOptions, find_work, process
from preprocess.settings import DEFAULT_STEPS, ProcessSettings
from preprocess.source_work import CLIP_STEPS
from preprocess.steps.faces import faces
from preprocess.steps.probe import Source, SourceError, probe
from preprocess.steps.resample import AudioReader, Sample, resample
from preprocess.steps.segments import segments
from preprocess.steps.shots import shots
from preprocess.storage import open_storage
from preprocess.tools import Tools
from preprocess.write import FrameWriter, write_faces

INTERMEDIATE_CRF = 18  # of files that hold whole frames

Step = Callable[[Path, Path, ProcessSettings, Tools], list[Path]]


def check_files(path: Path, folder: Path, settings: ProcessSettings, tools: Tools) -> list[Path]:
    """Decode a source to check it, and keep the file."""
    try:
        for _ in resample(probe(path)):
            pass
    except SourceError:
        return []
    return [path]


def resample_files(path: Path, folder: Path, settings: ProcessSettings, tools: Tools) -> list[Path]:
    """Convert to 25 frames/s and 16 kHz."""
    source, target, count = probe(path), folder / f"{path.stem}.mp4", 0
    with AudioReader(source) as audio, FrameWriter(target, Fraction(1), INTERMEDIATE_CRF) as writer:
        for sample in resample(source):
            writer.write(sample.frame)
            count += 1
        writer.finish(audio.read(Fraction(0), count * SAMPLES_PER_FRAME))
    return [target]


def split_shots(path: Path, folder: Path, settings: ProcessSettings, tools: Tools) -> list[Path]:
    """Write a file for each shot."""
    source = probe(path)
    return _cut(source, shots(resample(source), settings.shot_threshold), sys.maxsize, folder)


def split_segments(path: Path, folder: Path, settings: ProcessSettings, tools: Tools) -> list[Path]:
    """Split shots into segments of equal length."""
    source = probe(path)
    return _cut(source, resample(source), settings.segment_frames, folder)


def _cut(source: Source, samples: Iterator[Sample], length: int, folder: Path) -> list[Path]:
    """Write a file for each segment of at most `length` frames."""
    made = []
    with AudioReader(source) as audio:
        for segment in segments(samples, source.info.path.name, audio, length):
            made.append(folder / f"{source.info.path.stem}_{segment.index:04d}.mp4")
            with FrameWriter(made[-1], Fraction(1), INTERMEDIATE_CRF) as writer:
                for frame in segment:
                    writer.write(frame)
                writer.finish(segment.audio())
    return made


def align_faces(path: Path, folder: Path, settings: ProcessSettings, tools: Tools) -> list[Path]:
    """Run the face step on one file."""
    info = probe_video(path)
    wave = load_audio(path, SAMPLE_RATE)
    fps = Fraction(FPS)

    def read_audio(start: Fraction, samples: int) -> np.ndarray:
        first = round(start * SAMPLE_RATE)
        return np.pad(wave[first : first + samples], (0, max(0, first + samples - len(wave))))

    timeline = open_timeline(info, available_frames(info, fps) / fps, fps)
    made = []
    for clip in faces(Segment(path.name, 0, Fraction(0), iter(timeline), read_audio), settings, tools):
        if clip.drop is None:
            made.append(folder / f"{path.stem}_{clip.person}.mp4")
            write_faces(made[-1], clip.kept_faces, clip.wave, settings.crf)
    return made


def clip_step(step: str) -> Step:
    """A step that checks aligned clips: decode a clip, check it, encode it again if it is kept."""

    def run(path: Path, folder: Path, settings: ProcessSettings, tools: Tools) -> list[Path]:
        info = probe_video(path)
        fps = Fraction(FPS)
        frames = np.stack([frame.rgb() for frame in open_timeline(info, available_frames(info, fps) / fps, fps)])
        wave = load_audio(path, SAMPLE_RATE)[: len(frames) * SAMPLES_PER_FRAME]
        clip = CLIP_STEPS[step](Clip(path.name, 0, 0, Fraction(0), frames, wave), settings, tools)
        if clip.drop is not None:
            return []
        target = folder / path.name
        write_faces(target, clip.kept_faces, clip.wave, settings.crf)
        return [target]

    return run


STEPS: dict[str, Step] = {
    "check files": check_files,
    "resample": resample_files,
    "shots": split_shots,
    "segments": split_segments,
    "faces": align_faces,
    "sync": clip_step("sync"),
    "quality": clip_step("quality"),
}


@dataclass(frozen=True)
class Cost:
    """Wall-clock seconds, and CPU seconds of all processes, which depend little on other load of the machine."""

    wall: float
    cpu: float

    def row(self, name: str, clips: int) -> str:
        return f"| {name} | {self.wall:.1f} | {self.cpu:.1f} | {60 * clips / self.wall:.1f} |"


class Stopwatch:
    """Cost since construction. Child processes count once they have ended."""

    def __init__(self) -> None:
        self._began, self._cpu = time.monotonic(), _cpu_seconds()

    def read(self) -> Cost:
        return Cost(time.monotonic() - self._began, _cpu_seconds() - self._cpu)


def _cpu_seconds() -> float:
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def stepwise(
    files: list[Path], scratch: Path, settings: ProcessSettings, workers: int
) -> tuple[dict[str, Cost], int, Cost]:
    """Cost of each step over all files, number of kept clips, and total cost including the start of the workers."""
    costs = {}
    watch = Stopwatch()
    count = min(workers, max(len(files), 1))
    with multiprocessing.get_context("spawn").Pool(count, _open_tools, (settings, count)) as pool:
        for number, name in enumerate(name for name in STEPS if name not in CLIP_STEPS or settings.runs(name)):
            folder = scratch / str(number)
            folder.mkdir()
            began = time.monotonic()
            made = pool.starmap(_run_step, [(name, path, folder, settings) for path in files], chunksize=1)
            costs[name] = Cost(time.monotonic() - began, sum(cpu for _, cpu in made))
            files = [path for paths, _ in made for path in paths]
        pool.close()
        pool.join()
    return costs, len(files), watch.read()


_TOOLS: Tools | None = None


def _open_tools(settings: ProcessSettings, workers: int) -> None:
    global _TOOLS
    limit_threads(workers)
    _TOOLS = Tools(settings)


def _run_step(name: str, path: Path, folder: Path, settings: ProcessSettings) -> tuple[list[Path], float]:
    """Files that a step writes for one file, and its CPU seconds."""
    began = time.process_time()
    assert _TOOLS is not None
    try:
        made = STEPS[name](path, folder, settings, _TOOLS)
    except UserError as error:
        logging.getLogger(__name__).warning("%s: %s", name, error)
        made = []
    return made, time.process_time() - began


def measure(input_dir: str, clips: int, workers: int, settings: ProcessSettings) -> list[str]:
    """Process a sample of the folder both ways; returns the lines of a Markdown table."""
    options = RunOptions(input_dir, "unused", workers)
    stamps = find_work(options, settings, open_storage(input_dir))
    stamps = [stamps[index * len(stamps) // min(clips, len(stamps))] for index in range(min(clips, len(stamps)))]
    files = [Path(input_dir).resolve() / stamp.name for stamp in stamps]
    with TemporaryDirectory() as folder:
        chosen = Path(folder) / "in"
        chosen.mkdir()
        for number, path in enumerate(files):
            (chosen / f"{number:03d}_{path.name}").symlink_to(path)
        watch = Stopwatch()
        own: Counter[str] = Counter()
        summary = process(
            replace(options, input_dir=chosen, output_dir=Path(folder) / "out"),
            settings,
            lambda record, done, total: own.update({k: v for k, v in record.seconds.items() if k != "total"}),
        )
        single = watch.read()
        (Path(folder) / "steps").mkdir()
        steps, kept, total = stepwise(sorted(chosen.iterdir()), Path(folder) / "steps", settings, workers)
    lines = ["| | wall-clock seconds | CPU seconds, all processes | clips per minute |", "|---|---|---|---|"]
    lines += [single.row(f"single pass, {summary.kept} clips kept", len(files))]
    lines += [total.row(f"stepwise, {kept} kept", len(files))]
    lines += [cost.row(f"stepwise: {name}", len(files)) for name, cost in steps.items()]
    lines += ["", f"ratio {total.wall / single.wall:.2f} in wall-clock time, {total.cpu / single.cpu:.2f} in CPU time"]
    lines += [
        "single pass, CPU seconds in each step: " + ", ".join(f"{name} {value:.1f}" for name, value in own.items())
    ]
    return lines


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m preprocess.bench", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--input_dir", required=True, help="folder of videos")
    add("--clips", type=int, default=60, help="number of videos to process (default: %(default)s)")
    add("--workers", type=int, default=2, help="number of processes (default: %(default)s)")
    add("--resolution", type=int, default=256, help="side of the aligned faces (default: %(default)s)")
    add("--steps", default=",".join(DEFAULT_STEPS), help="sync and quality can be left out (default: %(default)s)")
    args = parser.parse_args(argv)
    settings = ProcessSettings(steps=tuple(args.steps.split(",")), resolution=args.resolution)
    print("\n".join(measure(args.input_dir, args.clips, args.workers, settings)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
