"""How good frames in between are: `python ECCV2022-RIFE/measure.py VIDEO ...`

Every other frame is left out, made again from its neighbours and held against the real one; beside it the plain mean of
the neighbours. PSNR of the whole picture and of what moves (neighbours differ by more than 8 of 255, and 4 pixels
around), SSIM of the whole.
"""

import argparse
import sys
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, as the original is

from latentsync.media.interpolation import INTERPOLATORS, Interpolator, open_interpolator  # noqa: E402
from latentsync.media.probe import probe_video  # noqa: E402
from latentsync.media.reader import VideoReader  # noqa: E402
from latentsync.metrics.image import ssim  # noqa: E402
from latentsync.utils.errors import UserError  # noqa: E402

MOVES, AROUND = 8, 9  # grey levels, pixels
FEW = 100  # pixels that move: fewer say nothing


@dataclass(frozen=True)
class Likeness:
    """Means over the frames left out; `moving` is NaN where nothing moves."""

    psnr: float
    moving: float
    ssim: float


def frames_of(path: Path, count: int) -> list[np.ndarray]:
    """The first `count` pictures (H, W, 3) uint8."""
    with VideoReader(probe_video(path)) as reader:
        return [picture.frame.rgb() for picture in islice(reader.pictures(), count)]


def psnr(made: np.ndarray, real: np.ndarray) -> float:
    """dB of 8-bit pictures, at most 100."""
    error = float(np.square(made.astype(float) - real).mean())
    return 100.0 if error == 0 else min(100.0, 10 * float(np.log10(255**2 / error)))


def likeness(made: list[np.ndarray], real: list[np.ndarray], moving: list[np.ndarray]) -> Likeness:
    """Of pictures (H, W, 3) and the real ones; `moving` (H, W) bool says where each moves."""

    def tensor(pictures: list[np.ndarray]) -> torch.Tensor:
        return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1

    where = [
        psnr(one[mask], other[mask]) for one, other, mask in zip(made, real, moving, strict=True) if mask.sum() > FEW
    ]
    return Likeness(
        float(np.mean([psnr(one, other) for one, other in zip(made, real, strict=True)])),
        float(np.mean(where)) if where else float("nan"),
        float(ssim(tensor(made), tensor(real)).mean()),
    )


def measure(frames: list[np.ndarray], interpolator: Interpolator) -> tuple[Likeness, Likeness]:
    """(interpolated, mean of both) against the frames left out.

    Raises:
        UserError: fewer than three frames.
    """
    if len(frames) < 3:
        raise UserError(f"three frames or more are needed, there are {len(frames)}")
    pairs = [(frames[i], frames[i + 1], frames[i + 2]) for i in range(0, len(frames) - 2, 2)]
    real = [middle for _, middle, _ in pairs]
    moved = [interpolator.between(first, second, 0.5) for first, _, second in pairs]
    mixed = [((first.astype(np.uint16) + second + 1) // 2).astype(np.uint8) for first, _, second in pairs]
    masks = []
    for first, _, second in pairs:
        differs = (cv2.absdiff(first, second).max(axis=-1) > MOVES).astype(np.uint8)
        masks.append(cv2.dilate(differs, np.ones((AROUND, AROUND), np.uint8)) > 0)
    return likeness(moved, real, masks), likeness(mixed, real, masks)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("videos", nargs="+", type=Path)
    parser.add_argument("--frames", type=int, default=25, help="of each video (default: %(default)s)")
    parser.add_argument("--interpolator", choices=INTERPOLATORS, default="auto")
    parser.add_argument("--model", type=Path, help="RIFE's flownet.pkl")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args(argv)
    rows = []
    try:
        interpolator = open_interpolator(args.interpolator, args.device, rife_path=args.model)
        print(f"| video | PSNR {interpolator.name} / mean (dB) | where it moves | gain there | SSIM |")
        print("|---|---|---|---|---|")
        for video in args.videos:
            made, mixed = measure(frames_of(video, args.frames), interpolator)
            rows.append((made, mixed))
            print(
                f"| {video.stem} | {made.psnr:.2f} / {mixed.psnr:.2f} | {made.moving:.2f} / {mixed.moving:.2f} "
                f"| {made.moving - mixed.moving:+.2f} | {made.ssim:.4f} / {mixed.ssim:.4f} |",
                flush=True,
            )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    there = [made.moving - mixed.moving for made, mixed in rows if np.isfinite(made.moving)]
    if there:
        print(f"mean gain where it moves: {np.mean(there):+.2f} dB over {len(there)} videos")
    print(f"mean gain of whole pictures: {np.mean([m.psnr - p.psnr for m, p in rows]):+.2f} dB over {len(rows)} videos")
    return 0


if __name__ == "__main__":
    sys.exit(main())
