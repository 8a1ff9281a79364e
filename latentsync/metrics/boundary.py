"""Visibility of the edge of the regenerated region.

Legend: N points on the outline, R side of the aligned face in pixels, T frames.
"""

import cv2
import numpy as np

from latentsync.faces.mask import MASK_SIDE, REGENERATED_OUTLINE

NUM_POINTS = 512
REACH = 24 / 256  # of the face's side: how far from the outline blending may move the edge
NEIGHBOR = 3 / 256  # of the face's side: distance at which an edge is compared with its surroundings


class BoundaryMetric:
    """Steepness across the outline of the mask, at every distance from it, averaged over a clip.

    Let g(o) be the mean of |dI/dn| over the outline moved outwards by o pixels (I the luma, n the outline's normal),
    and D(o) = g_result(o) - g_source(o). The visibility is

        max over o of  D(o) - (D(o - d) + D(o + d)) / 2,   in gray levels per pixel.

    An edge that the source lacks is a peak of D. Texture lost or gained on one side of the outline is a step of D and
    contributes little. Equal images give 0.
    """

    def __init__(self, resolution: int, outline: np.ndarray = REGENERATED_OUTLINE, outline_side: int = MASK_SIDE):
        """`outline` (M, 2): corners x, y of the regenerated region in a face of `outline_side` pixels."""
        self.reach, self.distance = max(2, round(REACH * resolution)), max(1, round(NEIGHBOR * resolution))
        samples = sampled_outline(outline * (resolution / outline_side), NUM_POINTS)
        self._map = _sample_positions(*samples, self.reach + 1)
        inside = np.all((self._map >= 0) & (self._map <= resolution - 1), axis=-1)
        self._valid = inside[:, 2:] & inside[:, :-2]  # both pixels of a difference are inside the face
        self._sums = {"result": np.zeros(2 * self.reach + 1), "source": np.zeros(2 * self.reach + 1)}
        self._frames = 0

    def update(self, results: np.ndarray, sources: np.ndarray) -> None:
        """Add frames of both, aligned by the same transforms: (T, R, R, 3) uint8."""
        if results.shape != sources.shape:
            raise ValueError(
                f"expected two arrays of equal shape (T, R, R, 3), got {results.shape} and {sources.shape}"
            )
        for result, source in zip(results, sources, strict=True):
            self._sums["result"] += self._steepness(result)
            self._sums["source"] += self._steepness(source)
            self._frames += 1

    def profile(self) -> np.ndarray:
        """D(o) for o = -reach .. reach, negative inside the region: (2 reach + 1,) gray levels per pixel; NaN without
        frames."""
        if not self._frames:
            return np.full(2 * self.reach + 1, np.nan)
        return (self._sums["result"] - self._sums["source"]) / self._frames

    def compute(self) -> float:
        """Visibility as defined by the class; NaN without frames."""
        profile, d = self.profile(), self.distance
        return float((profile[d:-d] - (profile[: -2 * d] + profile[2 * d :]) / 2).max())

    def _steepness(self, face: np.ndarray) -> np.ndarray:
        luma = cv2.cvtColor(face, cv2.COLOR_RGB2GRAY).astype(np.float32)
        lines = cv2.remap(luma, self._map[..., 0], self._map[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        slopes = np.abs(lines[:, 2:] - lines[:, :-2]) / 2
        return (slopes * self._valid).sum(axis=0) / np.maximum(self._valid.sum(axis=0), 1)


def sampled_outline(corners: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Points at equal distances along a closed polygon and the outward normals there: two (count, 2)."""
    ring = np.concatenate([corners, corners[:1]]).astype(float)
    lengths = np.linalg.norm(np.diff(ring, axis=0), axis=1)
    at = np.concatenate([[0.0], np.cumsum(lengths)])
    steps = (np.arange(count) + 0.5) * at[-1] / count
    points = np.stack([np.interp(steps, at, ring[:, axis]) for axis in (0, 1)], axis=1)
    sides = np.diff(ring, axis=0) / np.maximum(lengths, 1e-9)[:, None]
    side = sides[np.searchsorted(at, steps, side="right") - 1]
    x, y = ring.T
    area = (x[:-1] * y[1:] - x[1:] * y[:-1]).sum()
    return points, np.sign(area) * np.stack([side[:, 1], -side[:, 0]], axis=1)


def _sample_positions(points: np.ndarray, normals: np.ndarray, reach: int) -> np.ndarray:
    """Sample positions of each line across the outline: (N, 2 reach + 1, 2) float32."""
    offsets = np.arange(-reach, reach + 1)
    return (points[:, None] + offsets[None, :, None] * normals[:, None]).astype(np.float32)
