"""Which pixels of a generated face are pasted: those inside the face's own contour.

The mask that conditions the UNet reaches beyond the face, so the network also generates hair, collar and background, as
a blur. Only what lies inside the contour of the face in the frame, or of the generated face where its jaw is lower, is
pasted. Contours are polygons (N, 2) in pixels of the aligned face; R is its side.
"""

import cv2
import numpy as np

from latentsync.faces.mediapipe_detector import FACE_OVAL
from latentsync.faces.mediapipe_graphs import REGION_SCALE, MeshNet, Region

FEATHER = 1 / 96  # of R: sigma of the soft edge, which lies inside the contour
SUBPIXEL_BITS = 4  # fractional bits of polygon coordinates
NOT_COVERED = 1 / 64  # of R: a generated jaw this much higher than the frame's leaves the old jaw to be painted over


class ContourFinder:
    """Finds the contour of a generated face with MediaPipe's mesh network, about 2 ms a face."""

    def __init__(self) -> None:
        self._mesh = MeshNet()

    def find(self, face: np.ndarray, near: np.ndarray) -> np.ndarray | None:
        """Contour (36, 2) of an aligned face.

        Args:
            face: (R, R, 3) uint8 RGB.
            near: (N, 2) contour of the face that was replaced, which tells the network where to look.

        Returns:
            None if no face is seen.
        """
        low, high = near.min(axis=0), near.max(axis=0)
        region = Region((low + high) / 2, float((high - low).max()) * REGION_SCALE, 0.0)
        return self._mesh.points(face, region, FACE_OVAL)

    def close(self) -> None:
        """Release the network."""
        self._mesh.close()


def contour_weight(side: int, frame: np.ndarray, generated: np.ndarray | None = None) -> np.ndarray:
    """Share of the generated face to paste, (R, R) float32: 0 outside the contours, rising smoothly to 1 inside.

    Args:
        side: R.
        frame: contour of the face in the frame.
        generated: contour of the generated face, if known. Where its jaw is lower, the paste follows it. Where it is
            higher, the paste reaches a little beyond the frame's jaw, so that no trace of that jaw remains.
    """
    sigma = FEATHER * side
    inside = _fill(side, frame)
    if generated is not None:
        new = _fill(side, generated)
        old_jaw = np.where(cv2.dilate(new, _disc(NOT_COVERED * side)) > 0, 0, inside).astype(np.uint8)
        inside = np.maximum(np.maximum(inside, new), cv2.dilate(old_jaw, _disc(3 * sigma)))
    blurred = cv2.GaussianBlur(inside.astype(np.float32) / 255, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)
    return np.clip(2 * blurred - 1, 0, 1)  # a blurred edge is one half on the contour: nothing is pasted outside it


def _fill(side: int, contour: np.ndarray) -> np.ndarray:
    """(R, R) uint8, 255 inside the polygon."""
    picture = np.zeros((side, side), np.uint8)
    corners = np.round(contour * (1 << SUBPIXEL_BITS)).astype(np.int32)
    cv2.fillPoly(picture, [corners], 255, lineType=cv2.LINE_AA, shift=SUBPIXEL_BITS)
    return picture


def _disc(radius: float) -> np.ndarray:
    size = 2 * max(1, round(radius)) + 1
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))
