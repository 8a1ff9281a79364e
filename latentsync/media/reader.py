"""Decoding one video in order, with exact times, seeking, and tolerance of damaged packets."""

import logging
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import partial
from itertools import dropwhile

import av
from av.container import InputContainer
from av.video.stream import VideoStream

from latentsync.media.convert import FrameConverter
from latentsync.media.deinterlace import deinterlaced
from latentsync.media.frame import VideoFrame
from latentsync.media.paths import open_input
from latentsync.media.probe import VideoInfo, first_video_stream
from latentsync.media.stamps import duration_of, starts_anew, time_of
from latentsync.media.webp import decode_frames, read_animated_webp
from latentsync.utils.cores import codec_threads
from latentsync.utils.errors import UserError

logger = logging.getLogger(__name__)


class DecodedFrame:
    """A decoded frame of the source with its time. Its samples are converted on first access."""

    __slots__ = ("_convert", "_frame", "duration", "is_key", "time")

    def __init__(self, time: Fraction, duration: Fraction, is_key: bool, convert: Callable[[], VideoFrame]) -> None:
        """`time` and `duration` in seconds; the first frame of the file is at 0."""
        self.time = time
        self.duration = duration
        self.is_key = is_key
        self._convert: Callable[[], VideoFrame] | None = convert  # holds the buffer of the decoder
        self._frame: VideoFrame | None = None

    @property
    def frame(self) -> VideoFrame:
        if self._convert is not None:
            self._frame, self._convert = self._convert(), None
        assert self._frame is not None
        return self._frame


