"""Accuracy of a sync scorer on shifted audio: `python -m eval.offset_curve --videos_dir FOLDER --output_dir OUT`

Shifts the audio of real clips by -8..8 frames and compares the offset that the scorer finds with the shift. Both are
positive for early audio. Clips with small faces (`--min_face`) or a large own offset (`--max_offset`) are skipped; the
own offset of the others is subtracted.
"""

import argparse
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from eval.videos import find_videos
from latentsync.constants import FPS, SAMPLE_RATE, SAMPLES_PER_FRAME
from latentsync.faces.factory import create_detector
from latentsync.media.audio import load_audio
from latentsync.media.probe import VideoInfo, probe_video
from latentsync.metrics.clip_sync import SCORERS, ClipSyncScorer, open_sync_scorer
from latentsync.metrics.faces import aligned_tracks, clip_frames
from latentsync.utils.commands import command
from latentsync.utils.errors import UserError, one_line
from latentsync.utils.tables import write_csv

REACH = 8  # frames
RESOLUTION = 256  # of the aligned faces that are scored
COLUMNS = ("video", "face_pixels", "shift", "offset", "confidence", "right")


@dataclass(frozen=True)
class Shifted:
    """The offset found in a clip with shifted audio."""

    video: Path
    face_pixels: float
    shift: int
    offset: int
    confidence: float

    @property
    def right(self) -> bool:
        """Whether the offset is within one frame of the shift."""
        return abs(self.offset - self.shift) <= 1

    def cells(self) -> tuple[object, ...]:
        """As `COLUMNS`."""
        numbers = (f"{self.face_pixels:.0f}", self.shift, self.offset, f"{self.confidence:.4f}", int(self.right))
        return self.video, *numbers


def shift_clip(faces: np.ndarray, wave: np.ndarray, shift: int) -> tuple[np.ndarray, np.ndarray]:
    """Shift audio (N,) to be `shift` frames early relative to faces (T, ...); cut off unpaired ends."""
    if shift >= 0:
        return faces[: len(faces) - shift], wave[shift * SAMPLES_PER_FRAME :]
    return faces[-shift:], wave[: len(wave) + shift * SAMPLES_PER_FRAME]


def face_pixels(info: VideoInfo) -> float:
    """Mean of the longer side of the largest face over the first second; 0 without a face."""
    sizes = []
    with closing(create_detector("mediapipe")) as detector, closing(clip_frames(info, FPS)) as frames:
        for frame in frames:
            sizes += [max(face.size.max() for face in faces)] if (faces := detector.detect(frame.rgb())) else []
    return float(np.mean(sizes)) if sizes else 0.0


def score_shifts(scorer: ClipSyncScorer, video: Path, min_face: float, max_offset: int) -> list[Shifted]:
    """Score a clip at each shift. Raises UserError for a clip to skip."""
    info = probe_video(video)
    wave = load_audio(video, SAMPLE_RATE)
    start, faces = max(aligned_tracks(info, RESOLUTION), key=lambda track: len(track[1]), default=(0, np.empty(0)))
    if len(faces) < scorer.min_frames + 2 * REACH:
        raise UserError(f"{video}: a face is in view for {len(faces)} frames, {scorer.min_frames + 2 * REACH} needed")
    size = face_pixels(info)
    audio = wave[start * SAMPLES_PER_FRAME : (start + len(faces)) * SAMPLES_PER_FRAME]
    own = scorer.score_faces(faces, audio)
    if size < min_face or abs(own.offset) > max_offset:
        raise UserError(f"{video}: face {size:.0f} pixels, own offset {own.offset:+d}: skipped")
    found = []
    for shift in range(-REACH, REACH + 1):
        moved = scorer.score_faces(*shift_clip(faces, audio, shift))
        found.append(Shifted(video, size, shift, moved.offset - own.offset, moved.confidence))
    return found


def draw(found: list[Shifted], path: Path, scorer: str) -> None:
    """Plot the offset found over the shift, one faint line per clip, and below it the share within one frame."""
    figure = Figure(figsize=(7, 6), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    shifts = np.arange(-REACH, REACH + 1)
    for video in dict.fromkeys(item.video for item in found):
        above.plot(shifts, [item.offset for item in found if item.video == video], color="C0", alpha=0.25)
    above.plot(shifts, shifts, color="0.2", linestyle="--", linewidth=0.8)
    above.set(ylabel="offset found (frames, positive: early)", title=f"scored by {scorer}")
    below.bar(shifts, [np.mean([item.right for item in found if item.shift == shift]) for shift in shifts])
    below.set(xlabel="shift of the audio (frames, positive: early)", ylabel="within 1 frame", ylim=(0, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m eval.offset_curve", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--videos_dir", type=Path, required=True, help="real clips with their own audio")
    add("--output_dir", type=Path, required=True, help="folder for offsets.csv and offsets.png")
    add("--scorer", choices=SCORERS, default="auto", help="sync scorer (default: %(default)s)")
    add("--device", default="cpu", help="cpu, cuda or cuda:N (default: %(default)s)")
    add("--max_clips", type=int, help="use at most N clips, spread evenly over the folder")
    add("--min_face", type=float, default=80.0, help="smallest face size in pixels (default: %(default)s)")
    add("--max_offset", type=int, default=1, help="largest own offset of a clip in frames (default: %(default)s)")
    return parser


def run(args: argparse.Namespace) -> str:
    """Score all clips and write table and chart; returns a summary."""
    videos = find_videos(args.videos_dir)
    if args.max_clips:
        videos = [videos[i] for i in np.linspace(0, len(videos) - 1, min(args.max_clips, len(videos))).astype(int)]
    scorer = open_sync_scorer(args.scorer, args.device)
    found: list[Shifted] = []
    for video in videos:
        try:
            found += score_shifts(scorer, video, args.min_face, args.max_offset)
        except UserError as error:
            print(f"skipped: {one_line(error)}", file=sys.stderr)
    if not found:
        raise UserError(f"{args.videos_dir}: all clips were skipped, see above")

    write_csv(args.output_dir / "offsets.csv", COLUMNS, (item.cells() for item in found))
    draw(found, args.output_dir / "offsets.png", scorer.name)
    clips = len({item.video for item in found})
    share = np.mean([item.right for item in found])
    return f"{scorer.name}: shift found within 1 frame in {share:.1%} of {len(found)} cases ({clips} clips)"


@command
def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    print(run(args))
    return 0


if __name__ == "__main__":
    sys.exit(main())
