"""Tracks of everyone in a clip, for data processing.

Legend: T frames of a track, R working resolution.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np

from latentsync.constants import FPS
from latentsync.faces.cuts import CutDetector
from latentsync.faces.detector import BatchDetector, Face, FaceDetector, match_boxes
from latentsync.faces.smoothing import AnchorSmoother
from latentsync.faces.video import DETECTION_SIDE, OUTSIDE, align_face
from latentsync.media.frame import VideoFrame
from latentsync.utils.affine_transform import AlignRestore

SAME_PERSON = 0.3  # minimum IoU of one person's boxes in consecutive frames
MIN_TRACKED_FACE = 16  # pixels; smaller detections are ignored
NO_FACE = "no face in view"
SMALL = "faces too small to track"


@dataclass
class PersonTrack:
    """A track of one person without gaps or cuts. Lists have one entry per frame.

    Args:
        person: track number, in order of first appearance.
        start: index of the first frame.
        pixels: aligned faces (R, R, 3) uint8.
        boxes: (4,) x0, y0, x1, y1 in frame pixels.
        anchors: (3, 2), as detected, without smoothing.
    """

    person: int
    start: int
    pixels: list[np.ndarray] = field(default_factory=list)
    boxes: list[np.ndarray] = field(default_factory=list)
    anchors: list[np.ndarray] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def widths(self) -> np.ndarray:
        """(T,) width of the face in frame pixels."""
        boxes = np.stack(self.boxes)
        return boxes[:, 2] - boxes[:, 0]

    @property
    def jitter(self) -> float:
        """Mean norm of the second differences of the anchors, relative to the brow distance."""
        if len(self.anchors) < 3:
            return 0.0
        anchors = np.stack(self.anchors)
        brows = np.linalg.norm(anchors[:, 1] - anchors[:, 0], axis=-1).mean()
        return float(np.linalg.norm(np.diff(anchors, n=2, axis=0), axis=-1).mean() / max(brows, 1e-6))


@dataclass
class Gap:
    """Consecutive frames in which nobody could be tracked: index of the first, number, and why."""

    start: int
    length: int
    reason: str


class PeopleTracker:
    """Tracks all people in a clip. `most` is the maximum number of faces in any frame so far, `gaps` has the frames
    that belong to no track.

    Args:
        detector: face detector, reset at the start and after every cut.
        resolution: R.
        fps: frame rate of the clip.
        smooth: smooth the anchors with a One-Euro filter.
    """

    def __init__(self, detector: FaceDetector, resolution: int, fps: float = FPS, smooth: bool = True):
        self.detector, self.resolution, self.fps, self.smooth = detector, resolution, fps, smooth
        self.most = 0
        self.gaps: list[Gap] = []
        self._count = 0
        self._active: list[_ActiveTrack] = []

    def tracks(self, frames: Iterable[VideoFrame]) -> Iterator[PersonTrack]:
        """Yield each track once it ends: when the person is lost, at a cut, or after the last frame."""
        self.detector.reset()
        cuts = CutDetector()
        for index, (frame, image, found) in enumerate(_detected(frames, self.detector)):
            if cuts.update(image):
                self.detector.reset()
                yield from self._end()
            found = self.detector.detect(image) if found is None else found
            seen = [face.scaled(frame.width / image.shape[1]) for face in found]
            faces = [face for face in seen if face.size.min() >= MIN_TRACKED_FACE]
            yield from self._update(index, frame, faces)
            if not self._active:
                self._add_gap(index, OUTSIDE if faces else SMALL if seen else NO_FACE)
        yield from self._end()

    def _add_gap(self, index: int, reason: str) -> None:
        last = self.gaps[-1] if self.gaps else None
        if last is not None and last.reason == reason and last.start + last.length == index:
            last.length += 1
        else:
            self.gaps.append(Gap(index, 1, reason))

    def _update(self, index: int, frame: VideoFrame, faces: Sequence[Face]) -> list[PersonTrack]:
        """Match the detections of one frame to the tracks, longest first; returns the tracks that ended."""
        self.most = max(self.most, len(faces))
        unmatched, kept, ended = list(faces), [], []
        tracks = sorted(self._active, key=lambda track: -len(track.person))
        found = match_boxes([track.box for track in tracks], faces, SAME_PERSON)
        for track, face in zip(tracks, found, strict=True):
            if face is not None and track.extend(frame, face):
                unmatched = [other for other in unmatched if other is not face]
                kept.append(track)
            else:
                ended.append(track.person)
        self._active = kept
        for face in unmatched:
            self._start(index, frame, face)
        return ended

    def _start(self, index: int, frame: VideoFrame, face: Face) -> None:
        smoother = AnchorSmoother(self.fps) if self.smooth else None
        track = _ActiveTrack(PersonTrack(self._count, index), AlignRestore(resolution=self.resolution), smoother)
        if track.extend(frame, face):
            self._count += 1
            self._active.append(track)

    def _end(self) -> list[PersonTrack]:
        ended, self._active = [track.person for track in self._active], []
        return ended


def _detected(
    frames: Iterable[VideoFrame], detector: FaceDetector
) -> Iterator[tuple[VideoFrame, np.ndarray, list[Face] | None]]:
    """Each frame with its reduced image, and with its faces if the detector takes the next frames at once."""
    if not isinstance(detector, BatchDetector):
        yield from ((frame, frame.rgb(DETECTION_SIDE), None) for frame in frames)
        return
    frames = iter(frames)
    while batch := list(islice(frames, detector.batch_size)):
        images = [frame.rgb(DETECTION_SIDE) for frame in batch]
        yield from zip(batch, images, detector.detect_batch(images), strict=True)


@dataclass
class _ActiveTrack:
    """An unfinished track with the state of its smoothing and alignment."""

    person: PersonTrack
    aligner: AlignRestore
    smoother: AnchorSmoother | None

    @property
    def box(self) -> np.ndarray:
        return self.person.boxes[-1]

    def extend(self, frame: VideoFrame, face: Face) -> bool:
        """Append a frame; returns False if the face is outside the frame."""
        anchors = face.anchors if self.smoother is None else self.smoother(face.anchors)
        aligned = align_face(frame, anchors, self.aligner)
        if aligned is None:
            return False
        self.person.pixels.append(aligned.pixels)
        self.person.boxes.append(face.box)
        self.person.anchors.append(face.anchors)
        return True
