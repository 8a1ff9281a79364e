"""Single-person face tracking: selection, data association, gaps, shot cuts and smoothing."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from latentsync.constants import FPS
from latentsync.faces.appearance import Appearance, appearance
from latentsync.faces.cuts import CutDetector
from latentsync.faces.detector import Face, FaceDetector, overlap
from latentsync.faces.smoothing import AnchorSmoother
from latentsync.utils.errors import UserError

# Minimum width and height of a face to edit, in full-frame pixels; small frames use a fraction of their shorter side.
MIN_FACE_SIZE = (50.0, 80.0)
MIN_FACE_SHARE = (0.12, 0.19)
KEEP_SHARE = 0.8  # hysteresis: a tracked face is kept down to this fraction of the minimum size, to avoid flicker

MAX_STEP = 0.6  # maximum displacement of the center between two frames, in face lengths
MAX_LOG_GROWTH = 0.4  # maximum |log| of the size ratio between two frames
MAX_STEP_PER_GAP_FRAME = 0.1  # added to both limits for each frame without a detection
SAME_PERSON = 0.6  # maximum appearance distance between two views of one person
KNOWN_PERSON = 0.75  # maximum appearance distance of a face from the closest known view of its person
APPEARANCE_WEIGHT = 0.5  # matching cost of an appearance distance of 1, in face lengths
NO_MATCH_COST = 1.5  # matching cost of a track without a detection
UNREACHABLE = 1e6  # finite stand-in for an infinite cost
SHORT_GAP = 5  # frames
APPEARANCE_MOMENTUM = 0.1  # weight of the new appearance in the running mean
APPEARANCE_INTERVAL = 5  # frames between appearance updates
FORGET_AFTER_SECONDS = 2.0  # a person not seen for this long is dropped, and a new face is selected
RESTART_STEP = 0.5  # brow distances: a jump this large resets the smoothing filter

# Why there is no face to edit in a frame.
NO_FACE = "no face was found"
NOT_IN_VIEW = "the selected person is not in view"
TOO_SMALL = "the face is too small"


@dataclass(frozen=True)
class TrackedFace:
    """The tracked face in one frame, in full-frame pixels."""

    face: Face  # as detected
    anchors: np.ndarray  # (3, 2), smoothed
    is_cut: bool  # smoothing restarts here: first frame, shot cut, after a gap or a jump
    is_new: bool = False  # newly selected, perhaps another person than before
    others: tuple[Face, ...] = ()  # all other faces in the frame

    @property
    def box(self) -> np.ndarray:
        """(4,) x0, y0, x1, y1."""
        return self.face.box


@dataclass(frozen=True)
class SelectRule:
    """Which face to track.

    Args:
        kind: largest, left, right, index (from the left, starting at 0), point (x, y), or person: that of `people`
            with this index.
        people: appearances of each known person.
    """

    kind: str
    index: int = 0
    point: tuple[float, float] = (0.0, 0.0)
    people: tuple[tuple[Appearance, ...], ...] = ()

    @classmethod
    def parse(cls, text: str) -> "SelectRule":
        """Parse largest | left | right | N | x,y. Raises UserError for anything else."""
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
                f"invalid face selection {text!r}: use largest, left, right, an index N (0 is the leftmost face) "
                "or x,y in video pixels"
            )
        return cls("point", point=(x, y))

    def choose(self, faces: list[Face], look: Callable[[Face], Appearance] | None = None) -> Face | None:
        """Select one of `faces`; None if there are none, the index is out of range, or none is that person.

        `look` gives the appearance of a face; it is needed to recognize a person.
        """
        if not faces:
            return None
        if self.kind == "person":
            assert look is not None
            return self._recognize(faces, look)
        if self.kind == "largest":
            return max(faces, key=_area)
        if self.kind == "point":
            return min(faces, key=lambda face: (not _contains(face, self.point), _distance_to(face, self.point)))
        ordered = sorted(faces, key=lambda face: float(face.center[0]))
        if self.kind == "index":
            return ordered[self.index] if self.index < len(ordered) else None
        return ordered[0 if self.kind == "left" else -1]

    def _recognize(self, faces: list[Face], look: Callable[[Face], Appearance]) -> Face | None:
        """The face most like the person's, if that person is the most like it of all known ones."""
        best, smallest = None, KNOWN_PERSON
        for face in faces:
            view = look(face)
            distances = [min(view.distance(known) for known in gallery) for gallery in self.people]
            if distances[self.index] <= min(smallest, *distances):
                best, smallest = face, distances[self.index]
        return best


class _AppearanceCache:
    """Appearances of the faces in one frame, computed on demand because most frames need none."""

    def __init__(self, image: np.ndarray, scale: float):
        self._image = image
        self._scale = scale
        self._cache: dict[int, Appearance] = {}

    def get(self, face: Face) -> Appearance:
        if id(face) not in self._cache:
            self._cache[id(face)] = appearance(self._image, face.anchors / self._scale)
        return self._cache[id(face)]


