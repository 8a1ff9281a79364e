"""How far a mouth is open, frame by frame.

Legend: T frames, R pixels. Faces are aligned (see `latentsync.faces.align`), uint8 RGB (T, R, R, 3).
"""

import math

import numpy as np

from latentsync.faces.align import require_aligned
from latentsync.faces.mediapipe_detector import POINTS, region_from_mesh
from latentsync.faces.mediapipe_graphs import MeshNet, Region

# MediaPipe mesh: pairs of points on the inner edges of upper and lower lip, left, middle, right.
INNER_LIPS = [(82, 87), (13, 14), (312, 317)]
FOREHEAD, CHIN = 10, 152
MESH_POINTS = POINTS + [index for pair in INNER_LIPS for index in pair] + [FOREHEAD, CHIN]

# Where the mesh network looks first in an aligned face: center and side as fractions of R. Means over real clips; the
# second look starts from the first mesh.
LOOK_CENTRE = (0.48, 0.46)
LOOK_SIDE = 1.4

CLOSED_PERCENTILE = 10  # of a person's openings in real frames: the mouth at rest


def mouth_opening(points: np.ndarray) -> float:
    """Distance of the inner lips over the height of the face (forehead to chin).

    points (len(MESH_POINTS), 2). Measured along the face, so that noise of closed lips averages to 0: about 0 closed,
    0.05 to 0.15 in speech, slightly negative where the network sees the lips overlap.
    """
    forehead, chin = points[-2:]
    axis = chin - forehead
    lips = points[len(POINTS) : -2].reshape(-1, 2, 2)
    gap = (lips[:, 1] - lips[:, 0]).mean(axis=0)
    return float(gap @ axis / (axis @ axis))


class MouthMeter:
    """Measures mouths with MediaPipe's mesh. Every frame is looked at afresh: equal pictures give equal openings."""

    def __init__(self) -> None:
        self._mesh = MeshNet()

    def openings(self, faces: np.ndarray) -> np.ndarray:
        """(T,) float64 of `mouth_opening`, NaN where no face is seen. `faces` (T, R, R, 3) uint8."""
        require_aligned(faces)
        return np.array([self._opening(face) for face in faces])

    def _opening(self, face: np.ndarray) -> float:
        side = len(face)
        points = self._mesh.points(face, Region(np.array(LOOK_CENTRE) * side, LOOK_SIDE * side, 0.0), POINTS)
        if points is not None:
            points = self._mesh.points(face, region_from_mesh(points), MESH_POINTS)
        return math.nan if points is None else mouth_opening(points)

    def close(self) -> None:
        """Release the network."""
        self._mesh.close()


def closed_opening(openings: np.ndarray) -> float:
    """What the meter shows for this person's closed mouth, from the openings (T,) of a real clip; NaN without any."""
    seen = openings[np.isfinite(openings)]
    return float(np.percentile(seen, CLOSED_PERCENTILE)) if seen.size else math.nan


def mean_opening(openings: np.ndarray, where: np.ndarray, closed: float) -> float:
    """Mean opening above the closed mouth in the frames of `where` (T,) bool, at least 0; NaN when there are none."""
    chosen = openings[where & np.isfinite(openings)]
    return float(np.maximum(chosen.mean() - closed, 0)) if chosen.size else math.nan
