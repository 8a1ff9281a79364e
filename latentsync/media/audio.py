"""Sound files: decoding to the samples the models hear, and the same cleaned frames for re-encoding."""

import logging
import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.audio.stream import AudioStream
from av.container import InputContainer

from latentsync.constants import SAMPLE_RATE
from latentsync.media.paths import check_input_path, open_input
from latentsync.utils.errors import UserError

logger = logging.getLogger(__name__)

MIN_AUDIO_SECONDS = 0.1
SILENCE_PEAK = 10.0 ** (-60.0 / 20.0)  # -60 dB of full scale

_FULL_SCALE = 32767 / 32768
_CLIPPED_SHARE = 0.001  # a lossy decoder overshoots a little on loud voices; that is no news

# A jump of the time stamps beyond this is a hole in the recording; below, rounding of the container.
_HOLE_SECONDS = 0.04
_MAX_HOLE_SECONDS = 3600


def load_audio(path: str | os.PathLike, sample_rate: int = SAMPLE_RATE) -> np.ndarray:
    """Decode the first audio stream of a sound or video file to mono float32 (samples,) in [-1, 1].

    16-bit mono input at `sample_rate` gives exactly int16 / 32768. Channels are mixed by swresample's weights, scaled
    to add up to 1 (stereo: the mean of both; 5.1: mostly the centre). Holes in the recording are filled with silence,
    samples that are not finite become 0, and those beyond full scale are clipped. Samples that are not finite, and a
    recording of which more than 0.1 % stands at or beyond full scale, are said in the log.

    Raises UserError for a missing, empty or unreadable file, one without sound, or less than 0.1 s of it.
    """
    path = check_input_path(path, "audio")
    data = bytearray()
    clipped = 0
    resampler = _Resampler("flt", "mono", sample_rate)
    for frame in resampler.run(decoded_frames(path)):
        samples = frame.to_ndarray().reshape(-1)
        clipped += int(np.count_nonzero(np.abs(samples) >= _FULL_SCALE))
        data += np.clip(samples, -1.0, 1.0).tobytes()
    audio = np.frombuffer(data, dtype=np.float32)
    if len(audio) == 0:
        raise UserError(f"{path}: the audio has no samples; give a file with sound")
    if len(audio) < MIN_AUDIO_SECONDS * sample_rate:
        raise UserError(
            f"{path}: only {len(audio) / sample_rate:.2f} s of audio; at least {MIN_AUDIO_SECONDS} s are needed"
        )
    if clipped > _CLIPPED_SHARE * len(audio):
        logger.warning("%s: the audio is clipped (%.1f %% of its samples)", path, 100 * clipped / len(audio))
    return audio


def audio_duration(path: str | os.PathLike) -> float:
    """Seconds of sound, exact: samples decoded over their rate. Raises UserError as `load_audio`, but for no length."""
    path = check_input_path(path, "audio")
    seconds = sum((Fraction(frame.samples, frame.sample_rate) for frame in decoded_frames(path)), Fraction(0))
    if seconds == 0:
        raise UserError(f"{path}: the audio has no samples; give a file with sound")
    return float(seconds)


def is_silent(audio: np.ndarray) -> bool:
    """Whether samples (in [-1, 1]) never exceed -60 dB of full scale: no voice can be in them."""
    return audio.size == 0 or float(np.max(np.abs(audio))) < SILENCE_PEAK


def first_audio_stream(container: InputContainer, path: Path, track: int = 0) -> AudioStream:
    """The audio stream number `track`, 0 first. Raises UserError when there is none or its codec is unknown."""
    streams = container.streams.audio
    if not streams:
        raise UserError(f"{path}: the file has no audio stream; give a file with sound")
    if track >= len(streams):
        raise UserError(f"{path}: the file has {len(streams)} audio streams, none with number {track} (0 is the first)")
    stream = streams[track]
    if stream.codec_context is None or not stream.codec_context.sample_rate:
        raise UserError(f"{path}: the audio codec is not supported; convert the file to WAV first")
    return stream


def has_audio(path: str | os.PathLike) -> bool:
    """Whether a file has an audio stream. Raises UserError for a file that cannot be opened."""
    path = check_input_path(path)
    with open_input(path) as container:
        return bool(container.streams.audio)