class Scene:
    """The faces and cuts in consecutive frames, for trackers of one or several people.

    `faces` of the current frame in full-frame pixels; `taken`: those that a tracker follows; `is_cut`: whether the
    frame starts a new shot.
    """

    def __init__(self, detector: FaceDetector) -> None:
        self._detector, self._cuts = detector, CutDetector()
        self.faces: list[Face] = []
        self.taken: list[Face] = []
        self.is_cut = False

    def look(self, image: np.ndarray, scale: float) -> None:
        """Examine the next frame; arguments as of `FaceTracker.update`."""
        self.is_cut = self._cuts.update(image)
        if self.is_cut:
            self._detector.reset()
        self.faces = [face.scaled(scale) for face in self._detector.detect(image)]
        self.taken = []

    def is_free(self, face: Face) -> bool:
        """Whether no tracker follows a face of this frame."""
        return not any(face is other for other in self.taken)

    def reset(self) -> None:
        """Clear all state; the next frame starts a new clip."""
        self._detector.reset()
        self._cuts.reset()


class FaceTracker:
    """Tracks one person through the frames of a clip.

    A face is selected by the `select` rule at the start, after a shot cut, and once the person has not been detected
    for `FORGET_AFTER_SECONDS`. Otherwise the tracker stays with the same person, even if another face becomes larger.
    Frames without a detection yield None; positions are not interpolated.

    A face below the minimum size yields None, too. To avoid flicker, a face is kept down to `KEEP_SHARE` of that size,
    and then not used again until it has reached it.

    Args:
        detector: face detector; its temporal state is reset together with the tracker. Or the `Scene` of several
            trackers, whose `look` the caller calls for each frame; no tracker takes a face that another one follows.
        select: largest | left | right | N | x,y (a point in full-frame pixels), or a rule.
        smooth: smooth the anchors with a One-Euro filter.
        fps: frame rate of the sequence.
        min_face: minimum height of a face in full-frame pixels; by default that of `MIN_FACE_SIZE`.

    Attributes:
        missing: after an `update` that returned None, the reason.

    Raises:
        UserError: `select` is invalid.
    """

    def __init__(
        self,
        detector: FaceDetector | Scene,
        select: str | SelectRule = "largest",
        smooth: bool = True,
        fps: float = FPS,
        min_face: float | None = None,
    ):
        self._rule = select if isinstance(select, SelectRule) else SelectRule.parse(select)
        self._shares_scene = isinstance(detector, Scene)
        self._scene = detector if isinstance(detector, Scene) else Scene(detector)
        self._smooth = smooth
        self._smoother = AnchorSmoother(fps)
        self._forget_after = max(1, round(FORGET_AFTER_SECONDS * fps))
        self._min_face = min_face
        self.missing = NO_FACE
        self._last: Face | None = None
        self.drop_person()

    def reset(self) -> None:
        """Clear all state; the next frame starts a new clip."""
        self._scene.reset()
        self.drop_person()

    @property
    def has_person(self) -> bool:
        """Whether it follows someone, seen or not in the last frame."""
        return self._last is not None

    def drop_person(self) -> None:
        """Forget the person; the next frame selects one again."""
        if self.has_person:
            self._scene.taken = [face for face in self._scene.taken if face is not self._last]
        self._last = None
        self._appearance: Appearance | None = None
        self._others: list[Face] = []
        self._gap = 0  # frames since the person was last found
        self._unused = 0  # frames since the person was last found and large enough
        self._until_appearance_update = 0
        self._smoother.reset()

    def update(self, image_rgb: np.ndarray, scale: float = 1.0) -> TrackedFace | None:
        """Process the next frame.

        Args:
            image_rgb: (H, W, 3) uint8, the frame or a downscaled copy of it.
            scale: full-frame pixels per pixel of `image_rgb`.

        Returns:
            the tracked face in full-frame pixels, or None if the person is not detected.
        """
        scene = self._scene
        if not self._shares_scene:
            scene.look(image_rgb, scale)
        if scene.is_cut:
            self.drop_person()
        faces = scene.faces
        minimum = self._minimum_size(image_rgb.shape, scale)
        large = [face for face in faces if (face.size >= minimum).all()]

        appearances = _AppearanceCache(image_rgb, scale)
        chosen = self._associate([face for face in faces if scene.is_free(face)], appearances)
        is_used = chosen is not None and bool((chosen.size >= (1 if self._unused else KEEP_SHARE) * minimum).all())
        if not is_used and (self._last is None or self._unused >= self._forget_after):
            selected = self._rule.choose(large, appearances.get)
            if selected is not None and scene.is_free(selected):
                self.drop_person()
                chosen, is_used = selected, True
        if chosen is None:
            self._gap += 1
        else:
            self._others = [face for face in faces if face is not chosen]
        if chosen is None or not is_used:
            self._unused += 1
            self.missing = self._reason(faces, large, chosen)
            if chosen is not None:
                self._last, self._gap = chosen, 0
            return None
        scene.taken.append(chosen)
        return self._accept(chosen, appearances)

    def _reason(self, faces: list[Face], large: list[Face], chosen: Face | None) -> str:
        if chosen is not None or (faces and not large):
            return TOO_SMALL
        return NOT_IN_VIEW if faces else NO_FACE

    def _minimum_size(self, shape: tuple[int, ...], scale: float) -> np.ndarray:
        """(2,) minimum width and height of a face in full-frame pixels."""
        size = np.array(MIN_FACE_SIZE)
        if self._min_face is not None:
            return size * (self._min_face / size[1])
        return np.minimum(size, np.array(MIN_FACE_SHARE) * min(shape[:2]) * scale)

    def _associate(self, faces: list[Face], appearances: _AppearanceCache) -> Face | None:
        """Find the tracked person among `faces` by optimal assignment of all recent tracks to the detections."""
        last, known = self._last, self._appearance
        if not faces or last is None or known is None:
            return None
        tracks = [last, *self._others]
        costs = np.array([[self._cost(track, face) for face in faces] for track in tracks])
        if costs.size > 1:  # appearance matters only if there is more than one candidate
            costs[0] += [APPEARANCE_WEIGHT * known.distance(appearances.get(face)) for face in faces]
        # One dummy column per track, so that a track may stay unmatched instead of taking the face of another.
        costs = np.minimum(np.hstack([costs, np.full((len(tracks), len(tracks)), NO_MATCH_COST)]), UNREACHABLE)
        columns = _assign(costs)
        matches = [faces[column] if column < len(faces) else None for column in columns]
        lost = [other for other, match in zip(self._others, matches[1:], strict=True) if match is None]
        # Faces detected next to the person belong to others; one that appears during a gap may be the person.
        self._others = [match or other for other, match in zip(self._others, matches[1:], strict=True)]
        face = matches[0]
        if face is not None and costs[0, columns[0]] < UNREACHABLE:
            is_like = known.distance(appearances.get(face)) <= SAME_PERSON if self._gap or lost else True
            # After a short occlusion (a hand, a microphone) position alone is enough if there is no other candidate.
            alone = costs.shape == (1, 2) and self._gap <= SHORT_GAP
            in_front = [other for other in lost if overlap(other.box, face.box) > 0]
            if is_like or alone or not (self._gap or in_front):
                return face
            # Two faces became one that is not like the person: it belongs to the one in front.
            self._others = [face if any(other is each for each in in_front) else other for other in self._others]
        unmatched = [face for face in faces if not any(face is match for match in matches)]
        return _reidentify(known, unmatched, appearances)

    def _cost(self, track: Face, face: Face) -> float:
        """Matching cost in position and size, in face lengths; infinite beyond plausible head motion."""
        length = max(float(track.size.max()), 1.0)
        step = float(np.linalg.norm(face.center - track.center)) / length
        growth = abs(math.log(float(face.size.max()) / length))
        slack = MAX_STEP_PER_GAP_FRAME * min(self._gap, 10)
        return step + growth if step <= MAX_STEP + slack and growth <= MAX_LOG_GROWTH + slack else math.inf

    def _accept(self, face: Face, appearances: _AppearanceCache) -> TrackedFace:
        is_new = self._last is None
        is_cut = self._last is None or self._unused > 0 or _jumped(self._last, face)
        if is_cut:
            self._smoother.reset()
        if self._appearance is None:
            self._appearance = appearances.get(face)
            self._until_appearance_update = APPEARANCE_INTERVAL
        elif self._until_appearance_update == 0:
            self._appearance = self._appearance.blended(appearances.get(face), APPEARANCE_MOMENTUM)
            self._until_appearance_update = APPEARANCE_INTERVAL
        self._until_appearance_update -= 1
        self._last, self._gap, self._unused = face, 0, 0
        anchors = self._smoother(face.anchors) if self._smooth else face.anchors
        return TrackedFace(face, anchors, is_cut, is_new, tuple(self._others))


