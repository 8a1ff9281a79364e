"""Aligned faces of a video: detection, tracking and alignment behind one reader.

`read_faces` tracks one person in a video file, `track_faces` in any sequence of frames, and `track_people` several.

Legend: T frames, R working resolution.
"""

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from os import PathLike

import numpy as np

from latentsync.constants import FPS
from latentsync.faces.align import frame_to_square, resize_to_square, shift_source, source_box, warp_to_crop
from latentsync.faces.detector import FaceDetector
from latentsync.faces.factory import create_detector
from latentsync.faces.hands import HandFinder
from latentsync.faces.tracking import FaceTracker, Scene, SelectRule, TrackedFace
from latentsync.faces.visibility import (
    PROFILE,
    RETURNING,
    THUMBNAIL_SIDE,
    OcclusionCheck,
    Visibility,
    behind_hands,
    profile_opacity,
)
from latentsync.media.frame import VideoFrame
from latentsync.media.probe import VideoInfo, probe_video
from latentsync.media.timeline import available_frames, open_timeline
from latentsync.utils.affine_transform import AlignRestore

DETECTION_SIDE = 960  # longer side for detection; the anchors stay accurate to well below a pixel
DEFAULT_FPS = Fraction(FPS)
OUTSIDE = "the face is outside the frame"
NOT_SPEAKING = "nobody speaks"


@dataclass(frozen=True)
class AlignedFace:
    """A face warped to a square.

    Args:
        pixels: (R, R, 3) uint8.
        matrix: (2, 3), frame -> crop.
        starts: True in the first frame and after a cut, gap or jump.
        contour: (N, 2) polygon around the face, in pixels of the square; None if the detector provides none.
        opacity: of the generated face in the frame, above 0; below 1 in transitions, such as to a profile.
        keep_out: polygons (N, 2) in frame pixels in which no pixel may change: other people and hands.
    """

    pixels: np.ndarray
    matrix: np.ndarray
    starts: bool
    contour: np.ndarray | None = None
    opacity: float = 1.0
    keep_out: tuple[np.ndarray, ...] = ()


@dataclass(frozen=True)
class Sighting:
    """The selected person in a frame.

    Args:
        box: (4,) x0, y0, x1, y1 in frame pixels; None if the person was not found.
        score: confidence of the detector, 0..1.
        passed: why the frame is passed through unchanged; None if its face is replaced.
    """

    box: np.ndarray | None = None
    score: float = 0.0
    passed: str | None = None


@dataclass(frozen=True)
class TrackedFrame:
    """A frame with its index, the aligned face if it is to be replaced, and the appearance of the person."""

    index: int
    frame: VideoFrame
    face: AlignedFace | None
    seen: Sighting = Sighting()


@dataclass(frozen=True)
class Selection:
    """A person to track.

    Args:
        face: the selection of the face, see `FaceTracker`.
        weights: (T,) share of the generated face in each frame, 0 to 1; where it is 0, the face is not looked for.
    """

    face: str | SelectRule
    weights: np.ndarray


def read_faces(
    video: str | PathLike | VideoInfo,
    resolution: int,
    *,
    fps: Fraction = DEFAULT_FPS,
    duration: Fraction | None = None,
    on_short: str = "bounce",
    face: str = "largest",
    detector: str | FaceDetector = "auto",
    device: str = "cpu",
) -> Generator[TrackedFrame, None, None]:
    """Read a video file and yield every frame with the aligned face of one person, in constant memory.

    Args:
        video: path, or the result of `probe_video`.
        resolution: R, side of the aligned faces in pixels.
        fps: frame rate to resample to.
        duration: seconds to read, by default the whole video. May exceed its length; see `on_short`.
        on_short: bounce, loop, freeze or error; how to handle a video shorter than `duration`, see `open_timeline`.
        face, detector, device: see `track_faces`.

    Closing the generator releases the file, and the detector if it was created here.

    Raises:
        UserError: unreadable video, unknown option or missing models; raised on the first frame.
    """
    info = video if isinstance(video, VideoInfo) else probe_video(video)
    fps = Fraction(fps)
    if duration is None:
        duration = available_frames(info, fps) / fps
    with closing(open_timeline(info, duration, fps, on_short)) as frames:
        tracked = track_faces(
            frames, resolution, fps=fps, face=face, detector=detector, device=device, is_still=info.is_still
        )
        with closing(tracked):
            yield from tracked


