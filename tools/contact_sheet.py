"""Contact sheet of videos: `python -m tools.contact_sheet VIDEO [VIDEO ...] --out sheet.png`.

Each row is a video, each column a time. With --face all frames are cropped to the face in the first video.
"""

import argparse
import sys
from collections.abc import Sequence
from contextlib import closing
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np

from latentsync.constants import FPS
from latentsync.faces.factory import create_detector
from latentsync.media.probe import probe_video
from latentsync.media.timeline import open_timeline
from latentsync.utils.commands import command
from latentsync.utils.errors import UserError

FACE_MARGIN = 0.35  # of the face box, on every side


def pick_frames(path: Path, times: list[Fraction]) -> list[np.ndarray]:
    """RGB frames of a video at `times` (seconds, ascending); the last frame for times after its end."""
    wanted = [int(time * FPS) for time in times]
    duration = Fraction(wanted[-1] + 1, FPS)
    with closing(open_timeline(path, duration, Fraction(FPS), "freeze")) as timeline:
        frames = {index: frame.rgb() for index, frame in enumerate(timeline) if index in set(wanted)}
    return [frames[index] for index in wanted]


def face_box(image: np.ndarray) -> tuple[int, int, int, int]:
    """Largest face with a margin, as x0, y0, x1, y1."""
    with closing(create_detector("auto", static=True)) as detector:
        faces = detector.detect(image)
    if not faces:
        raise UserError("no face in the first frame; leave --face out")
    box = max(faces, key=lambda face: np.prod(face.size)).box
    margin = FACE_MARGIN * (box[2:] - box[:2])
    low = np.maximum(box[:2] - margin, 0).astype(int)
    high = np.minimum(box[2:] + margin, image.shape[1::-1]).astype(int)
    return int(low[0]), int(low[1]), int(high[0]), int(high[1])


def contact_sheet(paths: list[Path], times: list[Fraction], height: int, face: bool) -> np.ndarray:
    """uint8 RGB (rows * height, ..., 3): one row per video, one column per time."""
    rows, box = [], None
    for path in paths:
        images = pick_frames(path, times)
        if face:
            box = box or face_box(images[0])
            images = [image[box[1] : box[3], box[0] : box[2]] for image in images]
        width = round(images[0].shape[1] * height / images[0].shape[0])
        rows.append(np.concatenate([cv2.resize(i, (width, height), interpolation=cv2.INTER_AREA) for i in images], 1))
    widest = max(row.shape[1] for row in rows)
    return np.concatenate([np.pad(row, ((0, 0), (0, widest - row.shape[1]), (0, 0))) for row in rows])


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("videos", type=Path, nargs="+", help="videos or images, one row each")
    parser.add_argument("--out", type=Path, required=True, help="image to write (.png or .jpg)")
    parser.add_argument("--count", type=int, default=8, help="number of columns (default: %(default)s)")
    parser.add_argument("--start", type=float, default=0.0, help="time of the first column in seconds")
    parser.add_argument("--end", type=float, help="time of the last column in seconds (default: end of the last video)")
    parser.add_argument("--height", type=int, default=256, help="height of a row in pixels (default: %(default)s)")
    parser.add_argument("--face", action="store_true", help="show the face only")
    args = parser.parse_args(argv)
    end = args.end or (probe_video(args.videos[-1]).duration or 1.0) - 0.04
    if not 0 <= args.start < end or args.count < 1:
        raise UserError(f"nothing to show between {args.start} and {end} s in {args.count} columns")
    step = (end - args.start) / max(args.count - 1, 1)
    times = [Fraction(args.start + step * k).limit_denominator(1000) for k in range(args.count)]
    sheet = contact_sheet(args.videos, times, args.height, args.face)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(args.out), cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR)):
        raise UserError(f"{args.out}: cannot be written; give a .png or .jpg name")
    print(args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