def _assign(costs: np.ndarray) -> np.ndarray:
    """The column of each row at the lowest total cost."""
    if len(costs) == 1:  # one person, as in most videos
        return costs.argmin(axis=1)
    from scipy.optimize import linear_sum_assignment  # takes 0.3 s to import

    return linear_sum_assignment(costs)[1]


def _reidentify(known: Appearance, faces: list[Face], appearances: _AppearanceCache) -> Face | None:
    """Find the person by appearance among the unmatched faces, after a gap or a jump cut."""
    best = min(faces, key=lambda face: known.distance(appearances.get(face)), default=None)
    return best if best is not None and known.distance(appearances.get(best)) <= SAME_PERSON else None


def _area(face: Face) -> float:
    return float(np.prod(face.size))


def _contains(face: Face, point: tuple[float, float]) -> bool:
    return bool((face.box[:2] <= point).all() and (face.box[2:] >= point).all())


def _distance_to(face: Face, point: tuple[float, float]) -> float:
    return float(np.linalg.norm(face.center - point))


def _jumped(before: Face, after: Face) -> bool:
    """Whether the displacement is too large for motion, such as a jump cut within one scene."""
    brow_distance = max(float(np.linalg.norm(before.anchors[1] - before.anchors[0])), 1e-6)
    step = float(np.linalg.norm(after.anchors.mean(axis=0) - before.anchors.mean(axis=0)))
    return step > RESTART_STEP * brow_distance
