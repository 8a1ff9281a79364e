"""Frames in between from optical flow, without learnt weights: DIS (Kroeger et al. 2016) both ways.

Legend: H W pixels, h w those of the smaller pictures on which flow is measured. Pictures are (H, W, 3) uint8 RGB, flows
(h, w, 2) float32 in pixels of that size, x then y.
"""

from collections import deque

import cv2
import numpy as np

LONGEST_SIDE = 1280  # flow of larger pictures is measured on smaller ones and scaled up
SMALL_SIDE = 480  # pictures beyond are looked at half as finely: flow of every pixel would follow the noise
SMOOTHNESS = 40.0  # of the flow, twice OpenCV's default, for the same reason
CONSISTENT = 2.0  # pixels that going there and back may miss by before a point counts as half hidden
SOFTNESS = 0.5  # pixels over which it fades
UNSEEN = 0.01  # weight that hidden points keep: those hidden on both sides are mixed as if seen on both
BENDING = 3.0  # pixels over which the change of speed is smoothed: it is the difference of two flows, noisier than each
NEAR = 15  # pixels around a point in which pictures are compared
NOISE = 8.0  # mean square difference of neighbours, in grey levels, below which it is rather noise than motion
DOUBT = 0.3  # how much what still differs between the moved pictures speaks against them


class FlowMeter:
    """Dense optical flow between two pictures, remembered for the last few pairs of them."""

    KEPT = 3  # before -> first -> second -> after: the next time between needs two of these again

    def __init__(self) -> None:
        self._dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        self._dis.setVariationalRefinementAlpha(SMOOTHNESS)
        self._known: deque[tuple[np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray]]] = deque(maxlen=self.KEPT)

    def both_ways(self, first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Two pictures -> flows (h, w, 2) from the first to the second and back."""
        for one, other, flows in self._known:
            if one is first and other is second:
                return flows
        a, b = _measured(first), _measured(second)
        self._dis.setFinestScale(int(max(a.shape) > SMALL_SIDE))
        flows = self._dis.calc(a, b, None), self._dis.calc(b, a, None)
        self._known.append((first, second, flows))
        return flows


class FlowInterpolator:
    """Both neighbours are moved along the motion to the time between, and mixed where both show the point.

    Each point's path is the cubic through where it is in four pictures, where those are given, else the line through
    two. Where a point is hidden in one neighbour, it is taken from the other; where the neighbours differ by little
    more than noise, they are mixed as they are: moved pictures would show the noise moved.
    """

    name = "dis-flow"

    def __init__(self) -> None:
        self._meter = FlowMeter()

    def between(
        self,
        first: np.ndarray,
        second: np.ndarray,
        t: float,
        before: np.ndarray | None = None,
        after: np.ndarray | None = None,
    ) -> np.ndarray:
        """The picture at time t in (0, 1) between two of equal size; `before` and `after` are one step further."""
        earlier = None if before is None else self._meter.both_ways(before, first)[1]
        forward, backward = self._meter.both_ways(first, second)
        later = None if after is None else self._meter.both_ways(second, after)[0]
        velocity = _velocity(forward, backward, t)
        bend = _bend(forward, backward, earlier, later, velocity, t)
        to_first, to_second = bend - t * velocity, bend + (1 - t) * velocity
        # A point of the second picture that is not found in the first has come into sight: only the second shows it.
        seen_first = warp(visibility(backward, forward), to_second, cv2.INTER_LINEAR)
        seen_second = warp(visibility(forward, backward), to_first, cv2.INTER_LINEAR)
        early_weight, late_weight = (1 - t) * (seen_first + UNSEEN), t * (seen_second + UNSEEN)
        share = late_weight / (early_weight + late_weight)
        early, late = (
            warp(picture, enlarge(flow, first.shape)) for picture, flow in ((first, to_first), (second, to_second))
        )
        return _mix(early, late, _resize(share, first.shape), first, second, t)


def _measured(picture: np.ndarray) -> np.ndarray:
    """Grey (h, w) uint8, no side longer than LONGEST_SIDE."""
    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    scale = LONGEST_SIDE / max(grey.shape)
    return grey if scale >= 1 else cv2.resize(grey, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)


def _resize(field: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return field if field.shape[:2] == shape[:2] else cv2.resize(field, (shape[1], shape[0]))


def enlarge(flow: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A flow (h, w, 2) as one of pictures (H, W), in their pixels."""
    height, width = flow.shape[:2]
    if (height, width) == shape[:2]:
        return flow
    return _resize(flow, shape) * np.float32([shape[1] / width, shape[0] / height])


def _velocity(forward: np.ndarray, backward: np.ndarray, t: float) -> np.ndarray:
    """Motion from the first picture to the second of what is at each point at time t, (h, w, 2).

    Flows start at points of the pictures: a first guess is read at the same place, then where that guess leads.
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
    """How far paths at time t lie from straight ones, (h, w, 2), to be added to the flow to either picture.

    The cubic through positions at -1, 0, 1 and 2 (Lagrange) is the line less t (1 - t) / 6 times
    (2 - t) a0 + (1 + t) a1, with a0 and a1 the second differences at 0 and 1. With one of them, both are taken equal.
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
    """What lies at the end of the flow (H, W, 2): float32 of the same shape as `values`."""
    height, width = flow.shape[:2]
    x, y = np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)[:, None]
    moved = flow[..., 0] + x, flow[..., 1] + y
    return cv2.remap(values.astype(np.float32, copy=False), *moved, interpolation, borderMode=cv2.BORDER_REPLICATE)


def visibility(there: np.ndarray, back: np.ndarray) -> np.ndarray:
    """(h, w) float32 in [0, 1]: 1 where the flow there and the flow back from there cancel."""
    missed = _length(there + warp(back, there, cv2.INTER_LINEAR))
    allowed = CONSISTENT + 0.05 * _length(there)
    return 1 / (1 + np.exp(np.clip((missed - allowed) / SOFTNESS, -30, 30)))


def _length(flow: np.ndarray) -> np.ndarray:
    return cv2.magnitude(*cv2.split(flow))


def _mix(
    early: np.ndarray, late: np.ndarray, share: np.ndarray, first: np.ndarray, second: np.ndarray, t: float
) -> np.ndarray:
    """The moved pictures, with `share` (H, W) of the late one, over the plain mean (1 - t) first + t second."""
    first, second = first.astype(np.float32), second.astype(np.float32)
    plain, moved = _difference(first, second), _difference(early, late)
    sure = plain / (plain + NOISE + DOUBT * moved)
    mean = cv2.addWeighted(first, 1 - t, second, t, 0)
    made = mean + (early + (late - early) * share[..., None] - mean) * sure[..., None]
    return np.clip(np.rint(made), 0, 255).astype(np.uint8)


def _difference(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Mean square difference of colours around each point, (H, W)."""
    apart = cv2.subtract(one, other)
    return cv2.blur(cv2.transform(cv2.multiply(apart, apart), np.full((1, 3), 1 / 3, np.float32)), (NEAR, NEAR))
