"""Choosing and decoding an audio stream: continuous frames that follow the file's time stamps.

Everything is decoded as a stream: limits apply while decoding, and nothing a header says is relied on.
"""

import filecmp
import logging
import os
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import av
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.stream import Disposition

from latentsync.media.audio_frames import Clock, StampFollower, finite, shifted, silence, without_padding
from latentsync.media.paths import check_input_path, open_input
from latentsync.media.probe import decode_first_frame, first_video_stream
from latentsync.media.stamps import time_of
from latentsync.utils.errors import UserError

logger = logging.getLogger(__name__)

SAMPLE_RATES = (1000, 768_000)  # Hz
MAX_CHANNELS = 64
# Channel counts without a named layout that swresample can mix.
DEFAULT_LAYOUTS = frozenset((1, 2, 3, 4, 5, 6, 7, 8, 12, 14, 16, 24))
NOTICEABLE_DELAY = Fraction(1, 25)


@dataclass(frozen=True)
class AudioSource:
    """An audio stream of a file, and when its first audible sample is due.

    track: number of the audio stream, 0 first; None for the default one.
    delay: seconds; negative to leave that much of the start out.
    seconds: where it ends, counted from time 0; None for all of it.
    """

    path: Path
    track: int | None = None
    delay: Fraction = Fraction(0)
    seconds: Fraction | None = None

    def cut(self, seconds: float | Fraction | None) -> "AudioSource":
        """The same stream that ends at `seconds`, if it is longer."""
        limits = [self.seconds, None if seconds is None else Fraction(seconds).limit_denominator(1_000_000)]
        return replace(self, seconds=min((limit for limit in limits if limit is not None), default=None))


def select_audio(
    path: str | os.PathLike,
    track: str | None = None,
    video: str | os.PathLike | None = None,
    start: Fraction = Fraction(0),
    end: Fraction | None = None,
) -> AudioSource:
    """Choose the audio stream to use, and say so in the log where there is a choice.

    Audio that comes from the file of the video (or from a copy of it) keeps its place relative to the first frame.
    Other audio starts at 0.

    Args:
        path: audio or video file.
        track: number (0 first) or language of the stream; None for the default one.
        video: the video file that the audio is for.
        start, end: the part of the video that is used, in seconds.

    Raises:
        UserError: the file cannot be read, or has no such stream.
    """
    path = check_input_path(path, "audio")
    with open_input(path, "audio") as container:
        stream = first_audio_stream(container, path, track)
        streams = list(container.streams.audio)
        chosen = streams.index(stream)
        names = ", ".join(f"{index} ({_language(item)})" for index, item in enumerate(streams))
        has_video = any(not item.disposition & Disposition.attached_pic for item in container.streams.video)
    if len(streams) > 1:
        logger.info("%s: uses audio track %d of %s; choose another one with audio_track", path, chosen, names)
    if not has_video:
        return AudioSource(path, chosen)
    delay = audio_delay(path, chosen)
    if video is not None and _is_same_file(path, video):
        return AudioSource(path, chosen, delay - start, None if end is None else end - start)
    if abs(delay) >= NOTICEABLE_DELAY:
        logger.info("%s: the audio starts %.3f s %s the video of this file; here it starts at 0",
                    path, abs(delay), "after" if delay > 0 else "before")  # fmt: skip
    return AudioSource(path, chosen)


def first_audio_stream(container: InputContainer, path: Path, track: int | str | None = None) -> AudioStream:
    """The audio stream with that number (0 first) or language; None for the default one, or else the first.

    Raises UserError when there is none, or none that can be decoded.
    """
    streams = list(container.streams.audio)
    if not streams:
        raise UserError(f"{path}: the file has no audio stream; give a file with audio")
    stream = _find_stream(streams, path, track)
    codec = stream.codec_context
    if codec is None or not codec.sample_rate:
        raise UserError(f"{path}: the audio codec is not supported; convert the file to WAV first")
    _check_format(path, codec.sample_rate, codec.channels)
    return stream


def has_audio(path: str | os.PathLike) -> bool:
    """Whether a file has an audio stream. Raises UserError for a file that cannot be opened."""
    with open_input(check_input_path(path)) as container:
        return bool(container.streams.audio)


def audio_delay(path: Path, track: int | None = None) -> Fraction:
    """Seconds from the first frame of a video file to its first audible sample; negative where the audio leads.

    Raises UserError when either cannot be decoded.
    """
    with open_input(path) as container:
        if container.format.name == "avi":  # its stamps say nothing
            return Fraction(0)
        frame = decode_first_frame(container, first_video_stream(container, path), path)
    return first_audible(path, track) - (time_of(frame) or 0)


def has_one_format(path: Path, track: int | None = None, seconds: Fraction | None = None) -> bool:
    """Whether sample rate and channels are the same in the first `seconds` (None: everywhere), found by decoding."""
    formats: set[tuple[int, str]] = set()
    position = Fraction(0)
    with open_input(path, "audio") as container:
        for frame in _raw_frames(container, first_audio_stream(container, path, track), path):
            if frame is None:
                continue
            formats.add((frame.sample_rate, frame.layout.name))
            position += Fraction(frame.samples, frame.sample_rate)
            if len(formats) > 1 or (seconds is not None and position > seconds):
                break
    return len(formats) == 1


