"""Close the lips of a face by moving them together: a mouth at rest in pauses.

In silence, generated mouths are rarely closed: the network keeps some of the smile or the vowel of the frame.

Legend: R pixels of a side of an aligned face, n points of a contour.
"""

import cv2
import numpy as np

from latentsync.faces.mediapipe_graphs import MeshNet
from latentsync.faces.mouth import CHIN, aligned_region

# MediaPipe mesh indices of the inner lip contour, from corner to corner.
UPPER = [78, 191, 80, 81, 82, 13, 312, 311, 310, 415, 308]
LOWER = [78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308]
INNER_LIPS = UPPER + LOWER[-2:0:-1]  # closed contours
OUTER_LIPS = [61, 185, 40, 39, 37, 0, 267, 269, 270, 409, 291, 375, 321, 405, 314, 17, 84, 181, 91, 146]
NOSE = 2  # its base
CLOSED = 1 / 512  # of R: a smaller gap counts as closed; the movement is complete from twice this gap on
PASSES = 3  # the first ones leave a slit where the mesh underestimates the opening
UPPER_SHARE = 0.3  # of the gap that the upper lip closes
OVERLAP = 1 / 256  # of R: added to the measured gap, so that no slit remains
REACH = 0.06  # of R: distance over which the movement fades out beyond the corners of the mouth


class LipCloser:
    """Moves the inner lips, found with MediaPipe's mesh, together. Stateless: equal faces give equal results."""

    def __init__(self) -> None:
        self._mesh = MeshNet()

    def __call__(self, face: np.ndarray, amount: float = 1.0) -> np.ndarray:
        """A face with its mouth closed; unchanged where no lips are found.

        Args:
            face: (R, R, 3) RGB in 0..255, uint8 or float32.
            amount: share of the way that the lips move, 0 to 1.
        """
        region = aligned_region(self._mesh, _to_uint8(face))
        if region is None:
            return face
        for _ in range(PASSES if amount == 1 else 1):
            points = self._mesh.points(_to_uint8(face), region, [*UPPER, *LOWER, NOSE, CHIN])
            if points is None:
                break
            upper, lower, nose, chin = points[: len(UPPER)], points[len(UPPER) : -2], points[-2, 1], points[-1, 1]
            gap = float((lower - upper)[:, 1].max()) / (CLOSED * len(face))
            if gap <= 1:
                break
            places = closing_map(upper, lower, nose, chin, len(face), amount * min(gap - 1, 1.0))
            face = cv2.remap(face, places, None, cv2.INTER_CUBIC, None, cv2.BORDER_REPLICATE).clip(0, 255)
        return face

    def close(self) -> None:
        """Release the network."""
        self._mesh.close()


def _to_uint8(face: np.ndarray) -> np.ndarray:
    return face.clip(0, 255).astype(np.uint8)


def closing_map(
    upper: np.ndarray, lower: np.ndarray, nose: float, chin: float, side: int, amount: float = 1.0
) -> np.ndarray:
    """Where each pixel of the closed mouth comes from, (R, R, 2) float32.

    Args:
        upper, lower: inner contours (n, 2), x from left to right.
        nose, chin: rows of the face that stay where they are.
        side: R.
        amount: share of the way that the lips move, 0 to 1.
    """
    columns, rows = np.meshgrid(np.arange(side, dtype=np.float32), np.arange(side, dtype=np.float32))
    x = columns[0]
    # In a face turned to the side, the contour may fold back near a corner; interpolation needs rising x.
    top, bottom = (np.interp(x, np.maximum.accumulate(line[:, 0]), line[:, 1]) for line in (upper, lower))
    between = (x > upper[0, 0]) & (x < upper[-1, 0])
    open_by = np.where(between, np.maximum(bottom - top, 0) + OVERLAP * side, 0).astype(np.float32)
    # Beyond the corners nothing is open, but skin does not tear: the movement fades out.
    gap = amount * np.maximum(open_by, cv2.GaussianBlur(open_by[None], (0, 0), REACH * side / 3)[0])
    # The lips meet at `line`; each goes its share of the gap, and the skin up to nose and chin follows.
    line = top + UPPER_SHARE * gap
    above = UPPER_SHARE * gap * ((rows - nose) / np.maximum(line - nose, 1)).clip(0, 1)
    below = (1 - UPPER_SHARE) * gap * (1 - (rows - line) / np.maximum(chin - line, 1)).clip(0, 1)
    moved = np.where(rows <= line, rows - above, rows + below)
    return np.stack([columns, moved.astype(np.float32)], -1)