class VideoReader:
    """Decodes the video stream of one file in display order, any number of times.

    Damaged packets are skipped and counted; the first pass with any logs a warning. Only one iteration may be active at
    a time. Close the reader, or use it in a `with` block.
    """

    def __init__(self, info: VideoInfo) -> None:
        self._info = info
        self._converter = FrameConverter(
            info.coded_width, info.coded_height, info.orientation, info.color, info.is_still, info.deep_color
        )
        self._opened: tuple[InputContainer, VideoStream] | None = None
        self._origin: Fraction | None = None  # time stamp of the first frame, seconds
        self._has_stamps = True
        self._is_joined = False  # of several recordings, whose time stamps begin anew
        self._shift = self._end = Fraction(0)  # of the current recording, and of the last frame, in seconds
        self._is_interlaced = False
        self._reported_damage = False
        self.damaged_packets = 0
        if info.hdr is not None:
            outcome = "kept; faces are generated in SDR" if info.keeps_hdr else "tone-mapped to SDR"
            logger.info("%s: HDR (%s) is %s", info.path, info.hdr, outcome)

    def __enter__(self) -> "VideoReader":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file. Safe to call twice."""
        if self._opened is not None:
            self._opened[0].close()
            self._opened = None

    def decode(self, start: Fraction | None = None) -> Iterator[DecodedFrame]:
        """Yield frames with strictly increasing times, to the end of the file.

        With `start` (seconds) decoding begins at a keyframe at or before it if the file can be searched; the first
        frame may then still come after `start`, and the caller falls back to `decode()`. Raises UserError when no
        frame can be decoded from the beginning.
        """
        if self._info.is_animated_webp:
            yield from self._decode_webp()
            return
        from_start = start is None or not self._seek(start)
        if from_start:
            self._reopen()
        last_time: Fraction | None = None
        self._shift = self._end = Fraction(0)
        self.damaged_packets = 0
        try:
            for frame in self._progressive(from_start):
                time, duration = self._timing(frame, last_time)
                if last_time is None or time > last_time:
                    last_time, self._end = time, time + duration
                    yield DecodedFrame(time, duration, bool(frame.key_frame), partial(self._converter, frame))
        finally:
            self._report_damage()
        if last_time is None and from_start:
            raise UserError(f"{self._info.path}: the video has no frame that can be decoded; it may be truncated")

    def _progressive(self, from_start: bool) -> Iterator[av.VideoFrame]:
        """Decoded frames, deinterlaced, from the first complete one on."""
        frames = self._decoded()
        if not from_start:  # frames before the keyframe in display order may lack their references
            frames = dropwhile(lambda frame: not frame.key_frame, frames)
        frames = deinterlaced(map(self._noted, frames))
        if self._is_interlaced and not from_start:
            next(frames, None)  # was deinterlaced without the frame before it
        return frames

    def _noted(self, frame: av.VideoFrame) -> av.VideoFrame:
        """The same frame; the first one that is interlaced is reported."""
        if frame.interlaced_frame and not self._is_interlaced:
            self._is_interlaced = True
            logger.info("%s: interlaced video is deinterlaced", self._info.path)
        return frame

    def _timing(self, frame: av.VideoFrame, last_time: Fraction | None) -> tuple[Fraction, Fraction]:
        """(time, duration) of a decoded frame; without time stamps, frames are counted at the nominal rate."""
        nominal = 1 / self._info.fps
        stamp = time_of(frame)
        if stamp is None or not self._has_stamps:
            self._has_stamps = False
            return (Fraction(0) if last_time is None else last_time + nominal), nominal
        if self._origin is None:
            self._origin = stamp
        time = stamp - self._origin + self._shift
        if last_time is not None and starts_anew(time - last_time):
            self._is_joined = True
            self._shift += self._end - time
            time = self._end
        return time, duration_of(frame) or nominal

    def _decoded(self) -> Iterator[av.VideoFrame]:
        """Decoded frames from the current position. Bad packets are counted; an unreadable rest ends the stream."""
        container, stream = self._current()
        packets = container.demux(stream)
        while True:
            try:
                packet = next(packets, None)
            except av.error.FFmpegError as error:
                logger.warning("%s: reading stopped early (%s); the file is truncated", self._info.path, error.strerror)
                self.damaged_packets += 1
                yield from self._decode_packet(stream, None)
                return
            if packet is None:
                return
            yield from self._decode_packet(stream, packet)

    def _decode_packet(self, stream: VideoStream, packet: av.Packet | None) -> list[av.VideoFrame]:
        if packet is not None and packet.is_corrupt:  # truncated: half of the frame would be wrong
            self.damaged_packets += 1
            return []
        try:
            return stream.codec_context.decode(packet)
        except MemoryError:
            raise
        except av.error.FFmpegError as error:  # decoders report damage with codes of their own, too
            self.damaged_packets += 1
            logger.debug("%s: packet skipped: %s", self._info.path, error)
            return []

    def _reopen(self) -> None:
        self.close()
        container = open_input(self._info.path)
        self._opened = container, first_video_stream(container, self._info.path)
        codec = self._opened[1].codec_context
        codec.thread_type = "AUTO"
        codec.thread_count = codec_threads()
        # AVI has no presentation times: with B-frames, those that libav derives are out of order.
        if container.format.name == "avi" and codec.has_b_frames:
            self._has_stamps = False

    def _current(self) -> tuple[InputContainer, VideoStream]:
        if self._opened is None:
            raise ValueError("the reader is closed")
        return self._opened

    def _seek(self, time: Fraction) -> bool:
        """Move to a keyframe at or before `time`; False if the container cannot."""
        if self._opened is None or self._origin is None or not self._has_stamps or self._is_joined:
            return False
        container, stream = self._opened
        if stream.time_base is None:
            return False
        try:
            container.seek(int((time + self._origin) / stream.time_base), stream=stream, backward=True)
        except av.error.FFmpegError:
            return False
        return True

    def _report_damage(self) -> None:
        if self.damaged_packets and not self._reported_damage:
            self._reported_damage = True
            logger.warning("%s: %d damaged packets were skipped", self._info.path, self.damaged_packets)

    def _decode_webp(self) -> Iterator[DecodedFrame]:
        animation = read_animated_webp(self._info.path)
        if animation is None:
            raise UserError(f"{self._info.path}: the animated image has changed since it was opened")
        time = Fraction(0)
        frames = decode_frames(self._info.path, animation.durations)
        for index, (milliseconds, pixels) in enumerate(zip(animation.durations, frames, strict=False)):
            rgba = av.VideoFrame.from_ndarray(pixels, format="rgba")
            duration = Fraction(milliseconds, 1000)
            yield DecodedFrame(time, duration, index == 0, partial(self._converter, rgba))
            time += duration
