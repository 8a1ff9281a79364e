"""Hands in front of a face, whose pixels a paste must not change.

MediaPipe's hand networks look at a square around the face. They cost as much as the detection of the face, so they run
only when something of its color comes beside the face, and rarely otherwise; while a hand is near, in every frame.

Letters: H W size of an image, N points of a polygon.
"""

import cv2
import numpy as np

from latentsync.faces.detector import Face
from latentsync.faces.mediapipe_graphs import HandNet
from latentsync.faces.resample import warp_rgb

SCALE = 2.5  # side of the square in which hands are looked for, in lengths of the face
LOWER = 0.35  # of the face height: offset of the square below the face center, since most hands enter from below
SIDE = 256  # pixels of the square
THUMBNAIL_SIDE = 32  # pixels of its thumbnails, which show whether something has changed
CHANGE = 14.0  # of 255: change of a thumbnail, averaged over 3 x 3 pixels, that is worth a look
SKIN_CHROMA = 14  # of 255: largest difference of the chroma of a hand from that of the face
CHANGED_INTERVAL = 3  # frames between runs of the networks while something changes
IDLE_INTERVAL = 12  # frames between runs while nothing changes
HOLD = 6  # frames for which a lost hand is assumed to stay
PALM_RANGE = (0.12, 1.2)  # length of a palm in lengths of the face

WRIST, INDEX, MIDDLE, LITTLE = 0, 5, 9, 17  # landmarks: the wrist and three knuckles
PALM = [0, 1, 2, 5, 9, 13, 17]
FINGERS = [[0, 1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12], [13, 14, 15, 16], [17, 18, 19, 20]]
PALM_RATIO = 1.3  # length of a palm over the distance of its outer knuckles; for hands seen from the fingertips
FINGER_WIDTH, PALM_MARGIN, ARM_WIDTH, ARM_LENGTH = 0.32, 0.35, 0.65, 0.6  # in lengths of the palm, with some margin
OUTLINE_SIDE = 160  # pixels of the drawing from which the outline is taken


class HandFinder:
    """Finds the hands in front of one person's face in consecutive frames. Loads the networks when they first run.

    `runs` counts the runs of the networks.
    """

    def __init__(self) -> None:
        self.runs = 0
        self._net: HandNet | None = None
        self.reset()

    def reset(self) -> None:
        """Another person follows."""
        self._seen: np.ndarray | None = None  # the thumbnail at the last run
        self._since_run = IDLE_INTERVAL
        self._since_hand = HOLD
        self._outlines: tuple[np.ndarray, ...] = ()

    def find(self, image: np.ndarray, face: Face) -> tuple[np.ndarray, ...]:
        """Outlines (N, 2) of the hands that reach into a face, in pixels of the RGB image (H, W, 3) uint8."""
        side = SCALE * float(face.size.max())
        corner = face.center + (0, LOWER * face.size[1]) - side / 2
        to_square = np.column_stack([np.eye(2), -corner]) * (SIDE / side)
        square = warp_rgb(image, to_square, (SIDE, SIDE))
        self._since_run += 1
        self._since_hand += 1
        if self._is_due(square, cv2.transform(face.outline[None], to_square)[0]):
            self._since_run = 0
            hands = [points * (side / SIDE) + corner for points in self._run_networks(square)]
            if outlines := [hand_outline(hand) for hand in hands if _is_in_front(hand, face)]:
                self._outlines, self._since_hand = tuple(outlines), 0
        return self._outlines if self._since_hand < HOLD else ()

    def close(self) -> None:
        """Release the networks."""
        if self._net is not None:
            self._net.close()
            self._net = None

    def _is_due(self, square: np.ndarray, face: np.ndarray) -> bool:
        """Whether to look for hands. `face`: its outline in the square, whose inside changes in speech."""
        small = cv2.resize(square, (THUMBNAIL_SIDE, THUMBNAIL_SIDE), interpolation=cv2.INTER_AREA)
        due = self._seen is None or self._since_run >= IDLE_INTERVAL or self._since_hand <= HOLD
        if self._seen is not None and not due and self._since_run >= CHANGED_INTERVAL:
            due = _has_come(small, self._seen, face * (THUMBNAIL_SIDE / SIDE))
        if due:
            self._seen = small
        return due

    def _run_networks(self, square: np.ndarray) -> list[np.ndarray]:
        if self._net is None:
            self._net = HandNet()
        self.runs += 1
        return self._net.detect(square)


def _has_come(now: np.ndarray, before: np.ndarray, face: np.ndarray) -> bool:
    """Whether something of the color of the face has come beside it, by thumbnails and the face's outline in them."""
    inside = np.zeros(now.shape[:2], np.uint8)
    cv2.fillPoly(inside, [np.round(face).astype(np.int32)], 1)
    if not inside.any():
        return True
    chroma = cv2.cvtColor(now, cv2.COLOR_RGB2YCrCb)[..., 1:].astype(np.float32)
    is_skin = np.abs(chroma - np.median(chroma[inside > 0], axis=0)).max(axis=2) <= SKIN_CHROMA
    change = cv2.absdiff(now, before).max(axis=2) * (is_skin & (inside == 0))
    return bool(cv2.blur(change.astype(np.float32), (3, 3)).max() > CHANGE)


def hand_outline(points: np.ndarray) -> np.ndarray:
    """Polygon (N, 2) around a hand and the beginning of its arm, from the 21 landmarks (21, 2) of MediaPipe."""
    palm = _palm_length(points)
    arm = points[WRIST] + _unit(points[WRIST] - points[MIDDLE]) * ARM_LENGTH * palm
    everything = np.vstack([points, arm])
    corner, most = everything.min(axis=0) - palm, everything.max(axis=0) + palm
    scale = OUTLINE_SIDE / float((most - corner).max())
    drawn = np.round((everything - corner) * scale).astype(np.int32)
    image = np.zeros((OUTLINE_SIDE, OUTLINE_SIDE), np.uint8)
    cv2.fillPoly(image, [drawn[PALM]], 255)
    for lines, width in (
        ([drawn[PALM]], PALM_MARGIN),
        ([drawn[finger] for finger in FINGERS], FINGER_WIDTH),
        ([drawn[[WRIST, -1]]], ARM_WIDTH),
    ):
        cv2.polylines(image, lines, False, 255, max(1, round(width * palm * scale)))
    contours, _ = cv2.findContours(image, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    return max(contours, key=len)[:, 0] / scale + corner


def _is_in_front(points: np.ndarray, face: Face) -> bool:
    """Whether a hand overlaps a face. A hand with its wrist inside the face is a false detection."""
    low, high = PALM_RANGE
    if not low <= _palm_length(points) / float(face.size.max()) <= high or _is_inside(points[WRIST], face):
        return False
    margin = FINGER_WIDTH * _palm_length(points)
    return bool(
        (points.max(axis=0) + margin > face.box[:2]).all() and (points.min(axis=0) - margin < face.box[2:]).all()
    )


def _palm_length(points: np.ndarray) -> float:
    across = PALM_RATIO * float(np.linalg.norm(points[INDEX] - points[LITTLE]))
    return max(float(np.linalg.norm(points[MIDDLE] - points[WRIST])), across, 1e-6)


def _is_inside(point: np.ndarray, face: Face) -> bool:
    x, y = point.tolist()
    return cv2.pointPolygonTest(face.outline.astype(np.float32), (x, y), False) > 0


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / max(float(np.linalg.norm(vector)), 1e-6)
