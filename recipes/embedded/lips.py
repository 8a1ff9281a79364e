"""Close the lips of a face by moving them: a mouth at rest for people whose clips never show one.

Legend: R pixels of a side of an aligned face.
"""

import cv2
import numpy as np

from latentsync.faces.mediapipe_graphs import MeshNet
from latentsync.faces.mouth import CHIN, aligned_mesh

# MediaPipe mesh indices of the inner lip contour, from corner to corner.
UPPER = [78, 191, 80, 81, 82, 13, 312, 311, 310, 415, 308]
LOWER = [78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308]
NOSE = 2  # its base
WIDEST = 0.07  # of R: a jaw that hangs lower than this would have to be moved too far to look true
CLOSED = 1.0  # pixel
PASSES = 2  # the first leaves a slit where the mesh underestimates the opening
UPPER_SHARE = 0.3  # of the gap that the upper lip closes
OVERLAP = 0.004  # of R: so much further than the mesh says
REACH = 0.06  # of R: beyond the corners of the mouth, the movement fades over so much


class LipCloser:
    """Finds the inner lips with MediaPipe's mesh and moves them together."""

    def __init__(self) -> None:
        self._mesh = MeshNet()

    def __call__(self, face: np.ndarray) -> np.ndarray | None:
        """Face (R, R, 3) uint8 with its mouth closed; None where there is no face or its mouth is open too wide."""
        for _ in range(PASSES):
            found = self._find(face)
            if found is None or (gap := _gap(*found[:2])) > WIDEST * len(face):
                return None
            if gap < CLOSED:
                break
            face = cv2.remap(face, closing_map(*found, len(face)), None, cv2.INTER_CUBIC, None, cv2.BORDER_REPLICATE)
        return face

    def _find(self, face: np.ndarray) -> tuple[np.ndarray, np.ndarray, float, float] | None:
        """Upper and lower contour (n, 2), rows of nose and chin."""
        points = aligned_mesh(self._mesh, face, [*UPPER, *LOWER, NOSE, CHIN])
        if points is None:
            return None
        return points[: len(UPPER)], points[len(UPPER) : -2], float(points[-2, 1]), float(points[-1, 1])


def _gap(upper: np.ndarray, lower: np.ndarray) -> float:
    return float((lower - upper)[:, 1].max())


def closing_map(upper: np.ndarray, lower: np.ndarray, nose: float, chin: float, side: int) -> np.ndarray:
    """Where each pixel of the closed mouth comes from, (R, R, 2) float32.

    Args:
        upper, lower: inner contours (n, 2), x from left to right.
        nose, chin: rows of the face that stay where they are.
    """
    columns, rows = np.meshgrid(np.arange(side, dtype=np.float32), np.arange(side, dtype=np.float32))
    x = columns[0]
    top, bottom = (np.interp(x, line[:, 0], line[:, 1]) for line in (upper, lower))
    between = (x > upper[0, 0]) & (x < upper[-1, 0])
    open_by = np.where(between, np.maximum(bottom - top, 0) + OVERLAP * side, 0).astype(np.float32)
    # Beyond the corners nothing is open, but skin does not tear: the movement fades out.
    gap = np.maximum(open_by, cv2.GaussianBlur(open_by[None], (0, 0), REACH * side / 3)[0])
    line = top + UPPER_SHARE * gap
    above = UPPER_SHARE * gap * ((rows - nose) / np.maximum(line - nose, 1)).clip(0, 1)
    below = (1 - UPPER_SHARE) * gap * (1 - (rows - line) / np.maximum(chin - line, 1)).clip(0, 1)
    moved = np.where(rows <= line, rows - above, rows + below)
    return np.stack([columns, moved.astype(np.float32)], -1)