def track_faces(
    frames: Iterable[VideoFrame],
    resolution: int,
    *,
    fps: Fraction = DEFAULT_FPS,
    face: str = "largest",
    min_face: float | None = None,
    detector: str | FaceDetector = "auto",
    device: str = "cpu",
    is_still: bool = False,
) -> Generator[TrackedFrame, None, None]:
    """Yield frames with the aligned face of one person.

    Args:
        frames: consecutive frames of one clip, at `fps`.
        resolution: R.
        face: face to track: largest, left, right, an index from the left, or x,y in frame pixels.
        min_face: minimum height of the face in frame pixels; see `FaceTracker`.
        detector: name passed to `create_detector`, or a detector, which is reset first and not closed.
        device: device of a detector created here.
        is_still: whether all frames are the same image.

    Raises:
        UserError: unknown option or missing models; raised on the first frame.
    """
    with ExitStack() as stack:
        if isinstance(detector, str):
            detector = stack.enter_context(closing(create_detector(detector, device, static=is_still)))
        else:
            detector.reset()
        tracker = FaceTracker(detector, face, fps=float(fps), min_face=min_face)
        yield from align_frames(frames, FaceAligner(tracker, AlignRestore(resolution=resolution)))


def track_people(
    frames: Iterable[VideoFrame],
    resolution: int,
    selections: Sequence[Selection],
    *,
    fps: Fraction = DEFAULT_FPS,
    min_face: float | None = None,
    detector: str = "auto",
    device: str = "cpu",
    is_still: bool = False,
    keep_hands: bool = False,
) -> Generator[tuple[TrackedFrame, ...], None, None]:
    """Yield, for each frame, the aligned faces of several people; a frame in which nobody is wanted is not examined.

    Args:
        frames, resolution, fps, min_face, detector, device, is_still: see `track_faces`.
        keep_hands: keep the pixels of hands in front of a face.
        selections: one for each person. A face is selected again when a person is wanted after frames without it.

    Raises:
        UserError: as of `track_faces`.
    """
    with ExitStack() as stack:
        scene = Scene(stack.enter_context(closing(create_detector(detector, device, static=is_still))))
        trackers = [FaceTracker(scene, each.face, fps=float(fps), min_face=min_face) for each in selections]
        hands = [stack.enter_context(closing(HandFinder())) if keep_hands else None for _ in trackers]
        aligners = [
            FaceAligner(tracker, AlignRestore(resolution=resolution), finder)
            for tracker, finder in zip(trackers, hands, strict=True)
        ]
        last: VideoFrame | None = None
        for index, frame in enumerate(frames):
            weights = [float(selection.weights[index]) for selection in selections]
            image = None
            if any(weights) and frame is not last:
                image = frame.rgb(DETECTION_SIDE)
                scene.look(image, frame.width / image.shape[1])
                last = frame
            people = [TrackedFrame(index, frame, None, Sighting(passed=NOT_SPEAKING))] * len(aligners)
            # Those who are followed already come first, so that nobody is selected twice.
            for number in sorted(range(len(aligners)), key=lambda number: not trackers[number].has_person):
                if not weights[number]:
                    aligners[number].forget()
                    continue
                found = aligners[number](index, frame, image)
                face = found.face and replace(found.face, opacity=weights[number] * found.face.opacity)
                people[number] = replace(found, face=face)
            yield tuple(people)


