"""Cut aligned faces out of clips for training: `python -m tools.prepare_faces --input_dir DIR --output_dir DIR`.

From each video or picture of the input folder the longest run of frames with one tracked face is kept: square,
upright, at 25 frames/s, stored without visible loss beside its 16 kHz sound. What is written: one file per
clip in a folder per person, `train.txt` (clips with sound) and `faces.txt` (pictures as well). With --held_out_dir the
clips that are excluded or beyond the number of a person's clips are cut out too, into a folder of their own.
The person is the file's name up to its last underscore.
"""

import argparse
import fnmatch
import logging
import sys
from collections import defaultdict
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from tqdm import tqdm

from latentsync.faces.align import resize_to_square
from latentsync.faces.factory import create_detector
from latentsync.faces.tracking import FaceTracker
from latentsync.media.audio import load_audio
from latentsync.media.probe import VideoInfo, probe_video
from latentsync.media.timeline import open_timeline
from latentsync.utils.affine_transform import AlignRestore
from latentsync.utils.errors import UserError

logger = logging.getLogger("prepare_faces")
FPS = 25
SAMPLE_RATE = 16000
MIN_FRAMES = 32
HELD_OUT_PER_PERSON = 40
MAX_SECONDS = 12.0
SUFFIXES = {".mp4", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".png", ".jpg", ".jpeg"}


def person_of(path: Path) -> str:
    return path.stem.rpartition("_")[0] or path.stem


@dataclass(frozen=True)
class Selection:
    """Files to train on, and files to judge by that are never trained on."""

    training: list[Path]
    held_out: list[Path]


def select_clips(folder: Path, exclude: list[str], per_person: int) -> Selection:
    """Of the files of a folder, sorted: at most `per_person` of each person to train on, spread over what there is.

    Held out are the excluded ones, and of people with more clips than that as many again, up to HELD_OUT_PER_PERSON.
    """
    people, held_out = defaultdict(list), []
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in SUFFIXES:
            if any(fnmatch.fnmatch(path.stem, pattern) for pattern in exclude):
                held_out.append(path)
            else:
                people[person_of(path)].append(path)
    training = []
    for paths in people.values():
        kept = spread(paths, per_person)
        training += kept
        held_out += spread([path for path in paths if path not in kept], HELD_OUT_PER_PERSON)
    if not training:
        raise UserError(f"{folder}: no videos or pictures to take faces from")
    return Selection(training, held_out)


def spread(items: list, count: int) -> list:
    """At most `count` items, evenly spaced."""
    picked = np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int)
    return [items[index] for index in picked]


def longest_run(faces: list[np.ndarray | None]) -> tuple[int, int]:
    """[start, end) of the longest stretch without None."""
    best, start = (0, 0), 0
    for index, face in enumerate([*faces, None]):
        if face is None:
            best = max(best, (start, index), key=lambda run: run[1] - run[0])
            start = index + 1
    return best


def aligned_faces(info: VideoInfo, resolution: int) -> list[np.ndarray | None]:
    """Aligned face of every frame, None where there is none (or right at a cut)."""
    duration = 1 / FPS if info.is_still else min(info.duration or MAX_SECONDS, MAX_SECONDS)
    aligner = AlignRestore(resolution=resolution)
    faces: list[np.ndarray | None] = []
    with (
        closing(create_detector("mediapipe", static=info.is_still)) as detector,
        closing(open_timeline(info, duration, Fraction(FPS))) as timeline,
    ):
        tracker = FaceTracker(detector, fps=FPS)
        for frame in timeline:
            image = frame.rgb()
            tracked = tracker.update(image)
            if tracked is None or (tracked.is_cut and faces and faces[-1] is not None):
                faces.append(None)
                continue
            if tracked.is_cut:
                aligner.reset()
            faces.append(resize_to_square(aligner.align_warp_face(image, tracked.anchors)[0], resolution))
    return faces


def write_clip(path: Path, faces: np.ndarray, wave: np.ndarray | None) -> None:
    """uint8 (F, R, R, 3) and optional mono float wave -> MP4 with 4:4:4 H.264 and FLAC."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format="mp4") as container:
        video = container.add_stream("libx264", rate=FPS, options={"crf": "10", "preset": "fast"})
        video.width, video.height, video.pix_fmt = faces.shape[2], faces.shape[1], "yuv444p"
        sound = container.add_stream("flac", rate=SAMPLE_RATE, layout="mono") if wave is not None else None
        for face in faces:
            container.mux(video.encode(av.VideoFrame.from_ndarray(face, format="rgb24")))
        container.mux(video.encode(None))
        if sound is not None:
            samples = np.round(wave * 32767).astype(np.int16)[None]
            frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
            frame.sample_rate, frame.pts = SAMPLE_RATE, 0
            container.mux(sound.encode(frame))
            container.mux(sound.encode(None))


def prepare(path: Path, output_dir: Path, resolution: int) -> tuple[Path, bool] | None:
    """Process one file; returns where the clip is and whether it has sound, or None when no face was found."""
    info = probe_video(path)
    faces = aligned_faces(info, resolution)
    start, end = longest_run(faces)
    if end == start or (not info.is_still and end - start < MIN_FRAMES):
        logger.warning("%s: no run of %d frames with a face, left out", path.name, MIN_FRAMES)
        return None
    wave = None
    if not info.is_still:
        wave = load_audio(path, SAMPLE_RATE)[start * SAMPLE_RATE // FPS : end * SAMPLE_RATE // FPS]
    target = output_dir / person_of(path) / f"{path.stem}.mp4"
    write_clip(target, np.stack(faces[start:end]), wave)
    return target, wave is not None


def prepare_all(paths: list[Path], output_dir: Path, resolution: int, silent: list[str], label: str) -> None:
    """Process files into `output_dir` and list them there; those that cannot be used are named and left out."""
    done = []
    for path in tqdm(paths, desc=label):
        try:
            result = prepare(path, output_dir, resolution)
        except UserError as error:
            logger.warning("left out: %s", error)
            continue
        if result is not None:
            target, sounding = result
            heard = sounding and not any(fnmatch.fnmatch(path.stem, pattern) for pattern in silent)
            done.append((target.relative_to(output_dir), person_of(path), heard))
    for name, lines in (("faces.txt", done), ("train.txt", [line for line in done if line[2]])):
        text = "".join(f"{clip}\t{person}\n" for clip, person, _ in lines)
        output_dir.mkdir(parents=True, exist_ok=True)
        (output_dir / name).write_text(text, encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--input_dir", type=Path, required=True, nargs="+", help="folders of clips and portraits")
    parser.add_argument("--output_dir", type=Path, required=True, help="where the aligned clips go")
    parser.add_argument("--held_out_dir", type=Path, help="where the clips held out go (default: they are not made)")
    parser.add_argument("--resolution", type=int, default=128, help="side of the aligned faces in pixels")
    parser.add_argument("--max_clips_per_person", type=int, default=100, help="keeps one person from outnumbering all")
    parser.add_argument("--exclude", nargs="*", default=[], help="file-name patterns to hold out")
    parser.add_argument("--silent", nargs="*", default=[], help="patterns of clips whose sound must not be trained on")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        chosen = [select_clips(folder, args.exclude, args.max_clips_per_person) for folder in args.input_dir]
        training = [path for selection in chosen for path in selection.training]
        held_out = [path for selection in chosen for path in selection.held_out]
        prepare_all(training, args.output_dir, args.resolution, args.silent, "to train on")
        if args.held_out_dir is not None:
            prepare_all(held_out, args.held_out_dir, args.resolution, args.silent, "held out")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
