"""Tracks of everyone in a clip, for data processing.

Legend: T frames of a track, R working resolution.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from latentsync.faces.cuts import CutDetector
from latentsync.faces.detector import Face, FaceDetector, match_boxes
from latentsync.faces.smoothing import AnchorSmoother
from latentsync.faces.video import DETECTION_SIDE, align_face
from latentsync.media.frame import VideoFrame
from latentsync.utils.affine_transform import AlignRestore

SAME_PERSON = 0.3  # minimum IoU of one person's boxes in consecutive frames
MIN_TRACKED_FACE = 16  # pixels; smaller detections are ignored


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


class PeopleTracker:
    """Tracks all people in a clip. `most` is the maximum number of faces in any frame so far.

    Args:
        detector: face detector, reset at the start and after every cut.
        resolution: R.
        fps: frame rate of the clip.
        smooth: smooth the anchors with a One-Euro filter.
    """

    def __init__(self, detector: FaceDetector, resolution: int, fps: float = 25.0, smooth: bool = True):
        self.detector, self.resolution, self.fps, self.smooth = detector, resolution, fps, smooth
        self.most = 0
        self._count = 0
        self._active: list[_ActiveTrack] = []

    def tracks(self, frames: Iterable[VideoFrame]) -> Iterator[PersonTrack]:
        """Yield each track once it ends: when the person is lost, at a cut, or after the last frame."""
        self.detector.reset()
        cuts = CutDetector()
        for index, frame in enumerate(frames):
            image = frame.rgb(DETECTION_SIDE)
            if cuts.update(image):
                self.detector.reset()
                yield from self._end()
            faces = [face.scaled(frame.width / image.shape[1]) for face in self.detector.detect(image)]
            yield from self._update(index, frame, [face for face in faces if face.size.min() >= MIN_TRACKED_FACE])
        yield from self._end()

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
