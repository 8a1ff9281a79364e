"""A frame as 8-bit planar YUV 4:2:0, so that unedited samples are never converted."""

import cv2
import numpy as np

from latentsync.media.color import ColorTags, rgb_to_yuv_matrix, yuv_to_rgb_matrix

GRAY_TOLERANCE = 2  # of chroma samples


class VideoFrame:
    """An immutable frame: planes Y (H, W), U and V (H/2, W/2), uint8, in the source's own matrix and range.

    H and W are even. Each 2x2 cell of luma shares its chroma: conversion to RGB repeats it and `blend_rgb` averages it,
    so that the two are inverse to each other up to rounding.
    """

    __slots__ = ("_data", "color", "height", "width")

    def __init__(self, data: np.ndarray, color: ColorTags | None = None) -> None:
        """`data`: contiguous uint8 (3H/2, W): the Y plane, then U, then V (the I420 layout). It is not copied."""
        rows, width = data.shape
        if data.dtype != np.uint8 or not data.flags.c_contiguous or rows % 3 or width % 2:
            raise ValueError(f"expected contiguous uint8 I420 with even sides, got {data.dtype} {data.shape}")
        self._data = data
        self._data.setflags(write=False)
        self.width = width
        self.height = rows // 3 * 2
        self.color = color or ColorTags()

    @classmethod
    def from_planes(cls, y: np.ndarray, u: np.ndarray, v: np.ndarray, color: ColorTags | None = None) -> "VideoFrame":
        """Copy planes y (H, W), u and v (ceil(H/2), ceil(W/2)), uint8; odd sides are padded to even with their edge."""
        return cls(join_planes(y, u, v), color)

    @classmethod
    def from_rgb(cls, rgb: np.ndarray, color: ColorTags | None = None) -> "VideoFrame":
        """A frame from uint8 or float RGB (H, W, 3), 0..255, H and W even."""
        height, width = rgb.shape[:2]
        blank = cls(np.full((height // 2 * 3, width), 128, np.uint8), color)
        return blank.blend_rgb(0, 0, rgb, np.ones((height, width), np.float32))

    @property
    def i420(self) -> np.ndarray:
        """All samples, read-only uint8 (3H/2, W): Y rows, then the U plane, then the V plane."""
        return self._data

    @property
    def planes(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Read-only views of Y (H, W), U and V (H/2, W/2)."""
        return split_planes(self._data)

    @property
    def is_gray(self) -> bool:
        """Whether the whole frame is black and white, up to encoding noise."""
        chroma = self._data[self.height :]
        return bool(chroma.max() <= 128 + GRAY_TOLERANCE and chroma.min() >= 128 - GRAY_TOLERANCE)

    def rgb(self, max_side: int | None = None) -> np.ndarray:
        """The frame as uint8 RGB (H', W', 3), scaled down if a side exceeds `max_side`."""
        y, u, v = self.planes
        longest = max(self.width, self.height)
        if max_side is None or longest <= max_side:
            return self.crop_rgb(0, 0, self.width, self.height)
        size = (max(1, round(self.width * max_side / longest)), max(1, round(self.height * max_side / longest)))
        scaled = cv2.merge([_shrink(y, size), _shrink(u, size), _shrink(v, size)])
        return cv2.transform(scaled, self._yuv_to_rgb())

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        """`np.asarray(frame)` is `frame.rgb()`."""
        rgb = self.rgb()
        return rgb if dtype is None else rgb.astype(dtype)

    def crop_rgb(self, x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
        """The box [x0, x1) x [y0, y1) as uint8 RGB (y1 - y0, x1 - x0, 3). Raises ValueError outside the frame."""
        if not (0 <= x0 < x1 <= self.width and 0 <= y0 < y1 <= self.height):
            raise ValueError(f"box {(x0, y0, x1, y1)} is not inside {self.width}x{self.height}")
        # Convert whole chroma cells, then crop the odd border.
        left, top, right, bottom = x0 & ~1, y0 & ~1, x1 + x1 % 2, y1 + y1 % 2
        y, u, v = self.planes
        size = (right - left, bottom - top)
        cells = slice(top // 2, bottom // 2), slice(left // 2, right // 2)
        chroma = [cv2.resize(plane[cells], size, interpolation=cv2.INTER_NEAREST) for plane in (u, v)]
        yuv = cv2.merge([y[top:bottom, left:right], *chroma])
        rgb = cv2.transform(yuv, self._yuv_to_rgb())
        return np.ascontiguousarray(rgb[y0 - top : y1 - top, x0 - left : x1 - left])

    def blend_rgb(self, x0: int, y0: int, rgb: np.ndarray, alpha: np.ndarray, luma_only: bool = False) -> "VideoFrame":
        """Blend `rgb` over the box whose upper left corner is (x0, y0); returns a new frame.

        `rgb`: float or uint8 (h, w, 3), 0..255. `alpha`: float (h, w), 0 keeps the frame, 1 replaces it. The box may
        extend outside the frame and is cropped. Luma samples with alpha 0, and chroma samples whose whole 2x2 cell
        has alpha 0, keep their exact values. Blending is done on Y, Cb, Cr: the same mix as in (gamma) RGB, because
        the map is affine; a chroma sample is the mean of its cell with each pixel weighted by its own alpha.
        `luma_only` keeps all chroma samples, so that a black-and-white frame stays one.
        """
        if rgb.shape[:2] != alpha.shape or rgb.shape[2] != 3:
            raise ValueError(f"rgb {rgb.shape} and alpha {alpha.shape} do not match")
        data = self._data.copy()
        planes = split_planes(data)[:1] if luma_only else split_planes(data)
        to_yuv = rgb_to_yuv_matrix(self.color.resolved_matrix(self.width, self.height), self.color.is_full_range)
        blend_planes(planes, x0, y0, rgb, alpha, to_yuv)
        return VideoFrame(data, self.color)

    def _yuv_to_rgb(self) -> np.ndarray:
        """(3, 4) for `cv2.transform`, which computes 8-bit images in fixed point: within one step of the exact result
        in a twentieth of the time that float32 takes."""
        return yuv_to_rgb_matrix(self.color.resolved_matrix(self.width, self.height), self.color.is_full_range)


def join_planes(y: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Copy planes y (H, W), u and v (ceil(H/2), ceil(W/2)) to an I420 array (3H/2, W), padded to even sides."""
    height, width = y.shape
    data = np.empty(((height + height % 2) // 2 * 3, width + width % 2), y.dtype)
    planes = split_planes(data)
    planes[0][:height, :width] = y
    if width % 2:
        planes[0][:height, width] = y[:, -1]
    if height % 2:
        planes[0][height] = planes[0][height - 1]
    planes[1][:] = u
    planes[2][:] = v
    return data


def split_planes(data: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Views of the Y, U and V planes of an I420 array (3H/2, W)."""
    height, width = data.shape[0] // 3 * 2, data.shape[1]
    chroma = data[height:].reshape(2, height // 2, width // 2)
    return data[:height], chroma[0], chroma[1]


def blend_planes(
    planes: tuple[np.ndarray, ...], x0: int, y0: int, rgb: np.ndarray, alpha: np.ndarray, to_yuv: np.ndarray
) -> None:
    """Blend `rgb` (h, w, 3) into writable planes (Y, U, V, or Y alone) of uint8 or uint16, in place.

    `alpha` and the position are those of `VideoFrame.blend_rgb`; `to_yuv` (3, 4) maps RGB to samples.
    """
    frame_height, frame_width = planes[0].shape
    x1, y1 = min(x0 + alpha.shape[1], frame_width), min(y0 + alpha.shape[0], frame_height)
    left, top = max(x0, 0), max(y0, 0)
    if left >= x1 or top >= y1:
        return
    box = slice(top - y0, y1 - y0), slice(left - x0, x1 - x0)
    # A border with alpha 0 completes the chroma cells at odd edges.
    border = (top % 2, y1 % 2, left % 2, x1 % 2)
    alpha = _numbers(np.clip(alpha[box], 0.0, 1.0, dtype=np.float32))
    rgb = rgb[box].astype(np.float32, copy=False)
    if any(border):
        alpha = cv2.copyMakeBorder(alpha, *border, cv2.BORDER_CONSTANT, value=0)
        rgb = cv2.copyMakeBorder(rgb, *border, cv2.BORDER_REPLICATE)
    left, top = left - left % 2, top - top % 2
    height, width = alpha.shape
    cells = (width // 2, height // 2)
    new = cv2.transform(np.ascontiguousarray(rgb), to_yuv)
    kept = cv2.subtract(1.0, alpha)
    # old * (1 - alpha) + new * alpha, which is exactly old where alpha is 0.
    luma, *chroma = (_numbers(cv2.multiply(plane, alpha)) for plane in cv2.split(new))
    _mix(planes[0][top : top + height, left : left + width], kept, luma)
    # Both terms are averaged over each cell, so that each pixel counts by its own alpha.
    kept = cv2.resize(kept, cells, interpolation=cv2.INTER_AREA)
    for plane, weighted in zip(planes[1:], chroma, strict=False):
        part = plane[top // 2 : top // 2 + cells[1], left // 2 : left // 2 + cells[0]]
        _mix(part, kept, cv2.resize(weighted, cells, interpolation=cv2.INTER_AREA))


def _mix(old: np.ndarray, kept: np.ndarray, added: np.ndarray) -> None:
    """`old` (uint8, or uint16 for 10 bits) * kept + added, rounded, written to `old`."""
    mixed = cv2.multiply(old, kept, dtype=cv2.CV_32F)
    if old.dtype == np.uint8:
        old[:] = cv2.add(mixed, added, dtype=cv2.CV_8U)
    else:
        old[:] = cv2.min(cv2.add(mixed, added, dtype=cv2.CV_16U), 1023)


def _numbers(image: np.ndarray) -> np.ndarray:
    """Set NaN to 0 in place (float32), so that it cannot spread; returns `image`."""
    cv2.patchNaNs(image, 0.0)
    return image


def _shrink(plane: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize a plane to `size` (width, height) without aliasing: halve by area, then interpolate."""
    while plane.shape[1] >= 2 * size[0] and plane.shape[0] >= 2 * size[1]:
        plane = cv2.resize(plane, (plane.shape[1] // 2, plane.shape[0] // 2), interpolation=cv2.INTER_AREA)
    if (plane.shape[1], plane.shape[0]) != size:
        plane = cv2.resize(plane, size, interpolation=cv2.INTER_LINEAR)
    return plane
