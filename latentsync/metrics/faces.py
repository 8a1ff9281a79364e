"""Aligned faces of a video, for metrics: found as in inference, or the frames of a clip that is already aligned.

Legend: T frames at 25 frames/s, R side of an aligned face in pixels.
"""

from collections.abc import Generator, Iterator
from contextlib import closing
from fractions import Fraction
from itertools import islice

import cv2
import numpy as np

from latentsync.constants import FPS
from latentsync.faces.align import crop_size, template_anchors
from latentsync.faces.chunks import face_chunks
from latentsync.faces.detector import FaceDetector
from latentsync.faces.factory import create_detector
from latentsync.faces.video import AlignedFace, TrackedFrame, read_faces
from latentsync.media.frame import VideoFrame
from latentsync.media.probe import VideoInfo
from latentsync.media.timeline import Timeline, available_frames, open_timeline

ALIGNED_TOLERANCE = 0.05  # largest mean distance of an aligned clip's anchors from the template, as a share of the side
CHECKED_FRAMES, CHECK_INTERVAL = 5, 10
MAX_TRACK = 15000  # frames kept in memory, ten minutes; longer tracks are split


def square_template(resolution: int) -> np.ndarray:
    """Template anchors (3, 2) in an aligned face of R x R pixels."""
    width, height = crop_size(resolution)
    return template_anchors(resolution) * np.array([resolution / width, resolution / height])


def alignment_error(image: np.ndarray, detector: FaceDetector) -> float:
    """Mean distance of a face's anchors in an aligned face (R, R, 3) from the template, as a share of R; inf without a
    face.

    If several faces are found, the nearest one counts. `detector` is reset first.
    """
    detector.reset()
    side = image.shape[1]
    found = [np.linalg.norm(face.anchors - square_template(side), axis=-1).mean() for face in detector.detect(image)]
    return float(min(found, default=np.inf)) / side


def is_aligned_clip(info: VideoInfo) -> bool:
    """Whether a video shows an aligned face already, as clips of data processing do.

    Its frames are square with the anchors at the template's. Aligning it again would shrink and pad the face.
    """
    if info.width != info.height:
        return False
    with closing(create_detector("auto", static=True)) as detector, closing(clip_frames(info)) as frames:
        checked = islice(frames, 0, CHECKED_FRAMES * CHECK_INTERVAL, CHECK_INTERVAL)
        errors = [alignment_error(frame.rgb(), detector) for frame in checked]
    return bool(errors) and float(np.median(errors)) <= ALIGNED_TOLERANCE


def read_clip_faces(
    info: VideoInfo, resolution: int, face: str = "largest", num_frames: int | None = None
) -> Generator[TrackedFrame, None, None]:
    """Frames at 25 frames/s with the aligned face of one person. In an aligned clip, each frame is the face.

    Args:
        face: which face, see `latentsync.faces.video.track_faces`.
        num_frames: number of frames (default: all); a shorter video is played forward and backward, as in inference.

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
    """Resize a frame that is an aligned face."""
    image, (width, height) = frame.rgb(), crop_size(resolution)
    pixels = image
    if len(image) != resolution:
        shrinks = len(image) > resolution
        pixels = cv2.resize(
            image, (resolution, resolution), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
        )
    scales = np.array([width, height]) / len(image)
    return AlignedFace(pixels, np.column_stack([np.diag(scales), (scales - 1) / 2]), starts)


def aligned_tracks(info: VideoInfo, resolution: int, face: str = "largest") -> Iterator[tuple[int, np.ndarray]]:
    """Tracks of one person, in view without a cut or gap: index of the first frame, faces (T, R, R, 3) uint8."""
    with closing(read_clip_faces(info, resolution, face)) as frames:
        for track in face_chunks(frames, MAX_TRACK):
            faces = [item.face.pixels for item in track.frames if item.face is not None]
            if faces:
                yield track.frames[0].index, np.stack(faces)


def clip_frames(info: VideoInfo, num_frames: int | None = None) -> Timeline:
    """Frames at 25 frames/s; all by default."""
    count = available_frames(info, Fraction(FPS)) if num_frames is None else num_frames
    return open_timeline(info, Fraction(count, FPS), Fraction(FPS))
