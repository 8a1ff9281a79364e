"""A frame with 10-bit samples, for output at that depth; networks see its 8-bit version."""

from functools import lru_cache

import numpy as np

from latentsync.media.color import ColorTags, rgb_to_yuv_matrix
from latentsync.media.frame import VideoFrame, blend_planes, split_planes
from latentsync.media.tone_map import HDR_TRANSFERS, to_hdr


class DeepFrame(VideoFrame):
    """A `VideoFrame` with a 10-bit version of its samples, in which the edits are made as well.

    Args:
        shown: the frame in 8 bits; of HDR samples, tone-mapped to SDR.
        samples: contiguous uint16 (3H/2, W), 0..1023, in the layout of `VideoFrame`. Not copied.
        color: tags of `samples`.
    """

    __slots__ = ("deep_color", "samples")

    def __init__(self, shown: VideoFrame, samples: np.ndarray, color: ColorTags) -> None:
        super().__init__(shown.i420, shown.color)
        if samples.dtype != np.uint16 or samples.shape != shown.i420.shape or not samples.flags.c_contiguous:
            raise ValueError(f"expected contiguous uint16 {shown.i420.shape}, got {samples.dtype} {samples.shape}")
        self.samples, self.deep_color = samples, color
        self.samples.setflags(write=False)

    def blend_rgb(self, x0: int, y0: int, rgb: np.ndarray, alpha: np.ndarray, luma_only: bool = False) -> "DeepFrame":
        shown = super().blend_rgb(x0, y0, rgb, alpha, luma_only)
        if self.deep_color.transfer in HDR_TRANSFERS:
            rgb = to_hdr(rgb, self.deep_color.transfer)
        samples = self.samples.copy()
        matrix = rgb_to_yuv10_matrix(
            self.deep_color.resolved_matrix(self.width, self.height), self.deep_color.is_full_range
        )
        planes = split_planes(samples)
        blend_planes(planes[:1] if luma_only else planes, x0, y0, rgb, alpha, matrix)
        return DeepFrame(shown, samples, self.deep_color)


@lru_cache(maxsize=64)
def rgb_to_yuv10_matrix(matrix: int, full_range: bool) -> np.ndarray:
    """(3, 4) float32 affine map from (R, G, B) 0..255 to 10-bit (Y, Cb, Cr). `matrix` must be resolved."""
    eight = rgb_to_yuv_matrix(matrix, full_range).astype(np.float64)
    linear = eight[:, :3] * (1023 / 255 if full_range else 4)
    return np.column_stack([linear, 4 * eight[:, 3]]).astype(np.float32)
