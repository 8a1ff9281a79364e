"""Mouth opening per frame.

Legend: T frames, R pixels. Faces are aligned (see `latentsync.faces.align`), uint8 RGB (T, R, R, 3).
"""

import math

import numpy as np

from latentsync.faces.align import require_aligned
from latentsync.faces.mediapipe_detector import POINTS, region_from_mesh
from latentsync.faces.mediapipe_graphs import MeshNet, Region

# MediaPipe mesh indices: (upper, lower) points on the inner lip contour at left, center and right.
INNER_LIPS = [(82, 87), (13, 14), (312, 317)]
FOREHEAD, CHIN = 10, 152
MESH_POINTS = POINTS + [index for pair in INNER_LIPS for index in pair] + [FOREHEAD, CHIN]

# Initial region of interest of the mesh network in an aligned face, means over real clips; refined by a second pass.
REGION_CENTER = (0.48, 0.46)  # fractions of R
REGION_SIDE = 1.4  # fraction of R

CLOSED_PERCENTILE = 10  # of the openings of a real clip, as the closed mouth


def mouth_opening(points: np.ndarray) -> float:
    """Distance between the inner lips relative to the height of the face (forehead to chin).

    `points` is (len(MESH_POINTS), 2). The distance is signed, along the face axis, so that noise averages out when the
    lips are closed: about 0 closed, 0.05 to 0.15 in speech, slightly negative if the lips overlap in the mesh.
    """
    forehead, chin = points[-2:]
    axis = chin - forehead
    lips = points[len(POINTS) : -2].reshape(-1, 2, 2)
    gap = (lips[:, 1] - lips[:, 0]).mean(axis=0)
    return float(gap @ axis / (axis @ axis))


def aligned_mesh(mesh: MeshNet, face: np.ndarray, wanted: list[int]) -> np.ndarray | None:
    """Mesh points (len(wanted), 2) of an aligned face (R, R, 3), in its pixels; None where no face is detected."""
    region = aligned_region(mesh, face)
    return None if region is None else mesh.points(face, region, wanted)


def aligned_region(mesh: MeshNet, face: np.ndarray) -> Region | None:
    """Region of interest of the mesh network in an aligned face (R, R, 3); None where no face is detected."""
    side = len(face)
    points = mesh.points(face, Region(np.array(REGION_CENTER) * side, REGION_SIDE * side, 0.0), POINTS)
    return None if points is None else region_from_mesh(points)


class OpeningEstimator:
    """Measures mouth opening with MediaPipe's mesh. Stateless: equal images give equal results."""

    def __init__(self) -> None:
        self._mesh = MeshNet()

    def openings(self, faces: np.ndarray) -> np.ndarray:
        """`mouth_opening` of faces (T, R, R, 3) uint8: (T,) float64, NaN where no face is detected."""
        require_aligned(faces)
        return np.array([self._opening(face) for face in faces])

    def _opening(self, face: np.ndarray) -> float:
        points = aligned_mesh(self._mesh, face, MESH_POINTS)
        return math.nan if points is None else mouth_opening(points)

    def close(self) -> None:
        """Release the network."""
        self._mesh.close()


def closed_opening(openings: np.ndarray) -> float:
    """Estimate the opening of a person's closed mouth from the openings (T,) of a real clip; NaN if none is valid."""
    valid = openings[np.isfinite(openings)]
    return float(np.percentile(valid, CLOSED_PERCENTILE)) if valid.size else math.nan


def mean_opening(openings: np.ndarray, where: np.ndarray, closed: float) -> float:
    """Mean opening relative to `closed` over the frames `where` (T,) bool, at least 0; NaN without valid frames."""
    chosen = openings[where & np.isfinite(openings)]
    return float(np.maximum(chosen.mean() - closed, 0)) if chosen.size else math.nan
