"""Accuracy of frame interpolation: `python ECCV2022-RIFE/measure.py VIDEO ...`

Leaves out every other frame, interpolates it from its neighbors and compares it with the real one. The baseline is the
mean of the two neighbors. Reports the PSNR of whole frames and of moving areas (where the neighbors differ by more than
8 of 255, dilated by 4 pixels), and the SSIM of whole frames.

Values are averaged over the frames of a video, then over videos; `--group` averages over groups of videos as well.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs as a file

from latentsync.media.interpolation import INTERPOLATORS, Interpolator, open_interpolator  # noqa: E402
from latentsync.media.optical_flow import FlowEstimator, enlarge, warp  # noqa: E402
from latentsync.media.probe import probe_video  # noqa: E402
from latentsync.media.reader import VideoReader  # noqa: E402
from latentsync.metrics.image import ssim  # noqa: E402
from latentsync.utils.commands import command  # noqa: E402
from latentsync.utils.errors import UserError  # noqa: E402

MOVES, AROUND = 8, 9  # gray levels; pixels of the dilation kernel
FEW = 100  # smallest number of moving pixels to evaluate
REPEATED = 15.0  # dB by which a repeated frame is more similar to one neighbor than to the other


@dataclass(frozen=True)
class Likeness:
    """Means over the left-out frames; `moving` is NaN if nothing moves."""

    psnr: float
    moving: float
    ssim: float


def frames_of(path: Path, count: int) -> list[np.ndarray]:
    """The first `count` frames (H, W, 3) uint8."""
    with VideoReader(probe_video(path)) as reader:
        return [decoded.frame.rgb() for decoded in islice(reader.decode(), count)]


def psnr(made: np.ndarray, real: np.ndarray) -> float:
    """PSNR of 8-bit frames in dB, at most 100."""
    error = float(np.square(made.astype(float) - real).mean())
    return 100.0 if error == 0 else min(100.0, 10 * float(np.log10(255**2 / error)))


def likeness(made: list[np.ndarray], real: list[np.ndarray], moving: list[np.ndarray]) -> Likeness:
    """Compare frames (H, W, 3) with the real ones; `moving` (H, W) bool masks the moving area of each."""
    where = [
        psnr(one[mask], other[mask]) for one, other, mask in zip(made, real, moving, strict=True) if mask.sum() > FEW
    ]
    return Likeness(
        float(np.mean([psnr(one, other) for one, other in zip(made, real, strict=True)])),
        float(np.mean(where)) if where else float("nan"),
        float(ssim(np.stack(made), np.stack(real)).mean()),
    )


@dataclass(frozen=True)
class Gap:
    """A left-out frame and two neighbors on each side at the remaining rate: (H, W, 3) uint8, None beyond the ends."""

    before: np.ndarray | None
    first: np.ndarray
    real: np.ndarray
    second: np.ndarray
    after: np.ndarray | None

    def moving(self) -> np.ndarray:
        """(H, W) bool: where the neighbors differ, dilated."""
        differs = (cv2.absdiff(self.first, self.second).max(axis=-1) > MOVES).astype(np.uint8)
        return cv2.dilate(differs, np.ones((AROUND, AROUND), np.uint8)) > 0

    def mixed(self) -> np.ndarray:
        """Mean of the neighbors."""
        return ((self.first.astype(np.uint16) + self.second + 1) // 2).astype(np.uint8)

    def is_repeat(self) -> bool:
        """Whether the real frame repeats a neighbor, as after conversion from 25 to 30 frames/s."""
        return abs(psnr(self.real, self.first) - psnr(self.real, self.second)) > REPEATED


def gaps_of(frames: list[np.ndarray], every: int = 1, skip_repeats: bool = False) -> list[Gap]:
    """Leave out every other frame, and return each `every`-th gap.

    Raises:
        UserError: fewer than three frames, or no gap left.
    """
    if len(frames) < 3:
        raise UserError(f"three frames or more are needed, there are {len(frames)}")
    kept, ends = [None, *frames[::2], None], len(frames[::2]) - 1
    gaps = [Gap(kept[i], kept[i + 1], frames[2 * i + 1], kept[i + 2], kept[i + 3]) for i in range(0, ends, every)]
    gaps = [gap for gap in gaps if not (skip_repeats and gap.is_repeat())]
    if not gaps:
        raise UserError("every frame that would be left out repeats its neighbor; run without --skip-repeats")
    return gaps


def measure(gaps: list[Gap], interpolator: Interpolator) -> tuple[Likeness, Likeness]:
    """Accuracy of the interpolated frames and of the mean of the neighbors."""
    real, masks = [gap.real for gap in gaps], [gap.moving() for gap in gaps]
    moved = [interpolator.between(gap.first, gap.second, 0.5, gap.before, gap.after) for gap in gaps]
    return likeness(moved, real, masks), likeness([gap.mixed() for gap in gaps], real, masks)


def ceiling(gaps: list[Gap]) -> Likeness:
    """Accuracy with flow computed from the left-out frame itself: an upper bound for any motion estimate.

    The remaining error is noise, changing light, and areas that neither neighbor shows.
    """
    estimator = FlowEstimator()

    def best(gap: Gap) -> np.ndarray:
        moved = [
            warp(neighbor, enlarge(estimator.both_ways(gap.real, neighbor)[0], gap.real.shape))
            for neighbor in (gap.first, gap.second)
        ]
        return np.clip(np.rint((moved[0] + moved[1]) / 2), 0, 255).astype(np.uint8)

    return likeness([best(gap) for gap in gaps], [gap.real for gap in gaps], [gap.moving() for gap in gaps])


def gains(rows: list[tuple[Likeness, ...]]) -> str:
    """Summary of videos in one line, from (interpolated, mean) or (interpolated, mean, ceiling) of each."""
    there = [made.moving - mixed.moving for made, mixed, *_ in rows if np.isfinite(made.moving)]
    whole = [made.psnr - mixed.psnr for made, mixed, *_ in rows]
    made, mixed = (np.mean([row[place].ssim for row in rows]) for place in (0, 1))
    text = f"{np.mean(whole):+.2f} dB on whole frames ({min(whole):+.2f} to {max(whole):+.2f}), "
    text += f"{np.mean(there):+.2f} in moving areas, " if there else "nothing moves, "
    text += f"SSIM {made:.4f} / {mixed:.4f}"
    if len(rows[0]) > 2:
        text += f", with the true motion {np.mean([row[2].psnr - row[1].psnr for row in rows]):+.2f} dB"
    return f"{text}, over {len(rows)} videos"


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("videos", nargs="+", type=Path, help="videos to evaluate")
    parser.add_argument("--frames", type=int, default=25, help="frames of each video (default: %(default)s)")
    parser.add_argument("--every", type=int, default=1, help="use each N-th left-out frame (default: %(default)s)")
    parser.add_argument("--skip-repeats", action="store_true", help="skip frames that repeat a neighbor")
    parser.add_argument("--ceiling", action="store_true", help="also report the upper bound of any motion estimate")
    parser.add_argument(
        "--group", action="append", default=[], metavar="REGEX", help="average over videos whose names match as well"
    )
    parser.add_argument("--interpolator", choices=INTERPOLATORS, default="auto", help="method (default: %(default)s)")
    parser.add_argument("--model", type=Path, help="RIFE weights, flownet.pkl")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: %(default)s)")
    args = parser.parse_args(argv)
    rows: dict[Path, tuple[Likeness, ...]] = {}
    interpolator = open_interpolator(args.interpolator, args.device, rife_path=args.model)
    print(f"| video | PSNR {interpolator.name} / mean (dB) | moving areas | gain there | SSIM |")
    print("|---|---|---|---|---|")
    for video in args.videos:
        gaps = gaps_of(frames_of(video, args.frames), args.every, args.skip_repeats)
        made, mixed = measure(gaps, interpolator)
        rows[video] = (made, mixed, ceiling(gaps)) if args.ceiling else (made, mixed)
        print(
            f"| {video.stem} | {made.psnr:.2f} / {mixed.psnr:.2f} | {made.moving:.2f} / {mixed.moving:.2f} "
            f"| {made.moving - mixed.moving:+.2f} | {made.ssim:.4f} / {mixed.ssim:.4f} |",
            flush=True,
        )
    for group in args.group:
        if members := [row for video, row in rows.items() if re.match(group, video.stem)]:
            print(f"{group}: mean gain {gains(members)}")
    print(f"mean gain {gains(list(rows.values()))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
