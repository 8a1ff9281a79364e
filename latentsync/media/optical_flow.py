"""Frames in between from optical flow, without learnt weights: DIS (Kroeger et al. 2016) both ways.

Legend: H W pixels. Pictures are (H, W, 3) uint8 RGB, flows (H, W, 2) float32 in pixels, x then y.
"""

import cv2
import numpy as np

LONGEST_SIDE = 1280  # flow of larger pictures is measured on smaller ones and scaled up
CONSISTENT = 1.0  # pixels that going there and back may miss by before a point counts as half hidden
SOFTNESS = 0.5  # pixels over which it fades
NEAR = 15  # pixels around a point in which it is judged whether moving the pictures brings them together


class FlowInterpolator:
    """Both neighbours are moved along the flow to the time between, and mixed where both show the point.

    Where a point is hidden in one neighbour, it is taken from the other; where the flows contradict each other both
    ways, the pictures are mixed as they are.
    """

    name = "dis-flow"

    def __init__(self) -> None:
        self._dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        self._dis.setFinestScale(0)
        self._pair: tuple[np.ndarray, np.ndarray] | None = None
        self._flows: tuple[np.ndarray, np.ndarray] | None = None

    def between(self, first: np.ndarray, second: np.ndarray, t: float) -> np.ndarray:
        """The picture at time t in (0, 1) between two of equal size; flows of the last pair are kept for the next t."""
        if self._pair is None or self._pair[0] is not first or self._pair[1] is not second:
            self._flows = self._measure(first, second)
            self._pair = (first, second)
        forward, backward = self._flows
        # Flow from the time between to either side, of linear motion (Jiang et al. 2018, "Super SloMo", equation 4).
        to_first = -(1 - t) * t * forward + t * t * backward
        to_second = (1 - t) ** 2 * forward - t * (1 - t) * backward
        early, late = _warp(first, to_first), _warp(second, to_second)
        seen_first = _warp(_visibility(forward, backward), to_first)
        seen_second = _warp(_visibility(backward, forward), to_second)
        return _mix(early, late, (1 - t) * seen_first, t * seen_second, first, second, t)

    def _measure(self, first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        scale = min(1.0, LONGEST_SIDE / max(first.shape[:2]))
        grey = [cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY) for picture in (first, second)]
        if scale < 1:
            grey = [cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) for picture in grey]
        flows = self._dis.calc(grey[0], grey[1], None), self._dis.calc(grey[1], grey[0], None)
        size = (first.shape[1], first.shape[0])
        if scale < 1:
            factors = np.float32([size[0] / grey[0].shape[1], size[1] / grey[0].shape[0]])
            flows = tuple(cv2.resize(flow, size) * factors for flow in flows)
        return flows


def _grid(shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.meshgrid(np.arange(shape[1], dtype=np.float32), np.arange(shape[0], dtype=np.float32))
    return x, y


def _warp(values: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """What lies at the end of the flow: float32 of the same shape as `values`."""
    x, y = _grid(flow.shape)
    moved = x + flow[..., 0], y + flow[..., 1]
    return cv2.remap(values.astype(np.float32), *moved, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)


def _visibility(there: np.ndarray, back: np.ndarray) -> np.ndarray:
    """(H, W) float32 in [0, 1]: 1 where the flow there and the flow back from there cancel."""
    missed = np.linalg.norm(there + _warp(back, there), axis=-1)
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
