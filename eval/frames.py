"""Aligned faces of a result and of its source, in chunks and constant memory.

Legend: F frames of a chunk, R pixels. All at 25 frames/s, whatever the frame rates of the files.
"""

import math
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path

import numpy as np

from latentsync.constants import FPS
from latentsync.faces.align import crop_size, resize_to_square, shift_source, source_box, warp_to_crop
from latentsync.faces.video import AlignedFace
from latentsync.media.frame import VideoFrame
from latentsync.media.probe import probe_video
from latentsync.media.timeline import available_frames
from latentsync.metrics.faces import clip_frames, is_aligned_clip, read_clip_faces, whole_frame
from latentsync.utils.errors import UserError

CHUNK = 16
SAME_SHAPE = 0.02  # tolerance of the ratio of aspect ratios, since sides are rounded to even numbers


@dataclass(frozen=True)
class FaceChunk:
    """Frames of a clip in which the source shows a face.

    Args:
        indices: (F,) their frame indices in the result.
        starts: (F,) True where a face does not continue the previous one: at the start, after a cut or a gap.
        result, source: aligned faces (F, R, R, 3) uint8.
    """

    indices: np.ndarray
    starts: np.ndarray
    result: np.ndarray
    source: np.ndarray


class PairedFaces:
    """Iterates over chunks; `num_frames` is the result's length at 25 frames/s, or that of `seconds` if it is shorter.

    If the result is longer, the source is played forward and backward, as in inference. Both are aligned by the
    transform of the source's face, so that a face that moved or changed its size is noticed. Clips of aligned faces are
    not aligned again.
    """

    def __init__(
        self, source: Path, result: Path, resolution: int, face: str = "largest", seconds: float | None = None
    ) -> None:
        """Raises UserError if a file is not a video, or the aspect ratios differ."""
        self.source, self.result = probe_video(source), probe_video(result)
        self._same = source.resolve() == result.resolve()
        if self.result.is_still:
            raise UserError(f"{result}: is an image; give a video")
        proportions = [info.width / info.height for info in (self.source, self.result)]
        if abs(proportions[0] / proportions[1] - 1) > SAME_SHAPE:
            raise UserError(
                f"{result}: is {self.result.width}x{self.result.height}, its source {self.source.width}x"
                f"{self.source.height}; give results of the whole frame"
            )
        self.resolution, self._face = resolution, face
        self.num_frames = available_frames(self.result, Fraction(FPS))
        if seconds is not None:
            self.num_frames = min(self.num_frames, math.ceil(seconds * FPS))
        self._aligned = is_aligned_clip(self.source)

    def __iter__(self) -> Iterator[FaceChunk]:
        last = -2
        with closing(self._faces()) as faces:
            while chunk := list(islice(faces, CHUNK)):
                places, sources, results = zip(*chunk, strict=True)
                indices = np.array(places)
                starts = np.array([face.starts for face in sources]) | (np.diff(indices, prepend=last) != 1)
                last = indices[-1]
                yield FaceChunk(indices, starts, np.stack(results), np.stack([face.pixels for face in sources]))

    def _faces(self) -> Generator[tuple[int, AlignedFace, np.ndarray], None, None]:
        """Index, source face and result face of each frame in which the source shows a face."""
        with closing(read_clip_faces(self.source, self.resolution, self._face, self.num_frames)) as tracked:
            if self._same:
                yield from ((item.index, item.face, item.face.pixels) for item in tracked if item.face)
                return
            with closing(clip_frames(self.result, self.num_frames)) as frames:
                for item, frame in zip(tracked, frames, strict=True):
                    if item.face is not None:
                        yield item.index, item.face, self._align(frame, item.face)

    def _align(self, frame: VideoFrame, face: AlignedFace) -> np.ndarray:
        """The same region of the result, whose frames may have another size than the source's."""
        if self._aligned:
            return whole_frame(frame, self.resolution).pixels
        size = crop_size(self.resolution)
        matrix = rescaled(face.matrix, self.source.width / frame.width, self.source.height / frame.height)
        x0, y0, x1, y1 = source_box(matrix, size, (frame.height, frame.width))
        if x0 == x1:
            raise UserError(f"{self.result.path}: the face of {self.source.path} is outside its frames")
        crop = warp_to_crop(frame.crop_rgb(x0, y0, x1, y1), shift_source(matrix, x0, y0), size)
        return resize_to_square(crop, self.resolution)


def rescaled(matrix: np.ndarray, scale_x: float, scale_y: float) -> np.ndarray:
    """Adapt a transform (2, 3) of source pixels to a frame whose size is 1 / scale of the source's."""
    scales = np.array([scale_x, scale_y])
    moved = np.array(matrix, dtype=np.float64)
    moved[:, 2] += moved[:, :2] @ ((scales - 1) / 2)  # pixel centers stay centers
    moved[:, :2] *= scales
    return moved
