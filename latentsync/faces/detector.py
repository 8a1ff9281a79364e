"""The face detector interface and shared helpers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

MIN_SCORE = 0.5
BOX_RATIO_RANGE = (0.2, 1.5)  # width over height


@dataclass(frozen=True)
class Face:
    """A detected face, in image pixels."""

    box: np.ndarray  # (4,) float: x0, y0, x1, y1; may extend beyond the image
    anchors: np.ndarray  # (3, 2) float: center of the brow on the image's left, of the other brow, nose
    score: float  # detection confidence in [0, 1]
    contour: np.ndarray | None = None  # (N, 2) float: polygon around the face, if the detector provides one

    @property
    def size(self) -> np.ndarray:
        """(2,) width and height of the box."""
        return self.box[2:] - self.box[:2]

    @property
    def center(self) -> np.ndarray:
        """(2,) center of the box."""
        return (self.box[:2] + self.box[2:]) / 2

    @property
    def outline(self) -> np.ndarray:
        """(N, 2) polygon: the contour, or the corners of the box."""
        if self.contour is not None:
            return self.contour
        x0, y0, x1, y1 = self.box
        return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])

    @property
    def up(self) -> np.ndarray:
        """(2,) vector from the nose to the middle of the brows."""
        return self.anchors[:2].mean(axis=0) - self.anchors[2]

    def scaled(self, scale: float) -> "Face":
        """Scale all coordinates to an image `scale` times as large."""
        contour = None if self.contour is None else self.contour * scale
        return Face(self.box * scale, self.anchors * scale, self.score, contour)


class FaceDetector(Protocol):
    """Detects faces in images; may keep state between the frames of a clip."""

    def detect(self, image: np.ndarray) -> list[Face]:
        """Detect faces in an RGB image (H, W, 3) uint8 of any size; empty if there are none."""

    def reset(self) -> None:
        """Clear temporal state, before a new clip or after a shot cut."""

    def close(self) -> None:
        """Release the models; the detector cannot be used afterwards."""


@runtime_checkable
class BatchDetector(FaceDetector, Protocol):
    """A detector without temporal state, which may get the next `batch_size` images of a clip at once."""

    batch_size: int

    def detect_batch(self, images: Sequence[np.ndarray]) -> list[list[Face]]:
        """`detect` for each image."""


def is_plausible(face: Face) -> bool:
    """Check score, box proportions and anchors. The minimum size is left to the tracker."""
    width, height = face.size
    if not (np.isfinite(face.box).all() and np.isfinite(face.anchors).all()) or width <= 0 or height <= 0:
        return False
    low, high = BOX_RATIO_RANGE
    brow_distance = np.linalg.norm(face.anchors[1] - face.anchors[0])
    return face.score >= MIN_SCORE and low <= width / height <= high and brow_distance > 0.05 * width


def match_boxes(boxes: Sequence[np.ndarray], faces: Sequence[Face], least: float) -> list[Face | None]:
    """For each box (4,), in this order, the free face that overlaps it most, by at least `least`; None without one."""
    free, found = list(faces), list[Face | None]()
    for box in boxes:
        best = max(free, key=lambda face: overlap(box, face.box), default=None)
        if best is not None and overlap(box, best.box) < least:
            best = None
        free = [face for face in free if face is not best]
        found.append(best)
    return found


def overlap(first: np.ndarray, second: np.ndarray) -> float:
    """Intersection over union of two boxes (x0, y0, x1, y1)."""
    low, high = np.maximum(first[:2], second[:2]), np.minimum(first[2:], second[2:])
    intersection = float(np.prod(np.clip(high - low, 0, None)))
    areas = float(np.prod(first[2:] - first[:2]) + np.prod(second[2:] - second[:2]))
    return intersection / (areas - intersection) if areas > intersection else 0.0


def check_image(image: np.ndarray) -> None:
    """Raise ValueError unless `image` is (H, W, 3) uint8 with at least one pixel."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise ValueError(f"expected an RGB image (H, W, 3) uint8, got {image.shape} {image.dtype}")
