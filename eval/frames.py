"""Aligned faces of a result and of its source, frame by frame, in constant memory.

Legend: F frames of a chunk, R pixels. 25 frames/s, whatever the files' own rates are.
"""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path

import numpy as np

from latentsync.faces.align import crop_size, resize_to_square, shift_source, source_box, warp_to_crop
from latentsync.faces.video import AlignedFace, TrackedFrame
from latentsync.media.frame import VideoFrame
from latentsync.media.probe import probe_video
from latentsync.media.timeline import available_frames
from latentsync.metrics.faces import FPS, clip_frames, is_aligned_clip, read_clip_faces, whole_frame
from latentsync.utils.errors import UserError

SAMPLE_RATE = 16000
CHUNK = 16
SAME_SHAPE = 0.02  # tolerance of the aspect ratios of result and source: sides are rounded to even numbers


@dataclass(frozen=True)
class FaceChunk:
    """Frames of a clip in which the source shows a face.

    Args:
        indices: (F,) their places in the result.
        starts: (F,) True where a face does not continue the previous one: at the start, after a cut or a gap.
        result, source: aligned faces (F, R, R, 3) uint8.
    """

    indices: np.ndarray
    starts: np.ndarray
    result: np.ndarray
    source: np.ndarray


class PairedFaces:
    """Iterates over chunks; `num_frames` is the result's length at 25 frames/s.

    If the result is longer, the source is played forward and backward, as inference does. Both are aligned by one
    transform, that of the source's face, so that a face that moved or changed its size shows. The frames of a clip of
    aligned faces are taken as they are.
    """

    def __init__(self, source: Path, result: Path, resolution: int, face: str = "largest") -> None:
        """Raises UserError when a file is not a video, or the aspect ratios differ."""
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
        self._aligned = is_aligned_clip(self.source)

    def __iter__(self) -> Iterator[FaceChunk]:
        last = -2
        with closing(self._faces()) as faces:
            while chunk := list(islice(faces, CHUNK)):
                items, results = zip(*chunk, strict=True)
                indices = np.array([item.index for item in items])
                starts = np.array([item.face.starts for item in items]) | (np.diff(indices, prepend=last) != 1)
                last = indices[-1]
                yield FaceChunk(indices, starts, np.stack(results), np.stack([item.face.pixels for item in items]))

    def _faces(self) -> Iterator[tuple[TrackedFrame, np.ndarray]]:
        """Each frame with a face, and the result's face."""
        with closing(read_clip_faces(self.source, self.resolution, self._face, self.num_frames)) as tracked:
            if self._same:
                yield from ((item, item.face.pixels) for item in tracked if item.face)
                return
            with closing(clip_frames(self.result, self.num_frames)) as frames:
                for item, frame in zip(tracked, frames, strict=True):
                    if item.face is not None:
                        yield item, self._align(frame, item.face)

    def _align(self, frame: VideoFrame, face: AlignedFace) -> np.ndarray:
        """The same region of the result, whose frames may be larger or smaller than the source's."""
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
    """A transform (2, 3) of source pixels, for a frame that is 1 / scale as large."""
    scales = np.array([scale_x, scale_y])
    moved = np.array(matrix, dtype=np.float64)
    moved[:, 2] += moved[:, :2] @ ((scales - 1) / 2)  # pixel centers stay centers
    moved[:, :2] *= scales
    return moved
