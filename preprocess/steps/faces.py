"""Step 5: the faces of a segment, each person followed and cut out upright at the training resolution.

Legend: T frames, R side of an aligned face. Only the aligned faces are kept in memory, never the frames.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np

from latentsync.constants import FPS
from latentsync.faces.cuts import CutDetector
from latentsync.faces.detector import Face, overlap
from latentsync.faces.smoothing import AnchorSmoother
from latentsync.media.frame import VideoFrame
from latentsync.pipelines.face_stream import DETECTION_SIDE, FaceAligner
from latentsync.utils.affine_transform import AlignRestore
from preprocess.clip import Clip, Segment
from preprocess.settings import ProcessSettings
from preprocess.tools import Tools

STEP = "faces"
SAME_FACE = 0.3  # intersection over union of a person's boxes in neighbouring frames
SMALLEST = 16  # pixels: what is smaller is no face to train on, and not counted


def faces(segment: Segment, settings: ProcessSettings, tools: Tools) -> list[Clip]:
    """One clip for each stretch in which a person is in sight without a gap or a cut; reads the segment to its end.

    A segment without any face gives one dropped clip, so that its fate is told. Figures: `faces` (most people seen at
    once), `face_size` (mean width in pixels of the source), `jitter` (mean second difference of the anchors before
    smoothing, as a share of the brow distance).
    """
    crowd = _Crowd(settings)
    detector = tools.still_detector if segment.is_still else tools.detector
    detector.reset()
    cuts = CutDetector()
    for index, frame in enumerate(segment):
        image = frame.rgb(DETECTION_SIDE)
        if cuts.update(image):
            detector.reset()
            crowd.end_all()
        found = [face.scaled(frame.width / image.shape[1]) for face in detector.detect(image)]
        crowd.see(index, frame, [face for face in found if face.size.min() >= SMALLEST])
    crowd.end_all()
    if not crowd.done:
        return [_dropped(segment, "no face in sight")]
    needed = 1 if segment.is_still else settings.min_frames
    return _choose([_clip(person, segment, crowd.most) for person in crowd.done], crowd, settings, needed)


@dataclass
class _Person:
    """Somebody in sight from frame `start` on."""

    number: int
    start: int
    cut_out: FaceAligner
    smoother: AnchorSmoother | None
    box: np.ndarray
    crops: list[np.ndarray] = field(default_factory=list)
    widths: list[float] = field(default_factory=list)
    anchors: list[np.ndarray] = field(default_factory=list)

    def see(self, frame: VideoFrame, face: Face) -> bool:
        """Add a frame; False when the face lies outside it."""
        anchors = face.anchors if self.smoother is None else self.smoother(face.anchors)
        aligned = self.cut_out.cut_out(frame, anchors, starts=False)
        if aligned is None:
            return False
        self.box = face.box
        self.crops.append(aligned.pixels)
        self.widths.append(float(face.size[0]))
        self.anchors.append(face.anchors)
        return True

    @property
    def area(self) -> float:
        """Frames times pixels: who is in the picture most."""
        return float(np.sum(np.square(self.widths)))

    @property
    def jitter(self) -> float:
        if len(self.anchors) < 3:
            return 0.0
        anchors = np.stack(self.anchors)
        brows = np.linalg.norm(anchors[:, 1] - anchors[:, 0], axis=-1).mean()
        return float(np.linalg.norm(np.diff(anchors, n=2, axis=0), axis=-1).mean() / max(brows, 1e-6))


class _Crowd:
    """Everybody in a segment."""

    def __init__(self, settings: ProcessSettings) -> None:
        self._settings = settings
        self.present: list[_Person] = []
        self.done: list[_Person] = []
        self.most = 0
        self._number = 0

    def see(self, index: int, frame: VideoFrame, found: Sequence[Face]) -> None:
        """The next frame: who is seen again goes on, who is not ends, who is new begins."""
        self.most = max(self.most, len(found))
        left = list(found)
        staying = []
        for person in sorted(self.present, key=lambda person: -len(person.crops)):
            face = max(left, key=lambda face: overlap(person.box, face.box), default=None)
            if face is not None and overlap(person.box, face.box) >= SAME_FACE and person.see(frame, face):
                left.remove(face)
                staying.append(person)
            else:
                self.done.append(person)
        self.present = staying + [person for face in left if (person := self._new(index, frame, face)) is not None]

    def end_all(self) -> None:
        self.done += self.present
        self.present = []

    def _new(self, index: int, frame: VideoFrame, face: Face) -> _Person | None:
        aligner = FaceAligner(None, AlignRestore(resolution=self._settings.resolution))
        smoother = AnchorSmoother(FPS) if self._settings.smooth else None
        person = _Person(self._number, index, aligner, smoother, face.box)
        if not person.see(frame, face):
            return None
        self._number += 1
        return person


def _clip(person: _Person, segment: Segment, most: int) -> Clip:
    count = len(person.crops)
    figures = {
        "faces": most,
        "face_size": round(float(np.mean(person.widths)), 1),
        "jitter": round(person.jitter, 5),
    }
    start = segment.start + Fraction(person.start, FPS)
    wave = segment.sound(count, person.start)
    return Clip(segment.source, segment.index, person.number, start, np.stack(person.crops), wave, figures)


def _choose(clips: list[Clip], crowd: _Crowd, settings: ProcessSettings, needed: int) -> list[Clip]:
    """Clips in order of the person; those shorter than `needed` or that the settings do not want are dropped."""
    largest = max(crowd.done, key=lambda person: person.area).number
    chosen = []
    for clip in sorted(clips, key=lambda clip: clip.person):
        if clip.num_frames < needed:
            clip = clip.dropped(STEP, f"a face in sight for {clip.num_frames} frames, {needed} are needed")
        elif settings.many_faces == "drop" and crowd.most > 1:
            clip = clip.dropped(STEP, f"{crowd.most} faces at once")
        elif settings.many_faces == "largest" and clip.person != largest:
            clip = clip.dropped(STEP, "not the largest face")
        chosen.append(clip)
    return chosen


def _dropped(segment: Segment, reason: str) -> Clip:
    clip = Clip(segment.source, segment.index, 0, segment.start, None, None, {"faces": 0}, length=segment.num_frames)
    return clip.dropped(STEP, reason)
