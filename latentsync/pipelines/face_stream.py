"""A stream of frames, each with the aligned face of the person who is to speak, grouped into runs.

Letters: R working resolution.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from latentsync.faces.align import resize_to_square, shift_source, source_box, warp_to_crop
from latentsync.faces.tracking import FaceTracker
from latentsync.media.frame import VideoFrame
from latentsync.utils.affine_transform import AlignRestore

DETECTION_SIDE = 960  # the detector sees frames no larger than this; anchors stay well below a pixel of error


@dataclass(frozen=True)
class AlignedFace:
    """pixels (R, R, 3) uint8 and the transform (2, 3) from frame to crop; `starts` is True after a cut."""

    pixels: np.ndarray
    matrix: np.ndarray
    starts: bool


@dataclass(frozen=True)
class TrackedFrame:
    """One output frame: its index, the picture, and the face if there is one."""

    index: int
    frame: VideoFrame
    face: AlignedFace | None


class FaceAligner:
    """Finds, follows and cuts out one person's face, frame after frame of one clip."""

    def __init__(self, tracker: FaceTracker, aligner: AlignRestore):
        self.tracker, self.aligner = tracker, aligner
        self._last: tuple[VideoFrame, AlignedFace | None] | None = None

    def __call__(self, frame: VideoFrame) -> AlignedFace | None:
        if self._last is not None and self._last[0] is frame:  # a still or frozen frame: nothing new to see
            face = self._last[1]
            return face and AlignedFace(face.pixels, face.matrix, starts=False)
        face = self._align(frame)
        self._last = (frame, face)
        return face

    def _align(self, frame: VideoFrame) -> AlignedFace | None:
        image = frame.rgb(DETECTION_SIDE)
        tracked = self.tracker.update(image, scale=frame.width / image.shape[1])
        if tracked is None:
            return None
        if tracked.is_cut:
            self.aligner.reset()
        return self.cut_out(frame, tracked.anchors, tracked.is_cut)

    def cut_out(self, frame: VideoFrame, anchors: np.ndarray, starts: bool) -> AlignedFace | None:
        """The face with these anchors (3, 2), full-frame pixels; None when its crop lies outside the frame."""
        matrix = self.aligner.estimate(anchors)
        box = source_box(matrix, self.aligner.face_size, (frame.height, frame.width))
        if box[2] == box[0]:
            return None
        crop = warp_to_crop(frame.crop_rgb(*box), shift_source(matrix, box[0], box[1]), self.aligner.face_size)
        return AlignedFace(resize_to_square(crop, self.aligner.resolution), matrix, starts)


def tracked_frames(frames: Iterable[VideoFrame], align: FaceAligner) -> Iterator[TrackedFrame]:
    """Number the frames and find the face in each."""
    for index, frame in enumerate(frames):
        yield TrackedFrame(index, frame, align(frame))


def face_runs(frames: Iterable[TrackedFrame], num_frames: int) -> Iterator[list[TrackedFrame]]:
    """Group consecutive frames: lists of at most `num_frames` frames that all have a face and no cut between
    them, or lists of one frame without a face. The denoiser sees the former only."""
    run: list[TrackedFrame] = []
    for item in frames:
        if run and (item.face is None or item.face.starts or len(run) == num_frames):
            yield run
            run = []
        if item.face is None:
            yield [item]
        else:
            run.append(item)
    if run:
        yield run
