"""One person followed through a clip: selection, continuity, gaps, shot cuts, smoothing."""

import math
from dataclasses import dataclass

import numpy as np

from latentsync.constants import FPS
from latentsync.faces.appearance import Appearance, appearance
from latentsync.faces.cuts import CutDetector
from latentsync.faces.detector import Face, FaceDetector
from latentsync.faces.smoothing import AnchorSmoother
from latentsync.utils.errors import UserError

# Smallest face that is edited, full-frame pixels; in pictures that are small themselves a share of their short side.
MIN_FACE_SIZE = (50.0, 80.0)
MIN_FACE_SHARE = (0.12, 0.19)
KEEP_SHARE = 0.8  # of that size down to which a followed face is kept: one that hovers about it must not flicker

MAX_STEP = 0.6  # face lengths the center may move between two frames
MAX_STEP_PER_GAP_FRAME = 0.1  # and this much more for each frame without the face
MAX_LOG_GROWTH = 0.4  # |log| of the change in size between two frames
SAME_PERSON = 0.6  # appearance distance
LOOKS_WEIGHT = 0.5  # face lengths that an appearance distance of 1 weighs
NO_MATCH = 1.5  # cost of a person being out of sight
UNREACHABLE = 1e6
SHORT_GAP = 5  # frames
APPEARANCE_SHARE = 0.1  # weight of a new look at the face in its remembered appearance
APPEARANCE_EVERY = 5  # frames between such looks
FORGET_AFTER_SECONDS = 2.0  # then the person counts as gone and the rule chooses anew
RESTART_STEP = 0.5  # brow distances: a jump this large restarts the smoothing instead of being drawn out


@dataclass(frozen=True)
class TrackedFace:
    """The followed person in one frame, full-frame pixels."""

    box: np.ndarray  # (4,) x0, y0, x1, y1
    anchors: np.ndarray  # (3, 2), smoothed
    is_cut: bool  # smoothing starts anew here: first frame, shot cut, after a gap, after a jump
    contour: np.ndarray | None = None  # (N, 2) polygon around the face, where the detector gives one


@dataclass(frozen=True)
class SelectRule:
    """Which face to follow: "largest", "left", "right", "index" (from the left, 0 first) or "point" (x, y)."""

    kind: str
    index: int = 0
    point: tuple[float, float] = (0.0, 0.0)

    @classmethod
    def parse(cls, text: str) -> "SelectRule":
        """From largest | left | right | N | x,y; UserError for anything else."""
        text = str(text).strip().lower()
        if text in ("largest", "left", "right"):
            return cls(text)
        if text.isascii() and text.isdigit():
            return cls("index", index=int(text))
        parts = text.split(",")
        try:
            x, y = (float(part) for part in parts)
        except ValueError:
            x = y = math.nan
        if not (math.isfinite(x) and math.isfinite(y)):
            raise UserError(
                f"face selection {text!r} is not understood: give largest, left, right, a number N (0 is the leftmost "
                "face) or x,y in pixels of the video"
            )
        return cls("point", point=(x, y))

    def choose(self, faces: list[Face]) -> Face | None:
        """The face the rule means; None when there is none, or fewer faces than the number asks for."""
        if not faces:
            return None
        if self.kind == "largest":
            return max(faces, key=_area)
        if self.kind == "point":
            return min(faces, key=lambda face: (not _contains(face, self.point), _distance_to(face, self.point)))
        ordered = sorted(faces, key=lambda face: float(face.center[0]))
        if self.kind == "index":
            return ordered[self.index] if self.index < len(ordered) else None
        return ordered[0 if self.kind == "left" else -1]


class _Looks:
    """Appearances of one frame's faces, computed on demand: most frames need none."""

    def __init__(self, image: np.ndarray, scale: float):
        self._image = image
        self._scale = scale
        self._known: dict[int, Appearance] = {}

    def of(self, face: Face) -> Appearance:
        if id(face) not in self._known:
            self._known[id(face)] = appearance(self._image, face.anchors / self._scale)
        return self._known[id(face)]


