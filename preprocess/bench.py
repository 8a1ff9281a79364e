"""Clips a minute: one pass against one step after the other. `python -m preprocess.bench --input_dir DIR --clips 60`

"One after the other" is how such pipelines are usually built: each step reads the files of the step before, decodes
them whole and encodes its own. Both use the same step functions and the same number of worker processes, started once.
"""

import argparse
import logging
import multiprocessing
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from latentsync.constants import FPS, SAMPLE_RATE
from latentsync.media.audio import load_audio
from latentsync.media.probe import probe_video
from latentsync.media.timeline import available_frames, open_timeline
from latentsync.utils.commands import command
from latentsync.utils.errors import UserError
from preprocess.clip import Clip, Segment
from preprocess.executors import limit_threads, threads_for
from preprocess.runner import RunOptions, find_work, process
from preprocess.settings import DEFAULT_STEPS, ProcessSettings
from preprocess.source_work import CLIP_STEPS
from preprocess.steps.faces import faces
from preprocess.steps.probe import Source, SourceError, probe
from preprocess.steps.resample import Sample, SoundReader, resample
from preprocess.steps.segments import segments
from preprocess.steps.shots import shots
from preprocess.storage import open_storage
from preprocess.tools import Tools
from preprocess.write import FrameWriter, write_faces

WHOLE_CRF = 18  # of whole frames in between

Step = Callable[[Path, Path, ProcessSettings, Tools], list[Path]]


def whole(path: Path, folder: Path, settings: ProcessSettings, tools: Tools) -> list[Path]:
    """Decode a source once to see that it is whole; the file itself goes on."""
    try:
        for _ in resample(probe(path)):
            pass
    except SourceError:
        return []
    return [path]


