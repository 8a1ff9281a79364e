"""The people in a video: who is seen when, across shots. Letters: T sampled frames."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import cv2
import numpy as np

from latentsync.constants import FPS
from latentsync.faces.appearance import Appearance, appearance
from latentsync.faces.cuts import CutDetector
from latentsync.faces.detector import Face, FaceDetector, match_boxes
from latentsync.faces.smoothing import AnchorSmoother
from latentsync.faces.video import DETECTION_SIDE, align_face
from latentsync.media.frame import VideoFrame
from latentsync.utils.affine_transform import AlignRestore

SAME_TRACK = 0.2  # intersection over union of boxes in consecutive samples
SAME_PERSON = 0.5  # appearance distance of two tracks of one person, at most
GALLERY = 12  # appearances kept of a track
SHORTEST_TRACK = 3  # samples; shorter ones are mostly false detections
NEW_VIEW = 0.12  # appearance distance from the gallery beyond which a view is added to it
LARGER = 1.1  # a portrait is replaced by one so many times as large
MIN_FACE = 32  # pixels
PORTRAIT_SIDE = 160  # pixels


@dataclass(frozen=True)
class Sighting:
    """A face at a time: seconds, and box (x0, y0, x1, y1) in pixels of the frame."""

    time: Fraction
    box: np.ndarray


@dataclass
class Track:
    """One person without a cut: sightings in order, some appearances, and the largest portrait (S, S, 3) uint8 RGB.

    faces: aligned faces (R, R, 3) uint8 of the first sightings, if they are kept.
    """

    sightings: list[Sighting] = field(default_factory=list)
    gallery: list[Appearance] = field(default_factory=list)
    portrait: np.ndarray | None = None
    size: float = 0.0
    faces: list[np.ndarray] = field(default_factory=list)
    aligner: AlignRestore | None = None
    smoother: AnchorSmoother | None = None

    def overlaps(self, other: "Track") -> bool:
        return self.sightings[0].time <= other.sightings[-1].time and other.sightings[0].time <= self.sightings[-1].time

    def distance(self, other: "Track") -> float:
        return float(np.median([nearest(self.gallery, view) for view in other.gallery]))


@dataclass
class Person:
    """A person, with a number from 1 in order of appearance."""

    number: int
    tracks: list[Track]

    @property
    def name(self) -> str:
        """The value of the option `face` that selects this person."""
        return f"person{self.number}"

    @property
    def sightings(self) -> list[Sighting]:
        return [sighting for track in self.tracks for sighting in track.sightings]

    @property
    def gallery(self) -> list[Appearance]:
        return [view for track in self.tracks for view in track.gallery]

    @property
    def portrait(self) -> np.ndarray:
        """(160, 160, 3) uint8 RGB, from where the face is largest."""
        best = max(self.tracks, key=lambda track: track.size)
        assert best.portrait is not None
        return best.portrait


class PeopleFinder:
    """Collects the tracks of everyone in sampled frames of a video.

    Args:
        detector: examines the samples.
        resolution: R of the aligned faces to keep; None to keep none.
        most: number of faces to keep of a track.
        fps: samples per second.
    """

    def __init__(
        self, detector: FaceDetector, resolution: int | None = None, most: int = 0, fps: Fraction = Fraction(FPS)
    ) -> None:
        self._detector, self._cuts = detector, CutDetector()
        self._resolution, self._most, self._fps = resolution, most, fps
        self._samples = 0
        self._open: list[Track] = []
        self._done: list[Track] = []

    def add(self, time: Fraction, frame: VideoFrame) -> None:
        """Add the next sample, shown at `time` (seconds)."""
        self._samples += 1
        image = frame.rgb(DETECTION_SIDE)
        scale = frame.width / image.shape[1]
        if self._cuts.update(image):
            self._detector.reset()
            self._end()
        faces = [face for face in self._detector.detect(image) if scale * face.size.min() >= MIN_FACE]
        kept: list[Track] = []
        found = match_boxes([track.sightings[-1].box / scale for track in self._open], faces, SAME_TRACK)
        for track, face in zip(self._open, found, strict=True):
            if face is None:
                self._done.append(track)
            else:
                self._extend(track, time, frame, image, face)
                kept.append(track)
        for face in faces:
            if any(face is other for other in found):
                continue
            kept.append(Track())
            self._extend(kept[-1], time, frame, image, face)
        self._open = kept

    def people(self) -> list[Person]:
        """Everyone seen so far, in order of first appearance."""
        self._end()
        shortest = min(SHORTEST_TRACK, self._samples)
        tracks = [track for track in self._done if len(track.sightings) >= shortest]
        groups: list[list[Track]] = []
        for track in sorted(tracks, key=lambda track: -len(track.sightings)):
            fits = [group for group in groups if not any(track.overlaps(other) for other in group)]
            best = min(fits, key=lambda group: min(other.distance(track) for other in group), default=None)
            if best is not None and min(other.distance(track) for other in best) <= SAME_PERSON:
                best.append(track)
            else:
                groups.append([track])
        for group in groups:
            group.sort(key=lambda track: track.sightings[0].time)
        groups.sort(key=lambda group: (group[0].sightings[0].time, group[0].sightings[0].box[0]))
        return [Person(number + 1, group) for number, group in enumerate(groups)]

    def _extend(self, track: Track, time: Fraction, frame: VideoFrame, image: np.ndarray, face: Face) -> None:
        """Add a face in `image`, a copy of the frame that may be smaller."""
        whole = face.scaled(frame.width / image.shape[1])
        track.sightings.append(Sighting(time, whole.box))
        view = appearance(image, face.anchors)
        if len(track.gallery) < GALLERY and nearest(track.gallery, view) > NEW_VIEW:
            track.gallery.append(view)
        size = float(whole.size.max())
        if size > LARGER * track.size:
            track.size, track.portrait = size, _portrait(image, face)
        if self._resolution is not None and len(track.faces) == len(track.sightings) - 1 < self._most:
            self._keep(track, frame, whole, self._resolution)

    def _keep(self, track: Track, frame: VideoFrame, face: Face, resolution: int) -> None:
        if track.aligner is None or track.smoother is None:
            track.aligner, track.smoother = AlignRestore(resolution=resolution), AnchorSmoother(float(self._fps))
        aligned = align_face(frame, track.smoother(face.anchors), track.aligner)
        if aligned is not None:
            track.faces.append(aligned.pixels)

    def _end(self) -> None:
        self._done += self._open
        self._open = []


def nearest(gallery: Sequence[Appearance], view: Appearance) -> float:
    """Distance of an appearance from the most similar one in a gallery."""
    return min((known.distance(view) for known in gallery), default=float("inf"))


def _portrait(image: np.ndarray, face: Face) -> np.ndarray:
    """A square around a face, 1.5 times its size, within the image."""
    side = min(round(1.5 * float(face.size.max())), *image.shape[:2])
    x, y = (int(round(float(value))) - side // 2 for value in face.center)
    x, y = min(max(x, 0), image.shape[1] - side), min(max(y, 0), image.shape[0] - side)
    return cv2.resize(image[y : y + side, x : x + side], (PORTRAIT_SIDE, PORTRAIT_SIDE), interpolation=cv2.INTER_AREA)
