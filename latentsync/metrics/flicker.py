"""Temporal flicker of the mouth: frame-to-frame change that motion does not explain.

Legend: T frames, F frames of a chunk, R pixels. Faces are aligned (see `latentsync.faces.align`), uint8 RGB
(F, R, R, 3).
"""

import math

import cv2
import numpy as np

from latentsync.faces.align import require_aligned
from latentsync.faces.mask import mouth_slices
from latentsync.media.optical_flow import warp

# The flow settings are independent of frame interpolation, so that improving that does not change this metric.
SMOOTHNESS = 40.0  # of the flow, twice OpenCV's default; with less it follows noise
LARGE = 480  # side R above which the flow is computed at half the resolution, for the same reason
CONSISTENT = 1.0  # largest forward-backward error of visible points: this many pixels plus a twentieth of the motion
BLUR = 1.5  # pixels: sigma of the blur before the flow, so that noise is not mistaken for motion
MIN_VISIBLE = 0.05  # share of the region that must be visible in both frames


class FlickerMetric:
    """Mean absolute difference of luma between a frame and the previous one warped along the optical flow.

    Only points of the mouth box that are visible in both frames count, which excludes those uncovered by opening lips.
    Motion that the flow explains gives 0 at any speed. Independent noise of standard deviation s gives
    2 s / sqrt(pi) = 1.13 s, slightly less where warping smooths it.
    """

    def __init__(self) -> None:
        self._dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        self._dis.setVariationalRefinementAlpha(SMOOTHNESS)
        self._last: np.ndarray | None = None
        self._values: list[float] = []

    def update(self, faces: np.ndarray, starts: np.ndarray) -> None:
        """Add the next frames (F, R, R, 3) uint8; `starts` (F,): True after a cut or a gap."""
        require_aligned(faces)
        for face, new in zip(faces, starts, strict=True):
            luma = cv2.cvtColor(face, cv2.COLOR_RGB2GRAY)
            self._values.append(math.nan if self._last is None or new else self._compare(self._last, luma))
            self._last = luma

    @property
    def values(self) -> np.ndarray:
        """(T,) in gray levels, of each frame and the one before it; NaN where they cannot be compared."""
        return np.array(self._values)

    def compute(self) -> float:
        """Mean over the pairs of frames; NaN if no pair could be compared."""
        known = self.values[np.isfinite(self.values)]
        return float(known.mean()) if known.size else math.nan

    def _compare(self, before: np.ndarray, now: np.ndarray) -> float:
        blurred = [cv2.GaussianBlur(luma, (0, 0), BLUR) for luma in (before, now)]
        self._dis.setFinestScale(int(len(now) > LARGE))
        backward, forward = self._dis.calc(blurred[1], blurred[0], None), self._dis.calc(blurred[0], blurred[1], None)
        difference = np.abs(now - warp(before, backward))
        error = np.linalg.norm(backward + warp(forward, backward), axis=-1)
        visible = error < CONSISTENT + np.linalg.norm(backward, axis=-1) / 20
        mouth = mouth_slices(len(now))
        return float(difference[mouth][visible[mouth]].mean()) if visible[mouth].mean() >= MIN_VISIBLE else math.nan
