"""Conversion of decoded frames, in any pixel format and orientation, to upright 8-bit planar YUV 4:2:0."""

from collections.abc import Iterator

import av
import cv2
import numpy as np
from av.video.plane import VideoPlane
from av.video.reformatter import Interpolation, VideoReformatter

from latentsync.media.codecs import TEN_BIT
from latentsync.media.color import MATRIX_BT709, RANGE_FULL, RANGE_LIMITED, UNSPECIFIED, ColorTags
from latentsync.media.deep_frame import DeepFrame
from latentsync.media.frame import VideoFrame, join_planes
from latentsync.media.tone_map import HDR_TRANSFERS, SDR_TAGS, ToneMapper, is_hdr

# The largest side that common H.264 decoders play; larger still images are scaled down to it.
MAX_STILL_SIDE = 4096

_DIRECT_FORMATS = frozenset({"yuv420p", "yuvj420p"})
_SCALING = Interpolation.BICUBIC | Interpolation.ACCURATE_RND

# EXIF orientation codes -> (swap axes first, flip rows, flip columns), which brings the frame upright.
_ORIENTATIONS = {
    1: (False, False, False),
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}
# Counter-clockwise degrees of a display matrix -> EXIF orientation code.
ORIENTATION_OF_ROTATION = {0: 1, 90: 8, 180: 3, 270: 6}


def has_alpha(frame: av.VideoFrame) -> bool:
    """Whether the pixel format carries transparency (palettes may)."""
    return frame.format.has_palette or any(component.is_alpha for component in frame.format.components)


def bit_depth(frame: av.VideoFrame) -> int:
    """Bits per sample of the deepest component."""
    return max((component.bits for component in frame.format.components), default=8)


def converted_tags(frame: av.VideoFrame, keep_hdr: bool = False) -> ColorTags:
    """The color tags of the planes that `FrameConverter` makes from frames like this one.

    YUV keeps its matrix and range. RGB and HDR become BT.709, limited range. Gray keeps its samples, which are full
    range unless tagged otherwise (libav's convention).
    """
    if is_hdr(frame) and not keep_hdr:
        return SDR_TAGS
    primaries, transfer = int(frame.color_primaries), int(frame.color_trc)
    if _is_rgb(frame):
        known = [MATRIX_BT709 if code in (0, UNSPECIFIED) else code for code in (primaries, transfer)]
        return ColorTags(MATRIX_BT709, RANGE_LIMITED, *known)
    matrix, color_range = int(frame.colorspace), int(frame.color_range)
    if frame.format.name.startswith("yuvj") or (color_range == 0 and frame.format.name.startswith("gray")):
        color_range = RANGE_FULL
    return ColorTags(matrix or UNSPECIFIED, color_range, primaries or UNSPECIFIED, transfer or UNSPECIFIED)


def delivered_size(width: int, height: int, orientation: int = 1, is_still: bool = False) -> tuple[int, int]:
    """(width, height) of converted frames: upright, padded to even, still images scaled to at most 4096."""
    width, height = _scaled_size(width, height, is_still)
    width, height = width + width % 2, height + height % 2
    return (height, width) if _ORIENTATIONS[orientation][0] else (width, height)


