"""Sequential decoding of one video with exact times, repeated starts and tolerance for damaged packets."""

import logging
from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import dropwhile

import av
from av.container import InputContainer
from av.video.stream import VideoStream

from latentsync.media.convert import FrameConverter
from latentsync.media.deinterlace import deinterlaced
from latentsync.media.frame import VideoFrame
from latentsync.media.paths import open_input
from latentsync.media.probe import VideoInfo, first_video_stream
from latentsync.media.webp import decode_frames, read_animated_webp
from latentsync.utils.errors import UserError

logger = logging.getLogger(__name__)


class Picture:
    """A decoded picture of the source: its place in time, and its samples, converted when first asked for."""

    __slots__ = ("_convert", "_frame", "duration", "is_key", "time")

    def __init__(self, time: Fraction, duration: Fraction, is_key: bool, convert: Callable[[], VideoFrame]) -> None:
        """`time` and `duration` in seconds, the first picture of the file at 0."""
        self.time = time
        self.duration = duration
        self.is_key = is_key
        self._convert: Callable[[], VideoFrame] | None = convert
        self._frame: VideoFrame | None = None

    @property
    def frame(self) -> VideoFrame:
        if self._frame is None:
            self._frame = self._convert()
            self._convert = None  # lets go of the decoder's own buffer
        return self._frame


class VideoReader:
    """Decodes the video stream of one file, in order of display, as often as asked for.

    Damaged packets are skipped and counted; the first pass that met any says so in the log. Only one iteration may be
    active at a time. Close it, or use it in a `with` block.
    """

    def __init__(self, info: VideoInfo) -> None:
        self._info = info
        self._converter = FrameConverter(
            info.coded_width, info.coded_height, info.orientation, info.color, info.is_still
        )
        self._container: InputContainer | None = None
        self._stream: VideoStream | None = None
        self._origin: Fraction | None = None  # time stamp of the first picture, seconds
        self._has_stamps = True
        self._reported_damage = False
        self.damaged_packets = 0
        if info.hdr is not None:
            logger.info("%s: HDR (%s) is tone-mapped to SDR", info.path, info.hdr)
        if info.is_interlaced:
            logger.info("%s: interlaced video is deinterlaced", info.path)

    def __enter__(self) -> "VideoReader":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file. Safe to call twice."""
        if self._container is not None:
            self._container.close()
            self._container = None

    def pictures(self, start: Fraction | None = None) -> Iterator[Picture]:
        """Yield pictures with strictly increasing times, to the end of the file.

        With `start` (seconds) decoding begins at a keyframe at or before it where the file can be searched; the first
        picture yielded may then still lie after `start`, and the caller falls back to `pictures()`. Raises UserError
        when not a single picture can be decoded from the beginning.
        """
        if self._info.is_animated_webp:
            yield from self._webp_pictures()
            return
        from_start = start is None or self._origin is None or not self._has_stamps or not self._seek(start)
        if from_start:
            self._reopen()
        last_time: Fraction | None = None
        self.damaged_packets = 0
        try:
            for frame in self._progressive(from_start):
                time, duration = self._timing(frame, last_time)
                if last_time is None or time > last_time:
                    last_time = time
                    yield Picture(time, duration, bool(frame.key_frame), lambda frame=frame: self._converter(frame))
        finally:
            self._report_damage()
        if last_time is None and from_start:
            raise UserError(f"{self._info.path}: the video has no frame that can be decoded; it may be truncated")

    def _progressive(self, from_start: bool) -> Iterator[av.VideoFrame]:
        """Decoded frames, deinterlaced, from the first complete one on."""
        frames = self._decoded()
        if not from_start:  # what precedes the keyframe in display order may lack its references
            frames = dropwhile(lambda frame: not frame.key_frame, frames)
        if self._info.is_interlaced:
            frames = deinterlaced(frames)
            if not from_start:
                next(frames, None)  # was deinterlaced without the frame before it
        return frames

    def _timing(self, frame: av.VideoFrame, last_time: Fraction | None) -> tuple[Fraction, Fraction]:
        """(time, duration) of a decoded frame; streams without time stamps are counted at the nominal rate."""
        nominal = 1 / self._info.fps
        duration = frame.duration * frame.time_base if frame.duration else nominal
        if frame.pts is None or not self._has_stamps:
            self._has_stamps = False
            return (Fraction(0) if last_time is None else last_time + nominal), nominal
        stamp = frame.pts * frame.time_base
        if self._origin is None:
            self._origin = stamp
        return stamp - self._origin, duration

    def _decoded(self) -> Iterator[av.VideoFrame]:
        """Decoded frames from the current position; bad packets are counted, an unreadable rest ends the stream."""
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets, None)
            except av.error.FFmpegError as error:
                logger.warning("%s: reading stopped early (%s); the file is truncated", self._info.path, error.strerror)
                self.damaged_packets += 1
                yield from self._decode(None)
                return
            if packet is None:
                return
            yield from self._decode(packet)

    def _decode(self, packet: av.Packet | None) -> list[av.VideoFrame]:
        if packet is not None and packet.is_corrupt:  # cut short: decoding it would show half a picture
            self.damaged_packets += 1
            return []
        try:
            return self._stream.codec_context.decode(packet)
        except MemoryError:
            raise
        except av.error.FFmpegError as error:  # decoders report damage with codes of their own, too
            self.damaged_packets += 1
            logger.debug("%s: packet skipped: %s", self._info.path, error)
            return []

    def _reopen(self) -> None:
        self.close()
        self._container = open_input(self._info.path)
        self._stream = first_video_stream(self._container, self._info.path)
        self._stream.codec_context.thread_type = "AUTO"
        # AVI stores no times of display: with reordered frames (B-frames) what libav makes up is out of order.
        if self._container.format.name == "avi" and self._stream.codec_context.has_b_frames:
            self._has_stamps = False

    def _seek(self, time: Fraction) -> bool:
        """Move to a keyframe at or before `time`; False where the container cannot."""
        if self._container is None:
            return False
        offset = int((time + self._origin) / self._stream.time_base)
        try:
            self._container.seek(offset, stream=self._stream, backward=True)
        except av.error.FFmpegError:
            return False
        return True

    def _report_damage(self) -> None:
        if self.damaged_packets and not self._reported_damage:
            self._reported_damage = True
            logger.warning("%s: %d damaged packets were skipped", self._info.path, self.damaged_packets)

    def _webp_pictures(self) -> Iterator[Picture]:
        animation = read_animated_webp(self._info.path)
        if animation is None:
            raise UserError(f"{self._info.path}: is no longer the animated image that it was")
        time = Fraction(0)
        frames = decode_frames(self._info.path, animation.durations)
        for index, (milliseconds, pixels) in enumerate(zip(animation.durations, frames, strict=False)):
            rgba = av.VideoFrame.from_ndarray(pixels, format="rgba")
            duration = Fraction(milliseconds, 1000)
            yield Picture(time, duration, index == 0, lambda rgba=rgba: self._converter(rgba))
            time += duration