def at_25(path: Path, folder: Path, settings: ProcessSettings, tools: Tools) -> list[Path]:
    """Pictures at 25 frames/s, sound at 16 kHz."""
    source, target, count = probe(path), folder / f"{path.stem}.mp4", 0
    with SoundReader(source) as sound, FrameWriter(target, Fraction(1), WHOLE_CRF) as writer:
        for sample in resample(source):
            writer.write(sample.frame)
            count += 1
        writer.finish(sound.read(Fraction(0), count * SAMPLE_RATE // FPS))
    return [target]


def shot_files(path: Path, folder: Path, settings: ProcessSettings, tools: Tools) -> list[Path]:
    """A file for each shot."""
    source = probe(path)
    return _cut(source, shots(resample(source), settings.shot_threshold), sys.maxsize, folder)


def segment_files(path: Path, folder: Path, settings: ProcessSettings, tools: Tools) -> list[Path]:
    """Shots in segments of equal length."""
    source = probe(path)
    return _cut(source, resample(source), settings.segment_frames, folder)


def _cut(source: Source, samples: Iterator[Sample], length: int, folder: Path) -> list[Path]:
    """A file for each segment of at most `length` frames."""
    made = []
    with SoundReader(source) as sound:
        for segment in segments(samples, source.info.path.name, sound, length):
            made.append(folder / f"{source.info.path.stem}_{segment.index:04d}.mp4")
            with FrameWriter(made[-1], Fraction(1), WHOLE_CRF) as writer:
                for frame in segment:
                    writer.write(frame)
                writer.finish(segment.sound())
    return made


def aligned(path: Path, folder: Path, settings: ProcessSettings, tools: Tools) -> list[Path]:
    """The face step on a file of its own."""
    info = probe_video(path)
    wave = load_audio(path, SAMPLE_RATE)
    fps = Fraction(FPS)

    def sound(start: Fraction, samples: int) -> np.ndarray:
        first = round(start * SAMPLE_RATE)
        return np.pad(wave[first : first + samples], (0, max(0, first + samples - len(wave))))

    timeline = open_timeline(info, available_frames(info, fps) / fps, fps)
    made = []
    for clip in faces(Segment(path.name, 0, Fraction(0), iter(timeline), sound), settings, tools):
        if clip.drop is None:
            made.append(folder / f"{path.stem}_{clip.person}.mp4")
            write_faces(made[-1], clip.faces, clip.wave, settings.crf)
    return made


def checked(step: str) -> Step:
    """A step on aligned clips: decode, look, encode what is kept."""

    def run(path: Path, folder: Path, settings: ProcessSettings, tools: Tools) -> list[Path]:
        info = probe_video(path)
        fps = Fraction(FPS)
        pictures = np.stack([frame.rgb() for frame in open_timeline(info, available_frames(info, fps) / fps, fps)])
        wave = load_audio(path, SAMPLE_RATE)[: len(pictures) * SAMPLE_RATE // FPS]
        clip = CLIP_STEPS[step](Clip(path.name, 0, 0, Fraction(0), pictures, wave), settings, tools)
        if clip.drop is not None:
            return []
        target = folder / path.name
        write_faces(target, clip.faces, clip.wave, settings.crf)
        return [target]

    return run


STEPS: dict[str, Step] = {
    "broken files out": whole,
    "25 frames/s, 16 kHz": at_25,
    "shots": shot_files,
    "segments": segment_files,
    "faces": aligned,
    "sync": checked("sync"),
    "quality": checked("quality"),
}


@dataclass(frozen=True)
class Cost:
    """Seconds by the clock, and of work: of all processes together, which others on the machine hardly change."""

    clock: float
    work: float

    def row(self, name: str, clips: int) -> str:
        return f"| {name} | {self.clock:.1f} | {self.work:.1f} | {60 * clips / self.clock:.1f} |"


class Stopwatch:
    """Cost since it was made; that of other processes counts once they have ended."""

    def __init__(self) -> None:
        self._began, self._work = time.monotonic(), _work_so_far()

    def read(self) -> Cost:
        return Cost(time.monotonic() - self._began, _work_so_far() - self._work)


def _work_so_far() -> float:
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def stepwise(
    files: list[Path], scratch: Path, settings: ProcessSettings, workers: int
) -> tuple[dict[str, Cost], int, Cost]:
    """Cost of each step over all files, the clips that come out, and the cost of all with the workers' start."""
    costs = {}
    watch = Stopwatch()
    count = min(workers, max(len(files), 1))
    with multiprocessing.get_context("spawn").Pool(count, _open_tools, (settings, threads_for(count))) as pool:
        for number, name in enumerate(name for name in STEPS if name not in CLIP_STEPS or settings.runs(name)):
            folder = scratch / str(number)
            folder.mkdir()
            began = time.monotonic()
            made = pool.starmap(_one, [(name, path, folder, settings) for path in files], chunksize=1)
            costs[name] = Cost(time.monotonic() - began, sum(work for _, work in made))
            files = [path for paths, _ in made for path in paths]
        pool.close()
        pool.join()
    return costs, len(files), watch.read()


_TOOLS: Tools | None = None


def _open_tools(settings: ProcessSettings, threads: int) -> None:
    global _TOOLS
    limit_threads(threads)
    _TOOLS = Tools(settings)


def _one(name: str, path: Path, folder: Path, settings: ProcessSettings) -> tuple[list[Path], float]:
    """The files a step makes of one, and the seconds of work."""
    began = time.process_time()
    try:
        made = STEPS[name](path, folder, settings, _TOOLS)
    except UserError as error:
        logging.getLogger(__name__).warning("%s: %s", name, error)
        made = []
    return made, time.process_time() - began


def measure(input_dir: str, clips: int, workers: int, settings: ProcessSettings) -> list[str]:
    """Lines of the table."""
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
        one_pass = watch.read()
        (Path(folder) / "steps").mkdir()
        apart, kept, steps = stepwise(sorted(chosen.iterdir()), Path(folder) / "steps", settings, workers)
    lines = ["| | seconds | of work, all processes | clips/min |", "|---|---|---|---|"]
    lines += [one_pass.row(f"one pass, {summary.kept} clips kept", len(files))]
    lines += [steps.row(f"one step after the other, {kept} kept", len(files))]
    lines += [cost.row(f"... {name}", len(files)) for name, cost in apart.items()]
    lines += ["", f"ratio {steps.clock / one_pass.clock:.2f} by the clock, {steps.work / one_pass.work:.2f} of work"]
    lines += [
        "one pass, seconds by the clock in each step: "
        + ", ".join(f"{name} {value:.1f}" for name, value in own.items())
    ]
    return lines


@command
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m preprocess.bench", description=__doc__.split("\n")[0])
    parser.add_argument("--input_dir", required=True)
    parser.add_argument("--clips", type=int, default=60)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--resolution", type=int, default=256)
    parser.add_argument(
        "--steps", default=",".join(DEFAULT_STEPS), help="sync and quality may be left out (default: %(default)s)"
    )
    args = parser.parse_args(argv)
    settings = ProcessSettings(steps=tuple(args.steps.split(",")), resolution=args.resolution)
    print("\n".join(measure(args.input_dir, args.clips, args.workers, settings)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
