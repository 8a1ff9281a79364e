"""A frame given as RGB and edited in RGB, so that pixels outside the edit are unchanged."""

import cv2
import numpy as np

from latentsync.media.color import MATRIX_BT709, RANGE_LIMITED, ColorTags
from latentsync.media.frame import VideoFrame

LUMA_WEIGHTS = np.array([[0.2126], [0.7152], [0.0722]], np.float32)  # BT.709
RGB_TAGS = ColorTags(MATRIX_BT709, RANGE_LIMITED, MATRIX_BT709, MATRIX_BT709)  # of its planes when it is encoded


class RGBFrame(VideoFrame):
    """A `VideoFrame` over an RGB array; it is converted to planar YUV only for encoding and interpolation."""

    __slots__ = ("_i420", "_pixels")

    def __init__(self, pixels: np.ndarray) -> None:
        """`pixels`: uint8 (H, W, 3), not copied; odd sides are padded to even by repeating the edge."""
        height, width = pixels.shape[:2]
        if height % 2 or width % 2:
            pixels = cv2.copyMakeBorder(pixels, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
        self._pixels = pixels
        self.height, self.width = pixels.shape[:2]
        self.color = RGB_TAGS
        self._i420: np.ndarray | None = None

    @property
    def i420(self) -> np.ndarray:
        if self._i420 is None:
            self._i420 = VideoFrame.from_rgb(self._pixels, self.color).i420
        return self._i420

    @property
    def planes(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return VideoFrame(self.i420, self.color).planes

    @property
    def is_gray(self) -> bool:
        red, green, blue = (self._pixels[..., channel] for channel in range(3))
        return np.array_equal(red, green) and np.array_equal(green, blue)

    def rgb(self, max_side: int | None = None) -> np.ndarray:
        longest = max(self.width, self.height)
        if max_side is None or longest <= max_side:
            return self._pixels
        size = (max(1, round(self.width * max_side / longest)), max(1, round(self.height * max_side / longest)))
        return cv2.resize(self._pixels, size, interpolation=cv2.INTER_AREA)

    def crop_rgb(self, x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
        if not (0 <= x0 < x1 <= self.width and 0 <= y0 < y1 <= self.height):
            raise ValueError(f"box {(x0, y0, x1, y1)} is not inside {self.width}x{self.height}")
        return np.ascontiguousarray(self._pixels[y0:y1, x0:x1])

    def blend_rgb(self, x0: int, y0: int, rgb: np.ndarray, alpha: np.ndarray, luma_only: bool = False) -> "RGBFrame":
        if rgb.shape[:2] != alpha.shape or rgb.shape[2] != 3:
            raise ValueError(f"rgb {rgb.shape} and alpha {alpha.shape} do not match")
        if luma_only:
            rgb = np.repeat(rgb.astype(np.float32) @ LUMA_WEIGHTS, 3, axis=2)
        pixels = self._pixels.copy()
        left, top = max(x0, 0), max(y0, 0)
        right, bottom = min(x0 + alpha.shape[1], self.width), min(y0 + alpha.shape[0], self.height)
        if left < right and top < bottom:
            box = slice(top - y0, bottom - y0), slice(left - x0, right - x0)
            old = pixels[top:bottom, left:right].astype(np.float32)
            share = np.nan_to_num(np.clip(alpha[box], 0.0, 1.0))[..., None]
            mixed = old + share * (np.nan_to_num(rgb[box].astype(np.float32)) - old)
            pixels[top:bottom, left:right] = np.clip(np.rint(mixed), 0, 255).astype(np.uint8)
        return RGBFrame(pixels)
