"""Resizing as products with small dense matrices, and fast warping.

`resize_bicubic` is equivalent to `torch.nn.functional.interpolate(mode="bicubic", antialias=True)` (cubic kernel with
a = -0.5, stretched when downscaling), which takes thirty times as long for a small image when decoder or encoder
threads compete for cores; `resize_lanczos` is equivalent to `cv2.resize` with `INTER_LANCZOS4`, which takes three times
as long.
"""

from collections.abc import Callable
from functools import lru_cache

import cv2
import numpy as np

CUBIC_A = -0.5
LANCZOS_SIZE = 4  # zero crossings on each side
LANCZOS_UNIT = 2048  # OpenCV rounds the weights for 8-bit images to fractions of it
BLOCK = 16  # rows computed together

Taps = list[tuple[int, np.ndarray]]  # per output sample: index of the first input sample, and weights (n,) float32
Kernel = Callable[[int, int], Taps]


def resize_bicubic(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H, W, C) float32 -> (height, width, C) float32 for `size` = (width, height); may overshoot the input range."""
    return _resize(image, size, _cubic_taps)


def resize_lanczos(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H, W, C) uint8 -> (height, width, C) uint8 for `size` = (width, height), without antialiasing."""
    return cv2.convertScaleAbs(np.maximum(_resize(image.astype(np.float32), size, _lanczos_taps), 0))


def warp_rgb(
    image: np.ndarray,
    matrix: np.ndarray,
    size: tuple[int, int],
    flags: int = cv2.INTER_LINEAR,
    border: int = cv2.BORDER_CONSTANT,
    value: int = 0,
) -> np.ndarray:
    """`cv2.warpAffine` of an image (H, W, 3) with `value` outside it. Passed through as four channels, for which OpenCV
    has faster code: the same result in half the time."""
    four = cv2.cvtColor(image, cv2.COLOR_RGB2RGBA)
    warped = cv2.warpAffine(four, matrix, size, flags=flags, borderMode=border, borderValue=(value,) * 4)
    return cv2.cvtColor(warped, cv2.COLOR_RGBA2RGB)


def _resize(image: np.ndarray, size: tuple[int, int], kernel: Kernel) -> np.ndarray:
    width, height = size
    columns = _resize_rows(cv2.transpose(image), width, kernel)
    return _resize_rows(cv2.transpose(columns), height, kernel)


def _resize_rows(image: np.ndarray, length: int, kernel: Kernel) -> np.ndarray:
    rows = image.reshape(image.shape[0], -1)
    result = np.empty((length, rows.shape[1]), np.float32)
    for first, start, weights in _blocks(image.shape[0], length, kernel):
        count, taps = weights.shape
        np.matmul(weights, rows[start : start + taps], out=result[first : first + count])
    return result.reshape(length, *image.shape[1:])


@lru_cache(maxsize=16)
def _blocks(length_in: int, length_out: int, kernel: Kernel) -> list[tuple[int, int, np.ndarray]]:
    """The filter in blocks of output samples: the first of them, the first input sample, and weights (outputs, inputs)
    float32: small dense matrices, mostly zeros, which are still faster than a product for each output."""
    taps = kernel(length_in, length_out)
    blocks = []
    for first in range(0, length_out, BLOCK):
        part = taps[first : first + BLOCK]
        start = min(begin for begin, _ in part)
        matrix = np.zeros((len(part), max(begin + len(weights) for begin, weights in part) - start), np.float32)
        for row, (begin, weights) in zip(matrix, part, strict=True):
            row[begin - start : begin - start + len(weights)] = weights
        blocks.append((first, start, matrix))
    return blocks


def _cubic_taps(length_in: int, length_out: int) -> Taps:
    scale = length_in / length_out
    stretch = max(scale, 1.0)
    taps = []
    for index in range(length_out):
        center = (index + 0.5) * scale
        start = max(int(center - 2 * stretch + 0.5), 0)
        stop = min(int(center + 2 * stretch + 0.5), length_in)
        weights = _cubic((np.arange(start, stop) + 0.5 - center) / stretch)
        taps.append((start, (weights / weights.sum()).astype(np.float32)))
    return taps


def _cubic(distance: np.ndarray) -> np.ndarray:
    """Keys' cubic convolution kernel."""
    x = np.abs(distance)
    near = ((CUBIC_A + 2) * x - (CUBIC_A + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * CUBIC_A
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def _lanczos_taps(length_in: int, length_out: int) -> Taps:
    """Beyond the image, the samples at its edge are repeated."""
    taps = []
    for index in range(length_out):
        center = (index + 0.5) * length_in / length_out - 0.5
        samples = np.arange(int(np.floor(center)) - LANCZOS_SIZE + 1, int(np.floor(center)) + LANCZOS_SIZE + 1)
        weights = np.sinc(samples - center) * np.sinc((samples - center) / LANCZOS_SIZE)
        weights = np.rint(weights / weights.sum() * LANCZOS_UNIT) / LANCZOS_UNIT
        inside = samples.clip(0, length_in - 1)
        taps.append((int(inside[0]), np.bincount(inside - inside[0], weights).astype(np.float32)))
    return taps
