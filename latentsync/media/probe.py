"""Examining a video file before it is processed. Every unusable file raises a one-line UserError."""

import logging
import os
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import TypedDict

import av
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream

from latentsync.constants import FPS
from latentsync.media.color import ColorTags
from latentsync.media.convert import (
    ORIENTATION_OF_ROTATION,
    bit_depth,
    converted_tags,
    delivered_size,
    has_alpha,
)
from latentsync.media.paths import IMAGE_ERRORS, check_input_path, open_image, open_input
from latentsync.media.stamps import duration_of, starts_anew, time_of
from latentsync.media.tone_map import HDR_TRANSFERS
from latentsync.media.webp import AnimatedWebp, decode_frames, read_animated_webp
from latentsync.utils.errors import UserError
from latentsync.utils.rates import MAX_DENOMINATOR, NTSC_RATES

logger = logging.getLogger(__name__)

DEFAULT_FPS = Fraction(FPS)
MAX_PIXELS = 2**28  # 16384 x 16384; a decoded frame takes up to 2 GB

_STANDARD_RATES = (*NTSC_RATES, *map(Fraction, (24, 25, 30, 48, 50, 60, 120)))


@dataclass(frozen=True)
class VideoInfo:
    """A video or still image as `open_timeline` reads it.

    `width` and `height` are those of converted frames: upright, even, and at most 4096 for stills. `duration` (seconds)
    and `num_frames` come from the header or index, which may be wrong in damaged files; None if it does not state them.
    `fps` is exact (30000/1001), and the mean rate if `variable_frame_rate`.
    """

    path: Path
    width: int
    height: int
    coded_width: int
    coded_height: int
    fps: Fraction
    duration: float | None
    num_frames: int | None
    rotation: int  # degrees clockwise from the coded to the upright frame
    orientation: int  # the same with mirroring, as an EXIF code 1..8
    is_still: bool
    is_animated_webp: bool
    has_alpha: bool
    bit_depth: int
    variable_frame_rate: bool
    color: ColorTags
    sample_aspect_ratio: Fraction
    hdr: str | None = None  # PQ or HLG: frames are tone-mapped to SDR
    hdr_color: ColorTags | None = None  # tags of HDR samples before tone mapping
    deep_color: ColorTags | None = None  # tags of 10-bit samples, which frames then have, too

    @property
    def output_color(self) -> ColorTags:
        """Tags of the samples that are encoded."""
        return self.deep_color or self.color

    @property
    def keeps_hdr(self) -> bool:
        """Whether HDR samples are encoded."""
        return self.hdr is not None and self.deep_color == self.hdr_color

    def with_ten_bits(self, keep_hdr: bool) -> "VideoInfo":
        """The same video, whose frames are read as `DeepFrame`s; with `keep_hdr`, 10-bit samples keep their HDR."""
        return replace(self, deep_color=(self.hdr_color if keep_hdr else None) or self.color)


class _Geometry(TypedDict):
    width: int
    height: int
    coded_width: int
    coded_height: int
    rotation: int
    orientation: int


def probe_video(path: str | os.PathLike) -> VideoInfo:
    """Examine a video or image file: header, index and the first frame.

    Raises UserError for a missing, empty or unreadable file, a folder, a file that is not a video, audio without video,
    or a video without a frame that can be decoded.
    """
    path = check_input_path(path)
    animation = read_animated_webp(path)
    if animation is not None:
        return _probe_animated_webp(path, animation)
    with open_input(path) as container:
        stream = first_video_stream(container, path)
        frame = decode_first_frame(container, stream, path)
        is_still = _is_still(container, stream)
        orientation = _exif_orientation(path) if is_still else 1
        if orientation == 1:
            orientation = _frame_orientation(frame, path)
        duration, num_frames = _length(container, stream, path)
        return VideoInfo(
            path=path,
            **_geometry(frame.width, frame.height, orientation, is_still),
            fps=DEFAULT_FPS if is_still else frame_rate(stream),
            duration=None if is_still else duration,
            num_frames=1 if is_still else num_frames,
            is_still=is_still,
            is_animated_webp=False,
            has_alpha=has_alpha(frame),
            bit_depth=bit_depth(frame),
            variable_frame_rate=not is_still and _has_variable_rate(stream),
            color=converted_tags(frame),
            sample_aspect_ratio=_aspect_ratio(stream, orientation),
            hdr=HDR_TRANSFERS.get(int(frame.color_trc)),
            hdr_color=converted_tags(frame, keep_hdr=True) if int(frame.color_trc) in HDR_TRANSFERS else None,
        )


