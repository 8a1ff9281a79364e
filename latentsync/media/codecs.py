"""Video encoders of the output: their containers, pixel formats and settings."""

from dataclasses import dataclass

from latentsync.constants import OUTPUT_SUFFIXES
from latentsync.utils.errors import UserError

EIGHT_BIT, TEN_BIT = "yuv420p", "yuv420p10le"
DEFAULT_CRF = 18  # visually lossless with x264
DEFAULT_PRESET = "veryfast"  # "fast" takes twice the CPU time for a difference that CRF 18 hides
PRESETS = ("ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow")


@dataclass(frozen=True)
class VideoCodec:
    """An encoder.

    Args:
        name: libav's name of the encoder.
        suffixes: containers that can hold it.
        pixel_formats: of its input, by that of the frames.
        tag: code of the codec in .mp4 and .mov, if not libav's choice.
    """

    name: str
    suffixes: tuple[str, ...]
    pixel_formats: dict[str, str]
    tag: str | None = None

    def options(self, crf: float, preset: str, pixel_format: str) -> dict[str, str]:
        """Settings of the encoder; crf 0 is lossless."""
        if self.name == "libx265":
            lossless = "lossless=1:" if crf == 0 else ""
            return {"crf": f"{crf:g}", "preset": preset, "x265-params": f"{lossless}log-level=error"}
        if self.name == "prores_ks":
            return {"profile": "hq", "vendor": "apl0"}
        if self.name == "ffv1":
            return {"level": "3", "g": "1", "slices": "4", "slicecrc": "1"}
        if crf == 0 and pixel_format == TEN_BIT:  # x264's CRF scale starts below 0 there
            return {"qp": "0", "preset": preset}
        return {"crf": f"{crf:g}", "preset": preset}


_SAME = {EIGHT_BIT: EIGHT_BIT, TEN_BIT: TEN_BIT}
VIDEO_CODECS = {
    "h264": VideoCodec("libx264", OUTPUT_SUFFIXES, _SAME),
    "hevc": VideoCodec("libx265", OUTPUT_SUFFIXES, _SAME, tag="hvc1"),  # the tag that Apple's players ask for
    "prores": VideoCodec("prores_ks", (".mov", ".mkv"), {TEN_BIT: "yuv422p10le"}),
    "ffv1": VideoCodec("ffv1", (".mkv",), _SAME),
}


def video_codec(name: str, suffix: str) -> VideoCodec:
    """The codec with that name. Raises UserError if it is unknown or the container cannot hold it."""
    if name not in VIDEO_CODECS:
        raise UserError(f"codec {name!r}: choose one of {', '.join(VIDEO_CODECS)}")
    codec = VIDEO_CODECS[name]
    if suffix.lower() not in codec.suffixes:
        raise UserError(f"codec {name} needs {' or '.join(codec.suffixes)}, not {suffix}; give such an output path")
    return codec
