"""Antialiased bicubic resizing in numpy.

Equivalent to `torch.nn.functional.interpolate(mode="bicubic", antialias=True)` (cubic kernel with a = -0.5, stretched
when downscaling), which takes thirty times as long for a small image when decoder or encoder threads compete for cores.
"""

from functools import lru_cache

import cv2
import numpy as np

CUBIC_A = -0.5
BLOCK = 16  # rows computed together


def resize_bicubic(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H, W, C) float32 -> (height, width, C) float32 for `size` = (width, height); may overshoot the input range."""
    width, height = size
    columns = _resize_rows(cv2.transpose(image), width)
    return _resize_rows(cv2.transpose(columns), height)


def _resize_rows(image: np.ndarray, length: int) -> np.ndarray:
    rows = image.reshape(image.shape[0], -1)
    result = np.empty((length, rows.shape[1]), np.float32)
    for first, start, weights in _blocks(image.shape[0], length):
        count, taps = weights.shape
        np.matmul(weights, rows[start : start + taps], out=result[first : first + count])
    return result.reshape(length, *image.shape[1:])


@lru_cache(maxsize=16)
def _blocks(length_in: int, length_out: int) -> list[tuple[int, int, np.ndarray]]:
    """The filter in blocks of output samples: the first of them, the first input sample, and weights (outputs, inputs)
    float32: small dense matrices, mostly zeros, which are still faster than a product for each output."""
    taps = _taps(length_in, length_out)
    blocks = []
    for first in range(0, length_out, BLOCK):
        part = taps[first : first + BLOCK]
        start = min(begin for begin, _ in part)
        matrix = np.zeros((len(part), max(begin + len(weights) for begin, weights in part) - start), np.float32)
        for row, (begin, weights) in zip(matrix, part, strict=True):
            row[begin - start : begin - start + len(weights)] = weights
        blocks.append((first, start, matrix))
    return blocks


def _taps(length_in: int, length_out: int) -> list[tuple[int, np.ndarray]]:
    """Filter taps per output sample: index of the first input sample, and weights (n,) float32 that sum to 1."""
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