class FaceAligner:
    """Tracks and aligns one person's face in consecutive frames of a clip. `hands` finds those in front of it."""

    def __init__(self, tracker: FaceTracker, aligner: AlignRestore, hands: HandFinder | None = None):
        self.tracker, self.aligner, self._hands = tracker, aligner, hands
        self._occlusion = OcclusionCheck()
        self._was_hidden = False
        self._last: TrackedFrame | None = None

    def __call__(self, index: int, frame: VideoFrame, image: np.ndarray | None = None) -> TrackedFrame:
        """The next frame. `image`: `frame.rgb(DETECTION_SIDE)`, if it is at hand."""
        last = self._last
        if last is not None and last.frame is frame:  # still image or frozen frame
            return TrackedFrame(index, frame, last.face and replace(last.face, starts=False), last.seen)
        self._last = TrackedFrame(
            index, frame, *self._find(frame, frame.rgb(DETECTION_SIDE) if image is None else image)
        )
        return self._last

    def forget(self) -> None:
        """Forget the person; the next frame selects one again."""
        self._last, self._was_hidden = None, False
        self.tracker.drop_person()

    def _find(self, frame: VideoFrame, image: np.ndarray) -> tuple[AlignedFace | None, Sighting]:
        tracked = self.tracker.update(image, scale=frame.width / image.shape[1])
        if tracked is None:
            return None, Sighting(passed=self.tracker.missing)
        if tracked.is_cut:
            self.aligner.reset()
        if tracked.is_new:
            self._occlusion.reset()
            self._was_hidden = False
            if self._hands is not None:
                self._hands.reset()
        aligned = align_face(frame, tracked.anchors, self.aligner, tracked.is_cut, tracked.face.contour)
        if aligned is None:
            return None, Sighting(tracked.box, tracked.face.score, OUTSIDE)
        visible = self._visibility(tracked, aligned, frame, image)
        face = replace(aligned, opacity=visible.opacity, keep_out=visible.keep_out) if visible.opacity else None
        return face, Sighting(tracked.box, tracked.face.score, None if face else visible.reason)

    def _visibility(
        self, tracked: TrackedFace, aligned: AlignedFace, frame: VideoFrame, image: np.ndarray
    ) -> Visibility:
        if not (opacity := profile_opacity(tracked.anchors)):
            return Visibility(0.0, reason=PROFILE)
        place = partial(frame_to_square, matrix=aligned.matrix, size=self.aligner.face_size, resolution=THUMBNAIL_SIDE)
        visible = self._occlusion.update(aligned.pixels, tracked.face, tracked.others, place)
        if self._hands is not None:
            scale = frame.width / image.shape[1]
            hands = self._hands.find(image, tracked.face.scaled(1 / scale))
            visible = behind_hands(visible, tuple(hand * scale for hand in hands), place)
        returning, self._was_hidden = self._was_hidden and visible.opacity > 0, visible.opacity == 0
        return replace(visible, opacity=opacity * visible.opacity * (RETURNING if returning else 1))


def align_face(
    frame: VideoFrame,
    anchors: np.ndarray,
    aligner: AlignRestore,
    starts: bool = False,
    contour: np.ndarray | None = None,
) -> AlignedFace | None:
    """Align the face with anchors (3, 2) and contour (N, 2) in frame pixels; None if its crop is outside the frame."""
    matrix = aligner.estimate(anchors)
    box = source_box(matrix, aligner.face_size, (frame.height, frame.width))
    if box[2] == box[0]:
        return None
    crop = warp_to_crop(frame.crop_rgb(*box), shift_source(matrix, box[0], box[1]), aligner.face_size)
    if contour is not None:
        contour = frame_to_square(contour, matrix, aligner.face_size, aligner.resolution)
    return AlignedFace(resize_to_square(crop, aligner.resolution), matrix, starts, contour)


def align_frames(frames: Iterable[VideoFrame], align: FaceAligner) -> Iterator[TrackedFrame]:
    """Number the frames and align the face in each."""
    for index, frame in enumerate(frames):
        yield align(index, frame)