class FaceTracker:
    """Follows one person through the frames of one clip.

    The rule chooses when a person is acquired: at the start, after a shot cut, and when the person has been out of
    sight for `FORGET_AFTER_SECONDS`. In between the choice holds, whatever the faces' sizes do. A frame without a
    detection gives None; nothing is made up for it.

    Args:
        detector: finds the faces; its temporal state is reset with the tracker's.
        select: largest | left | right | N | x,y (a point in full-frame pixels).
        smooth: filter the anchors (One-Euro).
        fps: frames per second of the sequence.

    Raises:
        UserError: `select` is not understood.
    """

    def __init__(self, detector: FaceDetector, select: str = "largest", smooth: bool = True, fps: float = FPS):
        self._rule = SelectRule.parse(select)
        self._detector = detector
        self._smooth = smooth
        self._smoother = AnchorSmoother(fps)
        self._forget_after = max(1, round(FORGET_AFTER_SECONDS * fps))
        self._cuts = CutDetector()
        self._forget_person()

    def reset(self) -> None:
        """Forget everything: the next frame starts a new clip."""
        self._detector.reset()
        self._cuts.reset()
        self._forget_person()

    def _forget_person(self) -> None:
        self._last: Face | None = None
        self._look: Appearance | None = None
        self._others: list[Face] = []
        self._gap = 0
        self._until_look = 0
        self._smoother.reset()

    def update(self, image_rgb: np.ndarray, scale: float = 1.0) -> TrackedFace | None:
        """The person in the next frame.

        Args:
            image_rgb: (H, W, 3) uint8, the frame or a smaller copy of it.
            scale: full-frame pixels per pixel of `image_rgb`.

        Returns:
            the face in full-frame pixels, None when the person is not seen.
        """
        if self._cuts.update(image_rgb):
            self._detector.reset()
            self._forget_person()
        faces = [face.scaled(scale) for face in self._detector.detect(image_rgb)]
        smallest = _smallest_size(image_rgb.shape, scale)
        faces = [face for face in faces if (face.size >= KEEP_SHARE * smallest).all()]

        looks = _Looks(image_rgb, scale)
        chosen = self._continue(faces, looks) if self._last is not None else None
        if chosen is None and (self._last is None or self._gap >= self._forget_after):
            chosen = self._rule.choose([face for face in faces if (face.size >= smallest).all()])
            if chosen is not None:
                self._forget_person()
        if chosen is None:
            self._gap += 1
            return None
        self._others = [face for face in faces if face is not chosen]
        return self._accept(chosen, looks)

    def _continue(self, faces: list[Face], looks: _Looks) -> Face | None:
        """The face that is the followed person's: by place, size and looks against everybody seen last."""
        if not faces:
            return None
        tracks = [self._last, *self._others]
        costs = np.array([[self._cost(track, face) for face in faces] for track in tracks])
        if costs.size > 1:  # looks count where there is somebody to confuse the person with
            costs[0] += [LOOKS_WEIGHT * self._look.distance(looks.of(face)) for face in faces]
        # A further column for each track, so that it may end: one face must not be passed on to satisfy two tracks.
        costs = np.minimum(np.hstack([costs, np.full((len(tracks), len(tracks)), NO_MATCH)]), UNREACHABLE)
        from scipy.optimize import linear_sum_assignment  # a third of a second that only tracking needs

        columns = linear_sum_assignment(costs)[1]
        # Who was seen together with the person is somebody else; a face that turns up in a gap may be the person.
        self._others = [
            faces[column] if column < len(faces) else other
            for other, column in zip(self._others, columns[1:], strict=True)
        ]
        if columns[0] < len(faces) and costs[0, columns[0]] < UNREACHABLE:
            face = faces[columns[0]]
            # Alone and soon seen again, place decides: a hand or a microphone before the face must not lose it.
            alone = costs.shape == (1, 2) and self._gap <= SHORT_GAP
            if self._gap == 0 or alone or self._look.distance(looks.of(face)) <= SAME_PERSON:
                return face
        return self._recognize([face for index, face in enumerate(faces) if index not in columns[1:]], looks)

    def _cost(self, track: Face, face: Face) -> float:
        """Dissimilarity of place and size in face lengths; infinite beyond what a moving head can do."""
        length = max(float(track.size.max()), 1.0)
        step = float(np.linalg.norm(face.center - track.center)) / length
        growth = abs(math.log(float(face.size.max()) / length))
        slack = MAX_STEP_PER_GAP_FRAME * min(self._gap, 10)
        return step + growth if step <= MAX_STEP + slack and growth <= MAX_LOG_GROWTH + slack else math.inf

    def _recognize(self, faces: list[Face], looks: _Looks) -> Face | None:
        """After a gap or a jump cut the person may be anywhere: the unclaimed face that looks like them."""
        if not faces:
            return None
        best = min(faces, key=lambda face: self._look.distance(looks.of(face)))
        return best if self._look.distance(looks.of(best)) <= SAME_PERSON else None

    def _accept(self, face: Face, looks: _Looks) -> TrackedFace:
        is_cut = self._last is None or self._gap > 0 or _jumped(self._last, face)
        if is_cut:
            self._smoother.reset()
        if self._look is None:
            self._look = looks.of(face)
            self._until_look = APPEARANCE_EVERY
        elif self._until_look == 0:
            self._look = self._look.blended(looks.of(face), APPEARANCE_SHARE)
            self._until_look = APPEARANCE_EVERY
        self._until_look -= 1
        self._last, self._gap = face, 0
        anchors = self._smoother(face.anchors) if self._smooth else face.anchors
        return TrackedFace(face.box, anchors, is_cut, face.contour)


def _area(face: Face) -> float:
    return float(np.prod(face.size))


def _contains(face: Face, point: tuple[float, float]) -> bool:
    return bool((face.box[:2] <= point).all() and (face.box[2:] >= point).all())


def _distance_to(face: Face, point: tuple[float, float]) -> float:
    return float(np.linalg.norm(face.center - point))


def _smallest_size(shape: tuple[int, ...], scale: float) -> np.ndarray:
    """(2,) smallest width and height of a usable face in full-frame pixels."""
    short_side = min(shape[:2]) * scale
    return np.minimum(MIN_FACE_SIZE, np.array(MIN_FACE_SHARE) * short_side)


def _jumped(before: Face, after: Face) -> bool:
    """The face is elsewhere at once: an edit within one setting, not a movement."""
    brow_distance = max(float(np.linalg.norm(before.anchors[1] - before.anchors[0])), 1e-6)
    step = float(np.linalg.norm(after.anchors.mean(axis=0) - before.anchors.mean(axis=0)))
    return step > RESTART_STEP * brow_distance
