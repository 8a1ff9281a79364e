"""Temporal flicker of the mouth: what changes from frame to frame beyond motion.

Legend: F frames of a chunk, R pixels. Faces are aligned (see `latentsync.faces.align`), uint8 RGB (F, R, R, 3).
"""

import math

import cv2
import numpy as np

from latentsync.faces.align import require_aligned
from latentsync.faces.mask import mouth_slices
from latentsync.media.optical_flow import warp

# The flow is the measure's own: figures must not change because interpolation, which has one too, is made better.
SMOOTHNESS = 40.0  # of the flow, twice OpenCV's default: else it follows the noise
LARGE = 480  # pixels of R above which motion is looked at half as finely, for the same reason
CONSISTENT = 1.0  # pixels, and a twentieth of the motion, that going there and back may miss a point in sight by
STEADY = 1.5  # pixels: sigma of the blur under which motion is measured, so that noise is not taken for motion
FEWEST = 0.05  # share of the region that must be in sight in both frames


class FlickerMeter:
    """Mean absolute difference of luma between a frame and the one before, moved along the optical flow between them.

    Only the mouth's box counts, and there only points that are visible in both frames. Motion that the flow explains
    gives 0, whatever its speed; independent noise of standard deviation s gives 2 s / sqrt(pi) = 1.13 s, a little less
    where moving smooths it. Lips that open show points that were hidden: these are left out.
    """

    def __init__(self) -> None:
        self._dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        self._dis.setVariationalRefinementAlpha(SMOOTHNESS)
        self._last: np.ndarray | None = None
        self._sum, self._count = 0.0, 0

    def add(self, faces: np.ndarray, starts: np.ndarray) -> None:
        """The next frames (F, R, R, 3) uint8 of a clip; `starts` (F,): True where one does not continue the last."""
        require_aligned(faces)
        for face, new in zip(faces, starts, strict=True):
            luma = cv2.cvtColor(face, cv2.COLOR_RGB2GRAY)
            if self._last is not None and not new:
                self._compare(self._last, luma)
            self._last = luma

    def flicker(self) -> float:
        """Mean over the pairs of frames, in grey levels; NaN where no pair could be compared."""
        return self._sum / self._count if self._count else math.nan

    def _compare(self, before: np.ndarray, now: np.ndarray) -> None:
        steady = [cv2.GaussianBlur(luma, (0, 0), STEADY) for luma in (before, now)]
        self._dis.setFinestScale(int(len(now) > LARGE))
        back, there = self._dis.calc(steady[1], steady[0], None), self._dis.calc(steady[0], steady[1], None)
        difference = np.abs(now - warp(before, back))
        missed = np.linalg.norm(back + warp(there, back), axis=-1)
        seen = missed < CONSISTENT + np.linalg.norm(back, axis=-1) / 20
        mouth = mouth_slices(len(now))
        if seen[mouth].mean() >= FEWEST:
            self._sum += float(difference[mouth][seen[mouth]].mean())
            self._count += 1
