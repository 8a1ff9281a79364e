"""Can the edge of the regenerated region be seen?

Legend: N points on the outline, K reach to either side in pixels, R pixels of the aligned face.
"""

import cv2
import numpy as np

from latentsync.faces.mask import MASK_SIDE, REGENERATED_OUTLINE

NUM_POINTS = 512
REACH = 24 / 256  # of the face's side: how far from the outline blending may have put the edge
NEIGHBOUR = 3 / 256  # a visible edge stands out from what is this far beside it


class BoundaryMeter:
    """Steepness across the outline of the mask, at every distance from it, averaged over a clip.

    With g(o) the mean of |dI/dn| over the outline moved outwards by o pixels (I the luma, n the outline's normal), and
    D(o) = g_result(o) - g_source(o), the visibility is

        max over o of  D(o) - (D(o - d) + D(o + d)) / 2,   in grey levels a pixel.

    An edge that the source does not have is a peak of D. Texture that is lost or gained on one side of the outline is a
    step of D and counts little; the same picture gives 0.
    """

    def __init__(self, resolution: int, outline: np.ndarray = REGENERATED_OUTLINE, outline_side: int = MASK_SIDE):
        """`outline` (M, 2): corners x, y of the regenerated region in a face of `outline_side` pixels."""
        self.reach, self.distance = max(2, round(REACH * resolution)), max(1, round(NEIGHBOUR * resolution))
        places = sampled_outline(outline * (resolution / outline_side), NUM_POINTS)
        self._map = _profile_places(*places, self.reach + 1)
        inside = ((self._map >= 0) & (self._map <= resolution - 1)).all(axis=-1)
        self._valid = inside[:, 2:] & inside[:, :-2]  # both pixels of a difference lie in the face
        self._sums = {"result": np.zeros(2 * self.reach + 1), "source": np.zeros(2 * self.reach + 1)}
        self._frames = 0

    def add(self, results: np.ndarray, sources: np.ndarray) -> None:
        """Frames of both, aligned by the same transforms: (T, R, R, 3) uint8."""
        if results.shape != sources.shape:
            raise ValueError(f"two equal (T, R, R, 3) are needed, not {results.shape} and {sources.shape}")
        for result, source in zip(results, sources, strict=True):
            self._sums["result"] += self._steepness(result)
            self._sums["source"] += self._steepness(source)
            self._frames += 1

    def profile(self) -> np.ndarray:
        """D(o) for o = -reach .. reach, negative inside the region: (2 reach + 1,) grey levels a pixel; NaN unfed."""
        if not self._frames:
            return np.full(2 * self.reach + 1, np.nan)
        return (self._sums["result"] - self._sums["source"]) / self._frames

    def visibility(self) -> float:
        """The measure of the class; NaN when no frame was added."""
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


def _profile_places(points: np.ndarray, normals: np.ndarray, reach: int) -> np.ndarray:
    """Where each line across the outline is sampled: (N, 2 reach + 1, 2) float32."""
    offsets = np.arange(-reach, reach + 1)
    return (points[:, None] + offsets[None, :, None] * normals[:, None]).astype(np.float32)
