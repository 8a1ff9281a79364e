"""Clips a minute: one pass against one step after the other. `python -m preprocess.bench --input_dir DIR --clips 60`

"One after the other" is how such pipelines are usually built: each step reads the files of the step before, decodes
them whole and encodes its own. Both use the same step functions and the same number of worker processes.
"""

import argparse
import logging
import multiprocessing
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from latentsync.media.audio import load_audio
from latentsync.media.probe import probe_video
from latentsync.media.timeline import available_frames, open_timeline
from latentsync.utils.errors import UserError
from preprocess.clip import FPS, SAMPLE_RATE, Clip, Segment
from preprocess.runner import RunOptions, find_work, process
from preprocess.settings import ProcessSettings
from preprocess.source_work import CLIP_STEPS
from preprocess.steps.faces import faces
from preprocess.steps.probe import SourceError, probe
from preprocess.steps.resample import SoundReader, resample
from preprocess.steps.segments import segments
from preprocess.steps.shots import shots
from preprocess.storage import open_storage
from preprocess.tools import Tools
from preprocess.write import FrameWriter, write_faces

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
    source = probe(path)
    with SoundReader(source) as sound, FrameWriter(target := folder / f"{path.stem}.mp4", Fraction(1), 18) as writer:
        count = 0
        for sample in resample(source):
            writer.write(sample.frame)
            count += 1
        writer.finish(sound.read(Fraction(0), count * SAMPLE_RATE // FPS))
    return [target]


def cut(path: Path, folder: Path, settings: ProcessSettings, tools: Tools) -> list[Path]:
    """Shots, and of these segments."""
    source, made = probe(path), []
    with SoundReader(source) as sound:
        found = shots(resample(source), settings.shot_threshold)
        for segment in segments(found, path.name, sound, settings.segment_frames):
            target = folder / f"{path.stem}_{segment.index:04d}.mp4"
            with FrameWriter(target, Fraction(1), 18) as writer:
                for frame in segment:
                    writer.write(frame)
                writer.finish(segment.sound())
            made.append(target)
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
    "shots, segments": cut,
    "faces": aligned,
    "sync": checked("sync"),
    "quality": checked("quality"),
}


def stepwise(files: list[Path], scratch: Path, settings: ProcessSettings, workers: int) -> tuple[dict[str, float], int]:
    """Seconds of each step over all files, and the clips that come out."""
    seconds = {}
    context = multiprocessing.get_context("spawn")
    for number, name in enumerate(STEPS):
        folder = scratch / str(number)
        folder.mkdir()
        began = time.monotonic()
        with context.Pool(min(workers, max(len(files), 1)), _open_tools, (settings,)) as pool:
            made = pool.starmap(_one, [(name, path, folder, settings) for path in files], chunksize=1)
        seconds[name] = time.monotonic() - began
        files = [path for paths in made for path in paths]
    return seconds, len(files)


_TOOLS: Tools | None = None


def _open_tools(settings: ProcessSettings) -> None:
    global _TOOLS
    _TOOLS = Tools(settings)


def _one(name: str, path: Path, folder: Path, settings: ProcessSettings) -> list[Path]:
    try:
        return STEPS[name](path, folder, settings, _TOOLS)
    except UserError as error:
        logging.getLogger(__name__).warning("%s: %s", name, error)
        return []


def measure(input_dir: str, clips: int, workers: int, settings: ProcessSettings) -> list[str]:
    """Lines of the table."""
    options = RunOptions(input_dir, "unused", workers)
    stamps = find_work(options, open_storage(input_dir))
    stamps = [stamps[index * len(stamps) // min(clips, len(stamps))] for index in range(min(clips, len(stamps)))]
    files = [Path(input_dir).resolve() / stamp.name for stamp in stamps]
    with TemporaryDirectory() as folder:
        chosen = Path(folder) / "in"
        chosen.mkdir()
        for number, path in enumerate(files):
            (chosen / f"{number:03d}_{path.name}").symlink_to(path)
        began = time.monotonic()
        own: Counter[str] = Counter()
        summary = process(
            replace(options, input_dir=chosen, output_dir=Path(folder) / "out"),
            settings,
            lambda record, done, total: own.update({k: v for k, v in record.seconds.items() if k != "total"}),
        )
        one_pass = time.monotonic() - began
        (Path(folder) / "steps").mkdir()
        apart, kept = stepwise(sorted(chosen.iterdir()), Path(folder) / "steps", settings, workers)
    total = sum(apart.values())
    lines = ["| | seconds | clips/min |", "|---|---|---|"]
    lines += [f"| one pass, {summary.kept} clips kept | {one_pass:.1f} | {60 * len(files) / one_pass:.1f} |"]
    lines += [f"| one step after the other, {kept} kept | {total:.1f} | {60 * len(files) / total:.1f} |"]
    lines += [f"| ... {name} | {value:.1f} | {60 * len(files) / value:.1f} |" for name, value in apart.items()]
    lines += ["", f"ratio {total / one_pass:.2f}; one pass, seconds of work: "]
    lines[-1] += ", ".join(f"{name} {value:.1f}" for name, value in own.items())
    return lines


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m preprocess.bench", description=__doc__.split("\n")[0])
    parser.add_argument("--input_dir", required=True)
    parser.add_argument("--clips", type=int, default=60)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--resolution", type=int, default=256)
    args = parser.parse_args(argv)
    try:
        print("\n".join(measure(args.input_dir, args.clips, args.workers, ProcessSettings(resolution=args.resolution))))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
