"""A compact appearance descriptor of a face, cheap enough to tell people apart in every frame."""

from dataclasses import dataclass

import cv2
import numpy as np

from latentsync.faces.align import TEMPLATE_ANCHORS, TEMPLATE_SIZE, similarity_from_anchors, warp_to_crop

SIZE = (15, 20)  # width, height of the aligned thumbnail
CHROMA_UNIT = 20.0  # Lab chroma difference that counts as much as uncorrelated luminance


@dataclass(frozen=True)
class Appearance:
    """Aligned thumbnail of a face: luminance, normalized against lighting changes, and mean skin chroma."""

    pattern: np.ndarray  # (300,) float32, mean 0, norm 1
    chroma: np.ndarray  # (2,) float32, Lab a and b

    def distance(self, other: "Appearance") -> float:
        """0 for identical images; below about 0.5 within one shot of a person, mostly above 0.6 between people."""
        pattern = 1.0 - float(self.pattern @ other.pattern)
        return pattern + float(np.linalg.norm(self.chroma - other.chroma)) / CHROMA_UNIT

    def blended(self, newer: "Appearance", share: float) -> "Appearance":
        """Running mean, which adapts to slow changes of pose and lighting; `share` is the weight of `newer`."""
        pattern = (1 - share) * self.pattern + share * newer.pattern
        chroma = (1 - share) * self.chroma + share * newer.chroma
        return Appearance(_unit(pattern), chroma)


def appearance(image: np.ndarray, anchors: np.ndarray) -> Appearance:
    """Compute the appearance of the face with anchors (3, 2) in `image` (H, W, 3) uint8 RGB."""
    matrix, _ = similarity_from_anchors(anchors, TEMPLATE_ANCHORS, smooth=False)
    crop = cv2.resize(warp_to_crop(image, matrix, TEMPLATE_SIZE), SIZE, interpolation=cv2.INTER_AREA)
    lab = cv2.cvtColor(crop.astype(np.float32) / 255, cv2.COLOR_RGB2Lab)
    inner = lab[2:-2, 3:-3, 1:]  # skin, without the background around the head
    return Appearance(_unit(lab[..., 0].ravel()), inner.reshape(-1, 2).mean(axis=0))


def _unit(values: np.ndarray) -> np.ndarray:
    centered = values - values.mean()
    return centered / max(float(np.linalg.norm(centered)), 1e-6)
