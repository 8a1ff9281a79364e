"""How much of a face may be replaced in a frame: hands and other faces in front of it, and its turn to the side.

Pixels of other faces are never changed. The head around another face (hair, ears, shoulders) is left alone, too, where
it reaches into the speaker's cheek. Once it reaches the mouth and the speaker looks different there from before, the
frame is passed through. If the speaker looks as before, the two are side by side, and only as much is left alone as
keeps the mouth free. Pixels of hands are never changed; the more of the mouth they cover, the less of it is replaced.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from latentsync.faces.detector import Face
from latentsync.faces.mask import mouth_slices

HEAD_MARGIN = np.array([0.6, 0.5, 0.6, 0.4])  # of a head around the face's box: left, top, right, bottom
HEAD_SCALES = (1, 0.75, 0.5, 0.25, 0)  # of these margins, tried until the mouth is free
SMALL_FACE = 1 / 3  # a face below this fraction of the speaker's size is behind, or a false detection
MOUTH_MARGIN = 0.28  # fraction of the face that may be covered from one side before the mouth is
COVERED_DIFFERENCE = 25.0  # of 255: mean difference to the uncovered face; head and mouth motion cause less
THUMBNAIL_SIDE = 32  # pixels of the thumbnails in which faces are compared
REFERENCE_MOMENTUM = 0.1

# Position of the nose along the brow line, from the middle, in brow distances; grows with the yaw. On the meshes of
# four people, turned in 3-D: 0.15 to 0.22 at 45 degrees, 0.23 to 0.37 at 60, 0.33 to 0.62 at 70. On 22 clips of moving
# heads it stays below 0.19.
PROFILE_RANGE = (0.35, 0.5)
COVERED_RANGE = (0.3, 0.6)  # share of the mouth behind hands over which the generated face fades
RETURNING = 0.5  # opacity in the first frame after the mouth was hidden, so that speech sets in softly

Place = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Visibility:
    """The replaceable part of a face.

    Args:
        opacity: of the generated face, 0..1; 0 passes the frame through.
        keep_out: polygons (N, 2) in frame pixels in which no pixel may change: other people and hands.
        reason: why the opacity is below 1.
    """

    opacity: float = 1.0
    keep_out: tuple[np.ndarray, ...] = ()
    reason: str | None = None


VISIBLE = Visibility()
HIDDEN = "another person is in front"
BEHIND_HAND = "a hand is in front of the mouth"
PROFILE = "the face is turned to the side"


def profile_opacity(anchors: np.ndarray) -> float:
    """1 for a frontal face with anchors (3, 2), falling to 0 for a profile, which the alignment would tear."""
    brows = anchors[1] - anchors[0]
    shift = abs(float((anchors[2] - anchors[0]) @ brows) / max(float(brows @ brows), 1e-9) - 0.5)
    low, high = PROFILE_RANGE
    return float(np.clip((high - shift) / (high - low), 0, 1))


class OcclusionCheck:
    """Compares one person's aligned face with its recent appearance, where other heads may cover it."""

    def __init__(self) -> None:
        self._reference: np.ndarray | None = None

    def reset(self) -> None:
        """Another person follows."""
        self._reference = None

    def update(self, pixels: np.ndarray, face: Face, others: Sequence[Face], place: Place) -> Visibility:
        """Visibility of the face in the next frame.

        Args:
            pixels: (R, R, 3) uint8, the aligned face.
            face, others: this face and all others in the frame, in frame pixels.
            place: maps points (N, 2) in frame pixels to a thumbnail of the aligned face, `THUMBNAIL_SIDE` pixels wide.
        """
        thumbnail = cv2.resize(pixels, (THUMBNAIL_SIDE, THUMBNAIL_SIDE), interpolation=cv2.INTER_AREA).astype(
            np.float32
        )
        near = [other for other in others if _reaches(other, face)]
        if not near:
            self._learn(thumbnail)
            return VISIBLE
        ovals = tuple(other.outline for other in near)
        large = [other for other in near if not _is_small(other, face)]
        whole = _fill([place(face.outline)])
        covered = whole
        for scale in HEAD_SCALES:
            heads = [_corners(_head(other, scale)) for other in large]
            covered = whole & _fill([place(head) for head in heads])
            if covered.sum() <= MOUTH_MARGIN * whole.sum():
                return Visibility(keep_out=(*ovals, *heads))
            if scale == 1 and self._differs(thumbnail, covered):
                return Visibility(0.0, ovals, HIDDEN)
        return Visibility(keep_out=ovals)

    def _learn(self, thumbnail: np.ndarray) -> None:
        if self._reference is None:
            self._reference = thumbnail
        else:
            self._reference += REFERENCE_MOMENTUM * (thumbnail - self._reference)

    def _differs(self, thumbnail: np.ndarray, where: np.ndarray) -> bool:
        if self._reference is None:
            return False
        return float(np.abs(thumbnail - self._reference)[where].mean()) > COVERED_DIFFERENCE