def first_video_stream(container: InputContainer, path: Path) -> VideoStream:
    """The default video stream, or else the first one that is not cover art. Raises UserError when there is none."""
    videos = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not videos:
        found = "only audio" if container.streams.audio else "no video stream"
        raise UserError(f"{path}: the file has {found}; give a video file or a still image")
    stream = next((s for s in videos if s.disposition & Disposition.default), videos[0])
    if stream.codec_context is None:
        raise UserError(f"{path}: the video codec is not supported; convert the file to H.264 first")
    _check_pixels(path, stream.codec_context.width, stream.codec_context.height)
    return stream


def decode_first_frame(container: InputContainer, stream: VideoStream, path: Path) -> av.VideoFrame:
    """Decode up to the first good frame. Raises UserError when the stream has none."""
    stream.codec_context.thread_type = "SLICE"  # for one frame, frame threads would only read ahead
    try:
        for packet in container.demux(stream):
            try:
                frames = packet.decode()
            except MemoryError:
                raise
            except av.error.FFmpegError:  # a damaged packet
                continue
            if frames:
                return frames[0]
    except av.error.FFmpegError as error:
        raise UserError(f"{path}: no frame could be decoded ({error.strerror}); the file is damaged") from error
    raise UserError(
        f"{path}: there is no frame that can be decoded; the file is damaged, or of a kind that is not supported; "
        "convert it first"
    )


def frame_rate(stream: VideoStream) -> Fraction:
    """The rate of a stream: its nominal rate if the mean is within 1% of it, otherwise the mean."""
    average, nominal = stream.average_rate, stream.guessed_rate
    rate = average or nominal
    if average and nominal and abs(nominal / average - 1) < Fraction(1, 100):
        rate = nominal
    if not rate or not Fraction(1, 10) <= rate <= 1000:
        return DEFAULT_FPS
    for standard in _STANDARD_RATES:
        if abs(rate / standard - 1) < Fraction(1, 2500):
            return standard
    return Fraction(rate).limit_denominator(MAX_DENOMINATOR)


def packet_times(path: Path) -> list[tuple[Fraction, Fraction]]:
    """(time, duration) in seconds of every frame in display order, the first at 0, without decoding."""
    recordings: list[list[tuple[Fraction, Fraction]]] = [[]]  # joined in one file
    unstamped = 0
    previous: Fraction | None = None
    with open_input(path) as container:
        stream = first_video_stream(container, path)
        nominal = 1 / frame_rate(stream)
        try:
            for packet in container.demux(stream):
                if packet.size and packet.pts is None:
                    unstamped += 1
                elif packet.size and not packet.is_discard:
                    decoded = previous if packet.dts is None else Fraction(packet.dts * (packet.time_base or 0))
                    if previous is not None and decoded is not None and starts_anew(decoded - previous):
                        recordings.append([])
                    previous = decoded
                    recordings[-1].append((time_of(packet) or Fraction(0), duration_of(packet) or nominal))
        except av.error.FFmpegError as error:
            logger.debug("%s: stopped reading packets: %s", path, error)
    stamped = sum(map(len, recordings))
    if unstamped > stamped:  # an elementary stream: frames are counted at the nominal rate
        return [(index * nominal, nominal) for index in range(unstamped + stamped)]
    times: list[tuple[Fraction, Fraction]] = []
    for recording in recordings if stamped else ():
        recording.sort()
        shift = (sum(times[-1]) if times else 0) - recording[0][0]
        times += [(time + shift, length) for time, length in recording]
    return times


