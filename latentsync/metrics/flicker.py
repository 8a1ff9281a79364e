"""Temporal flicker of the mouth: what changes from frame to frame beyond motion.

Legend: T frames, R pixels. Faces are aligned (see `latentsync.faces.align`), uint8 RGB (T, R, R, 3).
"""

import math

import cv2
import numpy as np

from latentsync.faces.mask import mouth_slices
from latentsync.media.optical_flow import FlowMeter, visibility, warp
from latentsync.metrics.image import require_aligned

HIDDEN = 0.5  # visibility below which a point is left out
STEADY = 1.5  # pixels: sigma of the blur under which motion is measured, so that noise is not taken for motion
FEWEST = 0.05  # share of the region that must be seen in both frames


class FlickerMeter:
    """Mean absolute difference of luma between a frame and the one before, moved along the optical flow between them.

    Only the mouth's box counts, and there only points that are visible in both frames. Motion that the flow explains
    gives 0, whatever its speed; independent noise of standard deviation s gives 2 s / sqrt(pi) = 1.13 s, a little less
    where moving smooths it. Lips that open show points that were hidden: these are left out.
    """

    def __init__(self) -> None:
        self._flow = FlowMeter()
        self._last: np.ndarray | None = None
        self._sum, self._count = 0.0, 0

    def add(self, faces: np.ndarray) -> None:
        """The next frames (T, R, R, 3) uint8 of a clip."""
        require_aligned(faces)
        for face in faces:
            luma = cv2.cvtColor(face, cv2.COLOR_RGB2GRAY)
            if self._last is not None:
                self._compare(self._last, luma)
            self._last = luma

    def cut(self) -> None:
        """The next frame is not the continuation of the last."""
        self._last = None

    def flicker(self) -> float:
        """Mean over the pairs of frames, in grey levels; NaN where no pair could be compared."""
        return self._sum / self._count if self._count else math.nan

    def _compare(self, before: np.ndarray, now: np.ndarray) -> None:
        steady = [cv2.GaussianBlur(luma, (0, 0), STEADY) for luma in (before, now)]
        back, there = self._flow.both_ways(steady[1], steady[0])
        difference = np.abs(now - warp(before, back))
        mouth = mouth_slices(len(now))
        seen = visibility(back, there)[mouth] > HIDDEN
        if seen.mean() >= FEWEST:
            self._sum += float(difference[mouth][seen].mean())
            self._count += 1


def flicker(faces: np.ndarray) -> float:
    """Of one clip (T, R, R, 3) uint8, in grey levels; NaN with fewer than two frames."""
    meter = FlickerMeter()
    meter.add(faces)
    return meter.flicker()


def relative_flicker(result: np.ndarray, source: np.ndarray) -> float:
    """Flicker of the result over that of the source, both (T, R, R, 3): 1 is as steady, more is more restless."""
    reference = flicker(source)
    return flicker(result) / reference if reference > 0 else math.nan
