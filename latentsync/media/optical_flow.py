"""Frame interpolation by bidirectional optical flow without learned weights: DIS (Kroeger et al. 2016).

Letters: H W size of frames, h w size of the downscaled frames on which flow is computed. Frames are (H, W, 3) uint8
RGB, flows (h, w, 2) float32 in pixels of that size, x then y.
"""

from collections import deque

import cv2
import numpy as np

LONGEST_SIDE = 1280  # flow of larger frames is computed on downscaled ones
SMALL_SIDE = 480  # above this the finest scale of DIS is skipped, because it follows noise
SMOOTHNESS = 40.0  # of the flow; twice OpenCV's default, for the same reason
CONSISTENT = 2.0  # error of the forward-backward check, in pixels, at which a point counts as half occluded
SOFTNESS = 0.5  # width of that transition in pixels
UNSEEN = 0.01  # weight of occluded points, so that those occluded in both frames are blended as if visible in both
BENDING = 3.0  # smoothing of the acceleration in pixels: a difference of two flows is noisier than each
NEAR = 15  # side of the window in which frames are compared, in pixels
NOISE = 8.0  # mean squared difference of neighbors that is attributed to noise
DOUBT = 0.3  # weight of the difference that remains between the warped frames


class FlowEstimator:
    """Dense optical flow between two frames, cached for the last few pairs."""

    KEPT = 3  # before -> first -> second -> after: the next interval needs two of these again

    def __init__(self) -> None:
        self._dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        self._dis.setVariationalRefinementAlpha(SMOOTHNESS)
        self._known: deque[tuple[np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray]]] = deque(maxlen=self.KEPT)

    def both_ways(self, first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Flows (h, w, 2) from the first frame to the second and back."""
        for one, other, flows in self._known:
            if one is first and other is second:
                return flows
        a, b = _measured(first), _measured(second)
        self._dis.setFinestScale(int(max(a.shape) > SMALL_SIDE))
        flows = self._dis.calc(a, b, None), self._dis.calc(b, a, None)
        self._known.append((first, second, flows))
        return flows


class FlowInterpolator:
    """Warps both neighbors to the time between them and blends them, aware of occlusion.

    The path of a point is the cubic through its positions in four frames if they are given, otherwise the line through
    two. A point that is occluded in one neighbor is taken from the other. Where the neighbors differ by little more
    than noise they are blended without warping, which would move the noise.
    """

    name = "dis-flow"

    def __init__(self) -> None:
        self._flow = FlowEstimator()

    def between(
        self,
        first: np.ndarray,
        second: np.ndarray,
        t: float,
        before: np.ndarray | None = None,
        after: np.ndarray | None = None,
    ) -> np.ndarray:
        """See `Interpolator.between`."""
        earlier = None if before is None else self._flow.both_ways(before, first)[1]
        forward, backward = self._flow.both_ways(first, second)
        later = None if after is None else self._flow.both_ways(second, after)[0]
        velocity = _velocity(forward, backward, t)
        bend = _bend(forward, backward, earlier, later, velocity, t)
        to_first, to_second = bend - t * velocity, bend + (1 - t) * velocity
        # A point of the second frame that is not found in the first has just appeared: only the second shows it.
        seen_first = warp(visibility(backward, forward), to_second, cv2.INTER_LINEAR)
        seen_second = warp(visibility(forward, backward), to_first, cv2.INTER_LINEAR)
        early_weight, late_weight = (1 - t) * (seen_first + UNSEEN), t * (seen_second + UNSEEN)
        share = late_weight / (early_weight + late_weight)
        early, late = (
            warp(frame, enlarge(flow, first.shape)) for frame, flow in ((first, to_first), (second, to_second))
        )
        return _mix(early, late, _resize(share, first.shape), first, second, t)


def _measured(frame: np.ndarray) -> np.ndarray:
    """Gray (h, w) uint8, no side longer than LONGEST_SIDE."""
    gray = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
    scale = LONGEST_SIDE / max(gray.shape)
    return gray if scale >= 1 else cv2.resize(gray, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)


def _resize(field: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return field if field.shape[:2] == shape[:2] else cv2.resize(field, (shape[1], shape[0]))


def enlarge(flow: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Scale a flow (h, w, 2) to (H, W, 2), in pixels of the frame."""
    height, width = flow.shape[:2]
    if (height, width) == shape[:2]:
        return flow
    return _resize(flow, shape) * np.array([shape[1] / width, shape[0] / height], np.float32)


def _velocity(forward: np.ndarray, backward: np.ndarray, t: float) -> np.ndarray:
    """Motion from the first frame to the second of the point that is at each position at time t, (h, w, 2).

    Flows are given at positions in the two frames: a first estimate is read at the same position, and the result where
    that estimate leads.
    """
    guess = (1 - t) * forward - t * backward
    at_first = warp(forward, -t * guess, cv2.INTER_LINEAR)
    at_second = warp(backward, (1 - t) * guess, cv2.INTER_LINEAR)
    return (1 - t) * at_first - t * at_second


def _bend(
    forward: np.ndarray,
    backward: np.ndarray,
    earlier: np.ndarray | None,
    later: np.ndarray | None,
    velocity: np.ndarray,
    t: float,
) -> np.ndarray:
    """Deviation of paths from straight lines at time t, (h, w, 2), to be added to the flow to either frame.

    The cubic through positions at -1, 0, 1 and 2 (Lagrange) is the line less t (1 - t) / 6 times
    (2 - t) a0 + (1 + t) a1, with a0 and a1 the second differences at 0 and 1. With one of them, both are assumed equal.
    """
    changes = []
    if earlier is not None:
        changes.append((2 - t, warp(forward + earlier, -t * velocity, cv2.INTER_LINEAR)))
    if later is not None:
        changes.append((1 + t, warp(backward + later, (1 - t) * velocity, cv2.INTER_LINEAR)))
    if not changes:
        return np.zeros_like(velocity)
    mean = sum(weight * change for weight, change in changes) / sum(weight for weight, _ in changes)
    return t * (1 - t) / 2 * cv2.GaussianBlur(mean, (0, 0), BENDING)


def warp(values: np.ndarray, flow: np.ndarray, interpolation: int = cv2.INTER_CUBIC) -> np.ndarray:
    """Values at the end of the flow (H, W, 2): float32 of the same shape as `values`."""
    height, width = flow.shape[:2]
    x, y = np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)[:, None]
    moved = flow[..., 0] + x, flow[..., 1] + y
    return cv2.remap(values.astype(np.float32, copy=False), *moved, interpolation, borderMode=cv2.BORDER_REPLICATE)


