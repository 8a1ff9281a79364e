"""Aligned faces of a video, for metrics: those that inference would find, or the frames of a clip aligned before.

Legend: T frames at 25 frames/s, R side of an aligned face in pixels.
"""

from collections.abc import Iterator
from contextlib import closing
from fractions import Fraction
from itertools import islice

import cv2
import numpy as np

from latentsync.faces.align import crop_size, template_anchors
from latentsync.faces.detector import FaceDetector
from latentsync.faces.factory import create_detector
from latentsync.faces.video import AlignedFace, TrackedFrame, face_runs, read_faces
from latentsync.media.frame import VideoFrame
from latentsync.media.probe import VideoInfo
from latentsync.media.timeline import Timeline, available_frames, open_timeline

FPS = 25
ALIGNED_TOLERANCE = 0.05  # of the side: how far the anchors of an aligned clip may be from the template's
CHECKED_FRAMES, CHECK_INTERVAL = 5, 10
MAX_RUN = 15000  # frames of one face kept in memory: ten minutes


def square_template(resolution: int) -> np.ndarray:
    """Anchors (3, 2) of an aligned face: those of the crop, resized to R x R as the crop is."""
    width, height = crop_size(resolution)
    return template_anchors(resolution) * np.array([resolution / width, resolution / height])


def alignment_error(image: np.ndarray, detector: FaceDetector) -> float:
    """Mean distance of the anchors from the template in an aligned face (R, R, 3), as a share of R; inf without a face.

    Of several faces the nearest counts. `detector` is reset first.
    """
    detector.reset()
    side = image.shape[1]
    found = [np.linalg.norm(face.anchors - square_template(side), axis=-1).mean() for face in detector.detect(image)]
    return float(min(found, default=np.inf)) / side


def is_aligned_clip(info: VideoInfo) -> bool:
    """Whether a video already shows an aligned face, as data processing writes it.

    Such a clip has square frames with the anchors in their places. Aligning it again would shrink and pad the face.
    """
    if info.width != info.height:
        return False
    with closing(create_detector("auto", static=True)) as detector, closing(clip_frames(info)) as frames:
        checked = islice(frames, 0, CHECKED_FRAMES * CHECK_INTERVAL, CHECK_INTERVAL)
        errors = [alignment_error(frame.rgb(), detector) for frame in checked]
    return bool(errors) and float(np.median(errors)) <= ALIGNED_TOLERANCE


def read_clip_faces(
    info: VideoInfo, resolution: int, face: str = "largest", num_frames: int | None = None
) -> Iterator[TrackedFrame]:
    """Frames at 25 frames/s with the aligned face of one person; an aligned clip's faces are its frames.

    Args:
        face: which person, see `latentsync.faces.video.track_faces`.
        num_frames: how many; a shorter video is played forward and backward, as inference does. All by default.

    Raises:
        UserError: the video cannot be read.
    """
    if is_aligned_clip(info):
        with closing(clip_frames(info, num_frames)) as frames:
            for index, frame in enumerate(frames):
                yield TrackedFrame(index, frame, whole_frame(frame, resolution, starts=index == 0))
        return
    duration = None if num_frames is None else Fraction(num_frames, FPS)
    with closing(read_faces(info, resolution, duration=duration, face=face)) as frames:
        yield from frames


def whole_frame(frame: VideoFrame, resolution: int, starts: bool = False) -> AlignedFace:
    """A frame that is an aligned face, at another resolution."""
    image, (width, height) = frame.rgb(), crop_size(resolution)
    pixels = image
    if len(image) != resolution:
        shrinks = len(image) > resolution
        pixels = cv2.resize(
            image, (resolution, resolution), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
        )
    scales = np.array([width, height]) / len(image)
    return AlignedFace(pixels, np.column_stack([np.diag(scales), (scales - 1) / 2]), starts)


def aligned_runs(info: VideoInfo, resolution: int, face: str = "largest") -> Iterator[tuple[int, np.ndarray]]:
    """Runs in which one person is in view without a cut: index of the first frame, faces (T, R, R, 3) uint8."""
    with closing(read_clip_faces(info, resolution, face)) as frames:
        for run in face_runs(frames, MAX_RUN):
            if run[0].face is not None:
                yield run[0].index, np.stack([item.face.pixels for item in run])


def clip_frames(info: VideoInfo, num_frames: int | None = None) -> Timeline:
    """Frames at 25 frames/s; all by default."""
    count = available_frames(info, Fraction(FPS)) if num_frames is None else num_frames
    return open_timeline(info, Fraction(count, FPS), Fraction(FPS))
