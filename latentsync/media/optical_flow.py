"""Frames in between from optical flow, without learnt weights: DIS (Kroeger et al. 2016) both ways.

Legend: H W pixels. Pictures are (H, W, 3) uint8 RGB, flows (H, W, 2) float32 in pixels, x then y.
"""

import cv2
import numpy as np

LONGEST_SIDE = 1280  # flow of larger pictures is measured on smaller ones and scaled up
SMALL_SIDE = 480  # pictures beyond are looked at half as finely: flow of every pixel would follow the noise
SMOOTHNESS = 40.0  # of the flow, twice OpenCV's default, for the same reason
CONSISTENT = 1.0  # pixels that going there and back may miss by before a point counts as half hidden
SOFTNESS = 0.5  # pixels over which it fades
NEAR = 31  # pixels around a point in which it is judged whether moving the pictures brings them together


class FlowMeter:
    """Dense optical flow between two grey pictures."""

    def __init__(self) -> None:
        self._dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        self._dis.setVariationalRefinementAlpha(SMOOTHNESS)

    def both_ways(self, first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Two pictures (H, W) uint8 -> flows (H, W, 2) from the first to the second and back."""
        height, width = first.shape
        scale = min(1.0, LONGEST_SIDE / max(height, width))
        self._dis.setFinestScale(int(max(height, width) > SMALL_SIDE))
        if scale == 1:
            return self._dis.calc(first, second, None), self._dis.calc(second, first, None)
        first, second = (cv2.resize(p, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) for p in (first, second))
        factors = np.float32([width / first.shape[1], height / first.shape[0]])
        flows = self._dis.calc(first, second, None), self._dis.calc(second, first, None)
        return tuple(cv2.resize(flow, (width, height)) * factors for flow in flows)


class FlowInterpolator:
    """Both neighbours are moved along the flow to the time between, and mixed where both show the point.

    Where a point is hidden in one neighbour, it is taken from the other; where the flows contradict each other both
    ways, the pictures are mixed as they are.
    """

    name = "dis-flow"

    def __init__(self) -> None:
        self._meter = FlowMeter()
        self._pair: tuple[np.ndarray, np.ndarray] | None = None
        self._flows: tuple[np.ndarray, np.ndarray] | None = None

    def between(self, first: np.ndarray, second: np.ndarray, t: float) -> np.ndarray:
        """The picture at time t in (0, 1) between two of equal size; flows of the last pair are kept for the next t."""
        if self._pair is None or self._pair[0] is not first or self._pair[1] is not second:
            self._flows = self._meter.both_ways(_grey(first), _grey(second))
            self._pair = (first, second)
        forward, backward = self._flows
        # Flow from the time between to either side, of linear motion (Jiang et al. 2018, "Super SloMo", equation 4).
        to_first = -(1 - t) * t * forward + t * t * backward
        to_second = (1 - t) ** 2 * forward - t * (1 - t) * backward
        early, late = warp(first, to_first), warp(second, to_second)
        seen_first = warp(visibility(forward, backward), to_first)
        seen_second = warp(visibility(backward, forward), to_second)
        return _mix(early, late, (1 - t) * seen_first, t * seen_second, first, second, t)


def _grey(picture: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)


def _grid(shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.meshgrid(np.arange(shape[1], dtype=np.float32), np.arange(shape[0], dtype=np.float32))
    return x, y


def warp(values: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """What lies at the end of the flow (H, W, 2): float32 of the same shape as `values`."""
    x, y = _grid(flow.shape)
    moved = x + flow[..., 0], y + flow[..., 1]
    return cv2.remap(values.astype(np.float32), *moved, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)


def visibility(there: np.ndarray, back: np.ndarray) -> np.ndarray:
    """(H, W) float32 in [0, 1]: 1 where the flow there and the flow back from there cancel."""
    missed = np.linalg.norm(there + warp(back, there), axis=-1)
    allowed = CONSISTENT + 0.05 * np.linalg.norm(there, axis=-1)
    return 1 / (1 + np.exp(np.clip((missed - allowed) / SOFTNESS, -30, 30)))


def _mix(
    early: np.ndarray,
    late: np.ndarray,
    weight_early: np.ndarray,
    weight_late: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    t: float,
) -> np.ndarray:
    total = weight_early + weight_late
    share = (weight_late / np.maximum(total, 1e-6))[..., None]
    moved = early + (late - early) * share
    sure = np.clip(total * 4, 0, 1) * _gain(early, late, first, second)  # both hidden: nothing to go by
    plain = first.astype(np.float32) * (1 - t) + second.astype(np.float32) * t
    return np.clip(np.rint(plain + (moved - plain) * sure[..., None]), 0, 255).astype(np.uint8)


def _gain(early: np.ndarray, late: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(H, W) in [0, 1]: how much better the moved pictures agree with each other than the pictures as they are.

    Where they do not, the difference is noise or change of light, which the mean of both shows better.
    """
    moved, plain = _disagreement(early, late), _disagreement(first, second)
    return np.clip((plain - moved) / (plain + 1e-3), 0, 1)


def _disagreement(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Mean square difference around each point, (H, W)."""
    return cv2.blur(np.square(one.astype(np.float32) - other).mean(axis=-1), (NEAR, NEAR))
