"""Do results leave the surroundings of a face as they are? `python -m recipes.embedded.surroundings --results DIR ...`.

PSNR of the results of `tools.evaluate_embedded` to their sources within the crop around the face and outside its
contour: background, hair, collar. The same of the sources after the same encode tells how much of it is the encoder's.
"""

import sys
from collections.abc import Sequence
from contextlib import ExitStack, closing
from fractions import Fraction
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import numpy as np

from latentsync.constants import FPS
from latentsync.faces.align import crop_size, shift_source, source_box
from latentsync.faces.video import TrackedFrame, read_faces
from latentsync.media.probe import probe_video
from latentsync.media.timeline import available_frames
from latentsync.media.writer import VideoWriter
from latentsync.metrics.faces import clip_frames
from latentsync.utils.commands import command
from latentsync.utils.errors import UserError
from recipes.embedded.identity import pairs_of, parse

RESOLUTION = 256
SIZE = crop_size(RESOLUTION)
MARGIN = 1 / 24  # of the crop's width: the result may cover the jaw of the source with a soft edge


def surroundings(source: TrackedFrame, result: TrackedFrame) -> np.ndarray | None:
    """Differences (N, 3) in 0..255 of the pixels in the crop outside both contours; None without a contour in both."""
    if source.face is None or source.face.contour is None or result.face is None or result.face.contour is None:
        return None
    x0, y0, x1, y1 = source_box(source.face.matrix, SIZE, (source.frame.height, source.frame.width))
    box = (x1 - x0, y1 - y0)
    to_box = [cv2.invertAffineTransform(shift_source(face.matrix, x0, y0)) for face in (source.face, result.face)]
    outside = _fill(box, np.array([(0, 0), (SIZE[0], 0), SIZE, (0, SIZE[1])]), to_box[0])
    radius = round(MARGIN * SIZE[0] * np.sqrt(abs(np.linalg.det(to_box[0][:, :2]))))
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1,) * 2)
    for contour, transform in zip((source.face.contour, result.face.contour), to_box, strict=True):
        crop = (contour + 0.5) * (np.array(SIZE) / RESOLUTION) - 0.5
        outside &= ~cv2.dilate(_fill(box, crop, transform), disc)
    first, second = (found.frame.crop_rgb(x0, y0, x1, y1).astype(np.float32) for found in (source, result))
    return (first - second)[outside > 0]


def _fill(size: tuple[int, int], polygon: np.ndarray, to_box: np.ndarray) -> np.ndarray:
    """(height, width) uint8, 255 inside a polygon (N, 2) of the crop."""
    corners = cv2.transform(polygon[None].astype(np.float64), to_box)
    return cv2.fillPoly(np.zeros(size[::-1], np.uint8), [np.round(corners[0]).astype(np.int32)], 255)


def compare_files(source: Path, result: Path) -> float:
    """PSNR in dB over all frames."""
    with closing(read_faces(source, RESOLUTION)) as sources, closing(read_faces(result, RESOLUTION)) as results:
        pairs = zip(sources, results, strict=False)  # one may be longer
        squares = [np.square(found).mean(1) for pair in pairs if (found := surroundings(*pair)) is not None]
    if not squares:
        raise UserError(f"{result}: no frame shows a face, or the face detector gives no contours")
    return float(10 * np.log10(255**2 / np.concatenate(squares).mean()))


def encode(source: Path, path: Path, count: int) -> None:
    """Write the first frames of a video as the pipeline writes its results."""
    with ExitStack() as stack:
        frames = stack.enter_context(closing(clip_frames(probe_video(source), count)))
        first = next(frames)
        writer = VideoWriter(path, first.width, first.height, Fraction(FPS), color=first.color)
        stack.enter_context(writer)
        for frame in chain([first], frames):
            writer.write(frame)


@command
def main(argv: Sequence[str] | None = None) -> int:
    args = parse(__doc__.split("\n")[0], argv)
    rows = []
    for source, result in pairs_of(args):
        with TemporaryDirectory() as folder:
            encoded = Path(folder) / "encoded.mp4"
            encode(source, encoded, available_frames(probe_video(result), Fraction(FPS)))
            rows.append((compare_files(source, result), compare_files(source, encoded)))
        print(f"{source.stem}: result {rows[-1][0]:.1f} dB, encoded source {rows[-1][1]:.1f} dB", flush=True)
    mean, worst = np.mean(rows, axis=0), min(rows)
    print(f"mean: result {mean[0]:.1f} dB, encoded source {mean[1]:.1f} dB; worst {worst[0]:.1f} and {worst[1]:.1f} dB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
