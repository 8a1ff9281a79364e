"""Color tags of planar YUV frames, and the exact conversion to and from RGB.

Codes are those of ITU-T H.273, as libav uses them: matrix 1 = BT.709, 5/6 = BT.601, 9 = BT.2020, 2 = unspecified;
range 1 = limited (16..235), 2 = full (0..255), 0 = unspecified.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

UNSPECIFIED = 2
RANGE_LIMITED = 1
RANGE_FULL = 2
MATRIX_BT709 = 1
MATRIX_BT601 = 6

# Luma weights (Kr, Kb) per matrix code.
_LUMA_WEIGHTS = {
    1: (0.2126, 0.0722),
    4: (0.30, 0.11),
    5: (0.299, 0.114),
    6: (0.299, 0.114),
    7: (0.212, 0.087),
    9: (0.2627, 0.0593),
    10: (0.2627, 0.0593),
}


@dataclass(frozen=True)
class ColorTags:
    """How the samples of a video are interpreted (H.273 codes). The defaults mean "unspecified"."""

    matrix: int = UNSPECIFIED
    range: int = 0
    primaries: int = UNSPECIFIED
    transfer: int = UNSPECIFIED

    @property
    def is_full_range(self) -> bool:
        return self.range == RANGE_FULL

    def resolved_matrix(self, width: int, height: int) -> int:
        """The matrix code for conversion; if the file states none, BT.709 for HD and BT.601 below, as in players."""
        if self.matrix in _LUMA_WEIGHTS:
            return self.matrix
        return MATRIX_BT709 if width >= 1280 or height > 576 else MATRIX_BT601


@lru_cache(maxsize=64)
def yuv_to_rgb_matrix(matrix: int, full_range: bool) -> np.ndarray:
    """(3, 4) float32 affine map from 8-bit (Y, Cb, Cr) to 8-bit (R, G, B), both 0..255. `matrix` must be resolved."""
    forward = _rgb_to_yuv_float64(matrix, full_range)
    linear = np.linalg.inv(forward[:, :3])
    return _frozen(np.column_stack([linear, -linear @ forward[:, 3]]))


@lru_cache(maxsize=64)
def rgb_to_yuv_matrix(matrix: int, full_range: bool) -> np.ndarray:
    """(3, 4) float32 affine map from 8-bit (R, G, B) to 8-bit (Y, Cb, Cr); the inverse of `yuv_to_rgb_matrix`."""
    return _frozen(_rgb_to_yuv_float64(matrix, full_range))


def _rgb_to_yuv_float64(matrix: int, full_range: bool) -> np.ndarray:
    """H.273 equations 38-40 with 8-bit scaling (luma 219 or 255 steps, chroma 224 or 255)."""
    kr, kb = _LUMA_WEIGHTS[matrix]
    luma = np.array([kr, 1.0 - kr - kb, kb])
    blue = (np.array([0.0, 0.0, 1.0]) - luma) / (2.0 * (1.0 - kb))
    red = (np.array([1.0, 0.0, 0.0]) - luma) / (2.0 * (1.0 - kr))
    luma_scale, chroma_scale, black = (1.0, 1.0, 0.0) if full_range else (219.0 / 255.0, 224.0 / 255.0, 16.0)
    linear = np.stack([luma * luma_scale, blue * chroma_scale, red * chroma_scale])
    return np.column_stack([linear, [black, 128.0, 128.0]])


def _frozen(matrix: np.ndarray) -> np.ndarray:
    matrix = np.ascontiguousarray(matrix, dtype=np.float32)
    matrix.setflags(write=False)
    return matrix
