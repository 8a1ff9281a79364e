"""Landmark metrics: LMD, the distance from the landmarks of the real face, and jitter.

Legend: T frames, F frames of a chunk, R pixels, P points. Faces are aligned (see `latentsync.faces.align`), uint8 RGB
(T, R, R, 3). Points are (T, P, 2) in pixels of the aligned face, NaN where no face is found.
"""

import numpy as np

from latentsync.faces.align import require_aligned
from latentsync.faces.lips import INNER_LIPS, OUTER_LIPS
from latentsync.faces.mediapipe_detector import EYE_CORNERS, FACE_OVAL
from latentsync.faces.mediapipe_graphs import NUM_POINTS, MeshNet
from latentsync.faces.mouth import MESH_POINTS, aligned_mesh, mouth_opening

LIPS = OUTER_LIPS + INNER_LIPS
# The lower half of the oval: the jaw, which moves with speech as the lips do.
JAW = [361, 288, 397, 365, 379, 378, 400, 377, 152, 148, 176, 149, 150, 136, 172, 58, 132]
STILL = [index for index in range(NUM_POINTS) if index not in {*LIPS, *JAW, *FACE_OVAL}]


class FaceMesh:
    """Landmarks of aligned faces by MediaPipe's mesh. Frames are independent: equal images, equal landmarks."""

    def __init__(self) -> None:
        self._mesh = MeshNet()

    def points(self, faces: np.ndarray) -> np.ndarray:
        """(T, 468, 2) of faces (T, R, R, 3) uint8; NaN for a frame without a face."""
        require_aligned(faces)
        return np.stack([self._points(face) for face in faces]) if len(faces) else np.zeros((0, NUM_POINTS, 2))

    def _points(self, face: np.ndarray) -> np.ndarray:
        found = aligned_mesh(self._mesh, face, list(range(NUM_POINTS)))
        return np.full((NUM_POINTS, 2), np.nan) if found is None else found

    def close(self) -> None:
        """Release the network."""
        self._mesh.close()


def openings(points: np.ndarray) -> np.ndarray:
    """`latentsync.faces.mouth.mouth_opening` of each frame: points (T, 468, 2) -> (T,), NaN without a face."""
    return np.array([mouth_opening(frame[MESH_POINTS]) for frame in points])


def landmark_distance(result: np.ndarray, source: np.ndarray, indices: list[int] | None = None) -> np.ndarray:
    """LMD (Chen et al. 2018): mean landmark distance in percent of the source's eye distance.

    The eye distance is that of the outer corners. Dividing by it makes the value independent of the image size.

    Args:
        result, source: (T, 468, 2) in one coordinate system.
        indices: landmarks to use; all by default.

    Returns:
        (T,), NaN unless both have a face.
    """
    left, right = EYE_CORNERS
    eyes = np.linalg.norm(source[:, right] - source[:, left], axis=-1)
    distances = np.linalg.norm(result - source, axis=-1)
    chosen = distances if indices is None else distances[:, indices]
    return 100 * chosen.mean(axis=1) / eyes


class JitterMetric:
    """Jitter of a result's landmarks relative to its source's.

    The square root of  sum |p(t+1) - 2 p(t) + p(t-1)|^2  of the result, divided by that of the source, on the same
    frames and points. 1 means as steady as the source. Second differences cancel uniform motion, so that smooth head
    motion contributes little. Memory use is constant.
    """

    def __init__(self, indices: list[int]) -> None:
        """`indices`: landmarks to use."""
        self._indices = indices
        self._last = np.zeros((2, 0, len(indices), 2))  # result and source, up to two frames before
        self._sums = np.zeros(2)

    def update(self, result: np.ndarray, source: np.ndarray, starts: np.ndarray) -> None:
        """Add the next landmarks (F, 468, 2) of result and source; `starts` (F,): True after a cut or a gap."""
        for pair, new in zip(np.stack([result, source], axis=1), starts, strict=True):
            points = pair[:, self._indices]
            seen = np.isfinite(points).all()
            if new or not seen:
                self._last = self._last[:, :0]
            if not seen:
                continue
            if self._last.shape[1] == 2:
                bends = points - 2 * self._last[:, 1] + self._last[:, 0]
                self._sums += np.square(bends).sum(axis=(1, 2))
            self._last = np.concatenate([self._last, points[:, None]], axis=1)[:, -2:]

    def compute(self) -> float:
        """The ratio; NaN if the source does not move (a still image), or no three consecutive frames show both."""
        return float(np.sqrt(self._sums[0] / self._sums[1])) if self._sums[1] > 0 else float("nan")
