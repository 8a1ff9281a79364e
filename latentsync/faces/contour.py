"""Paste mask from face contours.

The mask that conditions the UNet extends beyond the face, so the network also generates hair, collar and background,
but blurred. Pasting is therefore limited to the contour of the face in the frame, extended to the generated face where
its jaw is lower. Contours are polygons (N, 2) in pixels of the aligned face; R is its side.
"""

import cv2
import numpy as np

from latentsync.faces.mediapipe_detector import FACE_OVAL
from latentsync.faces.mediapipe_graphs import NUM_POINTS, REGION_SCALE, MeshNet, Region

FEATHER = 1 / 96  # of R: sigma of the soft edge inside the contour
SUBPIXEL_BITS = 4  # fractional bits of polygon coordinates
JAW_TOLERANCE = 1 / 64  # of R: if the generated jaw is higher by more than this, the original jaw is overwritten


class MeshFinder:
    """Finds the points of an aligned face with MediaPipe's mesh network (2 to 4 ms per face)."""

    def __init__(self) -> None:
        self._mesh = MeshNet()

    def find(self, face: np.ndarray, near: np.ndarray) -> np.ndarray | None:
        """Find all points (468, 2) of an aligned face.

        Args:
            face: (R, R, 3) uint8 RGB.
            near: (N, 2) contour of the original face, which gives the region of interest.

        Returns:
            None if no face is detected.
        """
        low, high = near.min(axis=0), near.max(axis=0)
        region = Region((low + high) / 2, float((high - low).max()) * REGION_SCALE, 0.0)
        return self._mesh.points(face, region, list(range(NUM_POINTS)))

    def close(self) -> None:
        """Release the network."""
        self._mesh.close()


def contour_of(points: np.ndarray | None) -> np.ndarray | None:
    """Contour (36, 2) of the points of `MeshFinder`."""
    return None if points is None else points[FACE_OVAL]


def contour_weight(side: int, frame: np.ndarray, generated: np.ndarray | None = None) -> np.ndarray:
    """Blending weight (R, R) float32 of the generated face: 0 outside the contours, rising smoothly to 1 inside.

    Args:
        side: R.
        frame: contour of the face in the frame.
        generated: contour of the generated face, if known. Where its jaw is lower, the mask is extended to it. Where it
            is higher, the mask extends slightly beyond the original jaw, to overwrite it completely.
    """
    sigma = FEATHER * side
    inside = fill_polygon(side, frame)
    if generated is not None:
        new = fill_polygon(side, generated)
        old_jaw = np.where(cv2.dilate(new, _disc(JAW_TOLERANCE * side)) > 0, 0, inside).astype(np.uint8)
        inside = np.maximum(np.maximum(inside, new), cv2.dilate(old_jaw, _disc(3 * sigma)))
    blurred = cv2.GaussianBlur(inside.astype(np.float32) / 255, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)
    return np.clip(2 * blurred - 1, 0, 1)  # the blurred edge is 0.5 on the contour, which maps to 0


def fill_polygon(side: int, contour: np.ndarray) -> np.ndarray:
    """(R, R) uint8, 255 inside the polygon."""
    image = np.zeros((side, side), np.uint8)
    corners = np.round(contour * (1 << SUBPIXEL_BITS)).astype(np.int32)
    cv2.fillPoly(image, [corners], 255, lineType=cv2.LINE_AA, shift=SUBPIXEL_BITS)
    return image


def _disc(radius: float) -> np.ndarray:
    size = 2 * max(1, round(radius)) + 1
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))