def visibility(there: np.ndarray, back: np.ndarray) -> np.ndarray:
    """(h, w) float32 in [0, 1]: 1 where the flow there and the flow back cancel out."""
    missed = _length(there + warp(back, there, cv2.INTER_LINEAR))
    allowed = CONSISTENT + 0.05 * _length(there)
    return 1 / (1 + np.exp(np.clip((missed - allowed) / SOFTNESS, -30, 30)))


def _length(flow: np.ndarray) -> np.ndarray:
    return cv2.magnitude(*cv2.split(flow))


def _mix(
    early: np.ndarray, late: np.ndarray, share: np.ndarray, first: np.ndarray, second: np.ndarray, t: float
) -> np.ndarray:
    """The warped frames, with a share (H, W) of the late one, over the plain blend (1 - t) first + t second."""
    first, second = first.astype(np.float32), second.astype(np.float32)
    plain, moved = _difference(first, second), _difference(early, late)
    sure = plain / (plain + NOISE + DOUBT * moved)
    mean = cv2.addWeighted(first, 1 - t, second, t, 0)
    made = mean + (early + (late - early) * share[..., None] - mean) * sure[..., None]
    return np.clip(np.rint(made), 0, 255).astype(np.uint8)


def _difference(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Mean squared color difference around each point, (H, W)."""
    apart = cv2.subtract(one, other)
    return cv2.blur(cv2.transform(cv2.multiply(apart, apart), np.full((1, 3), 1 / 3, np.float32)), (NEAR, NEAR))