def _length(container: InputContainer, stream: VideoStream, path: Path) -> tuple[float | None, int | None]:
    """Duration in seconds and number of frames, from the header or otherwise by counting packets."""
    num_frames = stream.frames or None
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base), num_frames
    if container.duration:
        return container.duration / av.time_base, num_frames
    times = packet_times(path)
    if not times:
        return None, num_frames
    return float(times[-1][0] + times[-1][1]), len(times)


def _is_still(container: InputContainer, stream: VideoStream) -> bool:
    """Image demuxers have names such as `png_pipe`; AVIF and HEIC have a single frame without duration."""
    if any(name.endswith("_pipe") for name in container.format.name.split(",")):
        return True
    return stream.frames == 1 and not stream.duration and not container.duration


def _geometry(width: int, height: int, orientation: int, is_still: bool) -> _Geometry:
    delivered = delivered_size(width, height, orientation, is_still)
    upright = (height, width) if orientation >= 5 else (width, height)
    if is_still and max(delivered) < max(upright):
        logger.info("still image of %dx%d scaled down to %dx%d", *upright, *delivered)
    rotation = {3: 180, 4: 180, 5: 90, 6: 90, 7: 270, 8: 270}.get(orientation, 0)
    return {
        "width": delivered[0],
        "height": delivered[1],
        "coded_width": width,
        "coded_height": height,
        "rotation": rotation,
        "orientation": orientation,
    }


def _frame_orientation(frame: av.VideoFrame, path: Path) -> int:
    """The EXIF code of the display matrix; only quarter turns are lossless."""
    turns = round(frame.rotation / 90) * 90
    if abs(turns - frame.rotation) > 1:
        logger.warning("%s: rotation by %d degrees is ignored; only quarter turns are applied", path, frame.rotation)
        return 1
    return ORIENTATION_OF_ROTATION[turns % 360]


def _exif_orientation(path: Path) -> int:
    """The EXIF orientation of a still image; 1 if it has none or Pillow cannot read the format."""
    try:
        with open_image(path) as image:
            orientation = image.getexif().get(0x0112, 1)
    except IMAGE_ERRORS:
        return 1
    return orientation if orientation in range(1, 9) else 1


def _aspect_ratio(stream: VideoStream, orientation: int) -> Fraction:
    ratio = stream.sample_aspect_ratio
    if not ratio or ratio <= 0:
        return Fraction(1)
    return 1 / ratio if orientation >= 5 else Fraction(ratio)


def _has_variable_rate(stream: VideoStream) -> bool:
    """Whether the steps in the container's index are uneven, or the mean rate is not the nominal one."""
    stamps = sorted(entry.timestamp for entry in stream.index_entries) if stream.index_entries else []
    if len(stamps) > 2 and len(stamps) == stream.frames and stream.time_base:
        steps = [later - earlier for earlier, later in zip(stamps[:-2], stamps[1:-1], strict=True)]
        # Time stamps in milliseconds make steps differ by one.
        return (max(steps) - min(steps)) * stream.time_base > max(Fraction(2, 1000), 2 * stream.time_base)
    average, nominal = stream.average_rate, stream.guessed_rate
    return average is not None and nominal is not None and abs(nominal / average - 1) > Fraction(1, 100)


def _check_pixels(path: Path, width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise UserError(f"{path}: {width}x{height} pixels are too many; scale it down to 8192 on a side or less")


def _probe_animated_webp(path: Path, animation: AnimatedWebp) -> VideoInfo:
    """Examine an animated WebP: its headers and the first frame."""
    _check_pixels(path, animation.width, animation.height)
    next(decode_frames(path, animation.durations))
    total = Fraction(sum(animation.durations), 1000)
    return VideoInfo(
        path=path,
        **_geometry(animation.width, animation.height, 1, False),
        fps=(len(animation.durations) / total).limit_denominator(MAX_DENOMINATOR),
        duration=float(total),
        num_frames=len(animation.durations),
        is_still=False,
        is_animated_webp=True,
        has_alpha=True,
        bit_depth=8,
        variable_frame_rate=len(set(animation.durations)) > 1,
        color=ColorTags(1, 1, 1, 1),
        sample_aspect_ratio=Fraction(1),
    )