def decoded_frames(path: Path, track: int = 0) -> Iterator[av.AudioFrame]:
    """Decoded frames of an audio stream without holes and with finite samples only, time stamps counted from 0.

    Damaged packets are skipped, counted in the log, and filled with silence as far as the time stamps tell.
    """
    position = Fraction(0)
    origin: Fraction | None = None
    not_finite = 0
    damaged = 0
    with open_input(path, "audio") as container:
        stream = first_audio_stream(container, path, track)
        for frame in _raw_frames(container, stream):
            if frame is None:
                damaged += 1
                continue
            if frame.pts is not None:
                stamp = frame.pts * frame.time_base
                origin = stamp if origin is None else origin
                hole = stamp - origin - position
                if _HOLE_SECONDS < hole < _MAX_HOLE_SECONDS:
                    for silence in _silence(frame, hole):
                        yield _stamped(silence, position)
                        position += Fraction(silence.samples, silence.sample_rate)
            frame, replaced = _finite(frame)
            not_finite += replaced
            yield _stamped(frame, position)
            position += Fraction(frame.samples, frame.sample_rate)
    if damaged:
        logger.warning("%s: %d damaged audio packets were skipped", path, damaged)
    if not_finite:
        logger.warning("%s: %d audio samples that are not numbers were set to 0", path, not_finite)


class _Resampler:
    """swresample behind one iterator; follows a stream whose own rate or layout changes on the way."""

    def __init__(self, sample_format: str, layout: str, rate: int, frame_size: int = 0) -> None:
        # Unlike its default for float output, channels are mixed with weights that add up to 1: nothing clips.
        options = {"rematrix_maxval": "1.0"}
        self._target = {
            "format": sample_format, "layout": layout, "rate": rate, "frame_size": frame_size, "options": options
        }  # fmt: skip
        self._source: tuple[str, str, int] | None = None
        self._resampler: av.AudioResampler | None = None

    def run(self, frames: Iterator[av.AudioFrame]) -> Iterator[av.AudioFrame]:
        """All of `frames` in the target format, to the last sample."""
        for frame in frames:
            source = (frame.format.name, frame.layout.name, frame.sample_rate)
            if source != self._source:
                yield from self._flush()
                self._source = source
                self._resampler = av.AudioResampler(**self._target)
            yield from self._resampler.resample(frame)
        yield from self._flush()

    def _flush(self) -> list[av.AudioFrame]:
        return [] if self._resampler is None else self._resampler.resample(None)


def resampled(
    frames: Iterator[av.AudioFrame], sample_format: str, layout: str, rate: int, frame_size: int = 0
) -> Iterator[av.AudioFrame]:
    """Audio frames converted by swresample; each of `frame_size` samples but the last, where it is not 0."""
    return _Resampler(sample_format, layout, rate, frame_size).run(frames)


def _raw_frames(container: InputContainer, stream: AudioStream) -> Iterator[av.AudioFrame | None]:
    """Frames as decoded; None stands for a packet that could not be."""
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except av.error.FFmpegError:
            yield None
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


def _finite(frame: av.AudioFrame) -> tuple[av.AudioFrame, int]:
    """The frame with NaN and infinite samples set to 0, and how many there were.

    Only uncompressed float sound can hold them, and that is packed. (PyAV 18 must not be asked for the planes of
    planar frames with 8 channels or more: it reads past their end.)
    """
    if frame.format.name not in ("flt", "dbl"):
        return frame, 0
    samples = frame.to_ndarray()
    bad = ~np.isfinite(samples)
    count = int(np.count_nonzero(bad))
    if not count:
        return frame, 0
    clean = av.AudioFrame.from_ndarray(np.where(bad, 0, samples), frame.format.name, frame.layout.name)
    clean.sample_rate = frame.sample_rate
    return clean, count


def _silence(like: av.AudioFrame, seconds: Fraction) -> Iterator[av.AudioFrame]:
    """Silent frames with the rate and layout of `like`, at most a second each, for `seconds`."""
    remaining = round(seconds * like.sample_rate)
    while remaining > 0:
        length = min(remaining, like.sample_rate)
        frame = av.AudioFrame("s16", like.layout.name, length)
        frame.planes[0].update(bytes(frame.planes[0].buffer_size))
        frame.sample_rate = like.sample_rate
        remaining -= length
        yield frame


def _stamped(frame: av.AudioFrame, position: Fraction) -> av.AudioFrame:
    frame.time_base = Fraction(1, frame.sample_rate)
    frame.pts = round(position * frame.sample_rate)
    return frame