def first_audible(path: Path, track: int | None = None) -> Fraction:
    """Time stamp, in the file's own time, of the first sample that players output (after encoder delay), in seconds."""
    with open_input(path, "audio") as container:
        stream = first_audio_stream(container, path, track)
        frame = next((frame for frame in _raw_frames(container, stream, path) if frame is not None), None)
        if frame is None:
            raise UserError(f"{path}: the audio has no samples that can be decoded; give a file with audio")
        return time_of(frame) or Fraction(0)


def decoded_frames(path: Path, track: int | None = None, delay: Fraction = Fraction(0)) -> Generator[av.AudioFrame]:
    """Decoded frames of an audio stream without gaps and with finite samples only, time stamps counted from 0.

    Gaps are filled with silence. Where the samples drift from the time stamps by more than 20 ms they are resampled to
    them. Damaged packets are skipped and counted in the log. Padding beyond the stream's length is cut off.

    Args:
        path: the file.
        track: number of the stream, 0 first; None for the default one.
        delay: seconds of silence before the first sample; negative to leave that much out.

    Raises:
        UserError: the stream cannot be decoded, or has gaps of more than an hour in total.
    """
    position = Fraction(0)
    for frame in shifted(_continuous_frames(path, track), delay):
        frame.time_base, frame.pts = Fraction(1, frame.sample_rate), round(position * frame.sample_rate)
        position += Fraction(frame.samples, frame.sample_rate)
        yield frame


def _find_stream(streams: list[AudioStream], path: Path, track: int | str | None) -> AudioStream:
    if track is None:
        return next((stream for stream in streams if stream.disposition & Disposition.default), streams[0])
    if isinstance(track, str) and not track.isdecimal():
        wanted = track.lower()
        found = [stream for stream in streams if _language(stream).lower().split("-")[0] == wanted]
        if not found:
            there = ", ".join(dict.fromkeys(map(_language, streams)))
            raise UserError(f"{path}: no audio track has the language {track!r} (there is {there}); give its number")
        return found[0]
    number = int(track)
    if number >= len(streams):
        raise UserError(f"{path}: there is no audio track {number}, only {len(streams)} (0 is the first)")
    return streams[number]


def _language(stream: AudioStream) -> str:
    return stream.metadata.get("language", "und")


def _is_same_file(first: Path, second: str | os.PathLike) -> bool:
    return os.path.isfile(second) and (os.path.samefile(first, second) or filecmp.cmp(first, second, shallow=False))


def _check_format(path: Path, sample_rate: int, channels: int) -> None:
    lowest, highest = SAMPLE_RATES
    if not lowest <= sample_rate <= highest:
        raise UserError(
            f"{path}: a sample rate of {sample_rate} Hz is not supported ({lowest} to {highest}); convert it first"
        )
    if not 1 <= channels <= MAX_CHANNELS:
        raise UserError(
            f"{path}: {channels} audio channels are not supported (1 to {MAX_CHANNELS}); mix it to stereo first"
        )


def _check_frame(path: Path, frame: av.AudioFrame) -> None:
    """Decoded frames may differ from the header, and from each other."""
    channels = frame.layout.nb_channels
    _check_format(path, frame.sample_rate, channels)
    if frame.layout.name == f"{channels} channels" and channels not in DEFAULT_LAYOUTS:
        raise UserError(f"{path}: {channels} audio channels of unknown positions; mix it to stereo first")


def _continuous_frames(path: Path, track: int | None) -> Iterator[av.AudioFrame]:
    """Frames as decoded, gaps filled, drift compensated."""
    damaged = not_finite = 0
    clock, follower = Clock(path), StampFollower()
    with open_input(path, "audio") as container:
        stream = first_audio_stream(container, path, track)
        for frame in without_padding(_raw_frames(container, stream, path)):
            if frame is None:
                damaged += 1
                continue
            _check_frame(path, frame)
            for filler in silence(frame, clock.gap_before(frame)):
                yield from follower.push(filler, clock)
            frame, replaced = finite(frame)
            not_finite += replaced
            yield from follower.push(frame, clock)
        yield from follower.flush()
    if damaged:
        logger.warning("%s: %d damaged audio packets were skipped", path, damaged)
    if not_finite:
        logger.warning("%s: %d audio samples that are not numbers were set to 0", path, not_finite)


def _raw_frames(container: InputContainer, stream: AudioStream, path: Path) -> Iterator[av.AudioFrame | None]:
    """Frames as decoded; None stands for a packet that could not be."""
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except av.error.FFmpegError as error:
            logger.warning("%s: reading the audio stopped early (%s)", path, error.strerror)
            yield from stream.codec_context.decode(None)
            return
        if packet is None:
            return
        try:
            yield from stream.codec_context.decode(packet)
        except MemoryError:
            raise
        except av.error.FFmpegError:  # decoders report damage with codes of their own, too
            yield None
