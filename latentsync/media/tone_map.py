"""HDR frames (PQ and HLG, BT.2020) to SDR in BT.709, and back for edited parts.

Reference: ITU-R BT.2100 (transfer functions), BT.2390 section 5.4.1 (the tone curve, EETF), BT.2408 (reference white),
BT.2087 (primaries).
"""

from functools import lru_cache

import av
import cv2
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

from latentsync.media.color import MATRIX_BT709, RANGE_FULL, RANGE_LIMITED, ColorTags

HDR_TRANSFERS = {16: "PQ", 18: "HLG"}  # H.273 codes
SDR_TAGS = ColorTags(MATRIX_BT709, RANGE_LIMITED, MATRIX_BT709, MATRIX_BT709)

PEAK = 1000.0  # cd/m2 of the HDR display that the frame was made for; brighter highlights are clipped
WHITE = 203.0  # cd/m2 of diffuse white, which becomes the white of SDR
DISPLAY_GAMMA = 2.4  # BT.1886
HLG_GAMMA = 1.2  # of a display of 1000 cd/m2
LUMINANCE = np.array([[0.2627, 0.6780, 0.0593]], np.float32)  # of BT.2020 RGB
BT2020_TO_BT709 = np.array(
    [[1.660491, -0.587641, -0.072850], [-0.124550, 1.132900, -0.008349], [-0.018151, -0.100579, 1.118730]], np.float32
)
STEPS = 65536
_M1, _M2, _C1, _C2, _C3 = 1305 / 8192, 2523 / 32, 107 / 128, 2413 / 128, 2392 / 128
_A, _B, _C = 0.17883277, 0.28466892, 0.55991073


def is_hdr(frame: av.VideoFrame) -> bool:
    return int(frame.color_trc) in HDR_TRANSFERS


class ToneMapper:
    """Maps HDR frames of one file to SDR. The hue is kept: all channels of a pixel are scaled alike."""

    def __init__(self) -> None:
        self._reformatter = VideoReformatter()

    def __call__(self, frame: av.VideoFrame) -> av.VideoFrame:
        """A frame of the same size in 16-bit RGB (BT.709 primaries, gamma 2.4)."""
        full = int(frame.color_range) == RANGE_FULL
        rgb = self._reformatter.reformat(
            frame,
            format="rgb48le",
            interpolation=Interpolation.BICUBIC | Interpolation.ACCURATE_RND,
            src_colorspace=int(frame.colorspace) if int(frame.colorspace) == MATRIX_BT709 else 9,
            src_color_range=RANGE_FULL if full else RANGE_LIMITED,
            dst_color_range=RANGE_FULL,
        )
        return av.VideoFrame.from_ndarray(tone_map(rgb.to_ndarray(), int(frame.color_trc)), format="rgb48le")


def tone_map(rgb: np.ndarray, transfer: int) -> np.ndarray:
    """(H, W, 3) uint16 BT.2020 RGB -> (H, W, 3) uint16 BT.709 RGB. transfer: a key of `HDR_TRANSFERS`."""
    light = cv2.transform(_display_light(rgb, transfer), BT2020_TO_BT709)
    brightest = np.sqrt(np.clip(light.max(axis=2), 0, PEAK) / PEAK)
    scale = _tone_curve()[(brightest * (STEPS - 1)).astype(np.uint16)]
    coded = cv2.pow(np.clip(light * scale[..., None], 0.0, 1.0), 1 / DISPLAY_GAMMA)
    return np.rint(coded * (STEPS - 1)).astype(np.uint16)


def to_hdr(rgb: np.ndarray, transfer: int) -> np.ndarray:
    """The inverse of `tone_map`, up to its rounding and clipping.

    Args:
        rgb: (H, W, 3), BT.709 RGB, 0..255.
        transfer: a key of `HDR_TRANSFERS`.

    Returns:
        (H, W, 3) float32, BT.2020 RGB, 0..255.
    """
    shown = cv2.pow(np.clip(rgb.astype(np.float32) / 255, 0, 1), DISPLAY_GAMMA)
    brightest = shown.max(axis=2)
    light, mapped = _curve_points()
    scale = np.interp(brightest, mapped, light) / np.maximum(brightest, 1e-9)
    linear = cv2.transform(shown * scale[..., None].astype(np.float32), np.linalg.inv(BT2020_TO_BT709))
    return (255 * _encoded(np.maximum(linear, 0), transfer)).astype(np.float32)


def _encoded(light: np.ndarray, transfer: int) -> np.ndarray:
    """Code values 0..1 of BT.2020 RGB in cd/m2; the inverse of `_display_light`."""
    if HDR_TRANSFERS[transfer] == "PQ":
        return _pq_code(light)
    luminance = np.maximum(cv2.transform(light, LUMINANCE), 1e-6) / PEAK
    scene = light / PEAK * (luminance ** (1 / HLG_GAMMA - 1))[..., None]
    high = _A * np.log(np.maximum(12 * scene - _B, 1e-9)) + _C
    return np.clip(np.where(scene <= 1 / 12, np.sqrt(3 * scene), high), 0, 1)


@lru_cache(maxsize=1)
def _curve_points() -> tuple[np.ndarray, np.ndarray]:
    """(light, shown): points of the tone curve, from cd/m2 to SDR light, both rising."""
    light = np.linspace(0, 1, STEPS) ** 2 * PEAK
    return light, np.maximum.accumulate(_tone_curve() * light)


def _display_light(rgb: np.ndarray, transfer: int) -> np.ndarray:
    """(H, W, 3) float32 in cd/m2."""
    light = _linear(transfer)[rgb]
    if HDR_TRANSFERS[transfer] == "PQ":
        return light
    luminance = cv2.transform(light, LUMINANCE)
    return light * (PEAK * cv2.pow(luminance, HLG_GAMMA - 1))[..., None]


@lru_cache(maxsize=2)
def _linear(transfer: int) -> np.ndarray:
    """(65536,) float32 of each code: PQ in cd/m2; HLG scene light, 0 to 1."""
    code = np.linspace(0, 1, STEPS)
    if HDR_TRANSFERS[transfer] == "PQ":
        return _pq_light(code).astype(np.float32)
    return np.where(code <= 0.5, code**2 / 3, (np.exp((code - _C) / _A) + _B) / 12).astype(np.float32)


@lru_cache(maxsize=1)
def _tone_curve() -> np.ndarray:
    """(65536,) float32: SDR light (1 = white) per cd/m2, for the square root of the brightest channel over PEAK."""
    light = np.linspace(0, 1, STEPS) ** 2 * PEAK
    top = _pq_code(np.array(PEAK))
    code, target = _pq_code(light) / top, float(_pq_code(np.array(WHITE)) / top)
    knee = 1.5 * target - 0.5
    t = np.clip((code - knee) / (1 - knee), 0, 1)
    spline = (2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1 - knee) + (3 * t**2 - 2 * t**3) * target
    mapped = _pq_light(np.where(code < knee, code, spline) * top)
    return (np.divide(mapped, light, out=np.ones_like(light), where=light > 0) / WHITE).astype(np.float32)


def _pq_light(code: np.ndarray) -> np.ndarray:
    """cd/m2 of PQ code values 0 to 1 (BT.2100 table 4)."""
    power = code ** (1 / _M2)
    return 10_000 * (np.maximum(power - _C1, 0) / (_C2 - _C3 * power)) ** (1 / _M1)


def _pq_code(light: np.ndarray) -> np.ndarray:
    """The inverse of `_pq_light`."""
    power = (light / 10_000) ** _M1
    return ((_C1 + _C2 * power) / (1 + _C3 * power)) ** _M2