class FrameConverter:
    """Converts all frames of one file to the size, orientation and color tags of its first one.

    - 4:2:0 8-bit samples are copied; other YUV is converted once by swscale and keeps its matrix and range.
    - HDR (PQ, HLG) is tone-mapped to SDR.
    - Transparent frames are composed over black, as players do.
    - Odd sides are padded to even by repeating the edge. Still images beyond 4096 on a side are scaled down.
    - A frame of another size than the first (a stream that changes resolution) is scaled to it.
    """

    def __init__(
        self,
        width: int,
        height: int,
        orientation: int,
        color: ColorTags,
        is_still: bool = False,
        deep: ColorTags | None = None,
    ) -> None:
        """
        Args:
            width, height: of the first coded frame, before orientation is applied.
            orientation: EXIF code 1..8.
            color: tags of the converted frames.
            is_still: whether the size is limited.
            deep: tags of the 10-bit samples of `DeepFrame`s to return; None for 8-bit frames. With the tags of HDR,
                only the 8-bit version is tone-mapped.
        """
        self._size = _scaled_size(width, height, is_still)
        self._orientation = orientation
        self._color, self._deep = color, deep
        self._reformatter = VideoReformatter()
        self._tone_mapper = ToneMapper()

    def __call__(self, frame: av.VideoFrame) -> VideoFrame:
        """Convert one decoded frame. The result holds its own copy of the samples."""
        original = frame
        if is_hdr(frame):
            frame = self._tone_mapper(frame)
        if has_alpha(frame):
            frame = self._over_black(frame)
        deep = original if self._deep is not None and self._deep.transfer in HDR_TRANSFERS else frame
        if frame.format.name not in _DIRECT_FORMATS or (frame.width, frame.height) != self._size:
            frame = self._reformat(frame, "yuv420p")
        shown = VideoFrame(join_planes(*self._upright(frame)), self._color)
        if self._deep is None:
            return shown
        if deep.format.name != TEN_BIT or (deep.width, deep.height) != self._size:
            deep = self._reformat(deep, TEN_BIT, self._deep)
        return DeepFrame(shown, join_planes(*self._upright(deep)), self._deep)

    def _upright(self, frame: av.VideoFrame) -> Iterator[np.ndarray]:
        return (upright(plane, self._orientation) for plane in _padded(frame))

    def _reformat(self, frame: av.VideoFrame, pixel_format: str, color: ColorTags | None = None) -> av.VideoFrame:
        if _is_rgb(frame):
            matrix, source, target = MATRIX_BT709, RANGE_FULL, RANGE_LIMITED
        else:
            # The same range on both sides keeps the samples; swscale always takes gray and yuvj for full range.
            full = (color or self._color).is_full_range or frame.format.name.startswith(("yuvj", "gray"))
            matrix, source, target = None, *((RANGE_FULL if full else RANGE_LIMITED,) * 2)
        width, height = self._size
        return self._reformatter.reformat(
            frame,
            width,
            height,
            pixel_format,
            interpolation=_SCALING,
            dst_colorspace=matrix,
            src_color_range=source,
            dst_color_range=target,
        )

    def _over_black(self, frame: av.VideoFrame) -> av.VideoFrame:
        """Compose a transparent frame over black, at full chroma resolution so that there are no color fringes."""
        frame = self._reformat(frame, "yuva444p")
        y, u, v, alpha = (plane_samples(plane) for plane in frame.planes)
        opacity = alpha.astype(np.float32) / 255.0
        black = 0.0 if self._color.is_full_range else 16.0
        composed = np.stack(
            [cv2.add((plane - ground) * opacity, ground, dtype=cv2.CV_8U) for plane, ground in
             ((y, black), (u, 128.0), (v, 128.0))]
        )  # fmt: skip
        opaque = av.VideoFrame.from_ndarray(composed, format="yuv444p")
        opaque.colorspace = frame.colorspace
        return opaque


def plane_samples(plane: VideoPlane, dtype: type[np.unsignedinteger] = np.uint8) -> np.ndarray:
    """A view (H, W) of a plane of a libav frame, whose samples have one or two bytes."""
    samples = np.frombuffer(plane, dtype)  # type: ignore[call-overload]  # PyAV does not declare the buffer
    return samples.reshape(plane.height, -1)[:, : plane.width]


def upright(plane: np.ndarray, orientation: int) -> np.ndarray:
    """A view of `plane` (H, W), upright; `orientation` is an EXIF code 1..8."""
    swap, flip_rows, flip_columns = _ORIENTATIONS[orientation]
    plane = plane.T if swap else plane
    plane = plane[::-1] if flip_rows else plane
    return plane[:, ::-1] if flip_columns else plane


def _padded(frame: av.VideoFrame) -> list[np.ndarray]:
    """The three planes, luma padded to even sides so that luma and chroma stay aligned when rotated."""
    dtype = np.uint16 if bit_depth(frame) > 8 else np.uint8
    y, u, v = (plane_samples(plane, dtype) for plane in frame.planes)
    if y.shape[0] % 2 or y.shape[1] % 2:
        y = np.pad(y, ((0, y.shape[0] % 2), (0, y.shape[1] % 2)), mode="edge")
    return [y, u, v]


def _is_rgb(frame: av.VideoFrame) -> bool:
    """RGB, palettes, one-bit images and gray with alpha: formats without YUV samples to keep."""
    video_format = frame.format
    return video_format.is_rgb or video_format.has_palette or video_format.name.startswith(("mono", "ya", "xyz"))


def _scaled_size(width: int, height: int, is_still: bool) -> tuple[int, int]:
    longest = max(width, height)
    if not is_still or longest <= MAX_STILL_SIDE:
        return width, height
    scale = MAX_STILL_SIDE / longest
    return max(2, round(width * scale / 2) * 2), max(2, round(height * scale / 2) * 2)