def behind_hands(visible: Visibility, hands: tuple[np.ndarray, ...], place: Place) -> Visibility:
    """The visibility with hands, polygons (N, 2) in frame pixels, in front of the face; `place` as in `update`."""
    if not hands:
        return visible
    low, high = COVERED_RANGE
    covered = float(_fill([place(hand) for hand in hands])[mouth_slices(THUMBNAIL_SIDE)].mean())
    opacity = visible.opacity * float(np.clip((high - covered) / (high - low), 0, 1))
    reason = visible.reason if opacity else visible.reason or BEHIND_HAND
    return replace(visible, opacity=opacity, keep_out=(*visible.keep_out, *hands), reason=reason)


def keep_out_weight(box: tuple[int, int, int, int], polygons: Sequence[np.ndarray]) -> np.ndarray:
    """Blending weight (h, w) float32 in a box (x0, y0, x1, y1) of a frame: 0 inside the polygons, rising to 1 outside.

    Pixels that touch a polygon, and their neighbors, which may share a chroma sample, have weight 0.
    """
    x0, y0, x1, y1 = box
    free = np.full((y1 - y0, x1 - x0), 1, np.uint8)
    for polygon in polygons:
        cv2.fillPoly(free, [np.round(polygon - (x0, y0)).astype(np.int32)], 0)
    distance = cv2.distanceTransform(free, cv2.DIST_L2, 3)
    return np.clip((distance - 3) / max(2.0, 0.03 * (x1 - x0)), 0, 1)


def _reaches(other: Face, face: Face) -> bool:
    """Whether the head around another face reaches into the face; false detections inside the face are ignored."""
    head = _head(other)
    if (head[2:] <= face.box[:2]).any() or (head[:2] >= face.box[2:]).any():
        return False
    inside = (face.box[:2] <= other.center).all() and (other.center <= face.box[2:]).all()
    return not (inside and _is_small(other, face))


def _is_small(other: Face, face: Face) -> bool:
    return bool(other.size.max() < SMALL_FACE * face.size.max())


def _head(face: Face, scale: float = 1.0) -> np.ndarray:
    """Box (4,) of the head around a face, with the margins scaled."""
    return face.box + scale * HEAD_MARGIN * np.tile(face.size, 2) * (-1, -1, 1, 1)


def _corners(box: np.ndarray) -> np.ndarray:
    x0, y0, x1, y1 = box
    return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])


def _fill(polygons: Sequence[np.ndarray]) -> np.ndarray:
    """(THUMBNAIL_SIDE, THUMBNAIL_SIDE) bool, True inside any of the polygons."""
    image = np.zeros((THUMBNAIL_SIDE, THUMBNAIL_SIDE), np.uint8)
    for polygon in polygons:
        cv2.fillPoly(image, [np.round(np.clip(polygon, -1e4, 1e4)).astype(np.int32)], 1)
    return image.astype(bool)
