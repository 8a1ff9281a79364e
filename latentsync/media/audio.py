"""Audio as the samples that the models read."""

import logging
import os
import tempfile
from collections.abc import Generator, Iterator
from fractions import Fraction
from functools import partial

import av
import numpy as np

from latentsync.constants import SAMPLE_RATE
from latentsync.media.audio_stream import AudioSource, decoded_frames, first_audio_stream, has_audio
from latentsync.media.paths import check_input_path
from latentsync.media.samples import SlicedSamples
from latentsync.utils.errors import UserError

__all__ = [
    "SpooledAudio",
    "audio_duration",
    "decoded_frames",
    "first_audio_stream",
    "has_audio",
    "is_silent",
    "load_audio",
    "resampled",
]
logger = logging.getLogger(__name__)

MIN_AUDIO_SECONDS = 0.1
SILENCE_PEAK = 10.0 ** (-60.0 / 20.0)  # -60 dB of full scale

_FULL_SCALE = 32767 / 32768
_CLIPPED_SHARE = 0.001  # lossy decoders overshoot a little on loud audio; that is normal


def load_audio(path: str | os.PathLike, sample_rate: int = SAMPLE_RATE, max_seconds: float | None = None) -> np.ndarray:
    """Decode the default audio stream of an audio or video file to mono float32 (samples,) in [-1, 1].

    16-bit mono input at `sample_rate` gives exactly int16 / 32768. Channels are mixed by swresample's weights, scaled
    to add up to 1 (stereo: the mean of both; 5.1: mostly the center). Gaps in the recording are filled with silence,
    samples that are not finite become 0, and those beyond full scale are clipped. The log warns about samples that are
    not finite, and about a recording of which more than 0.1% reaches full scale.

    Args:
        path: the file.
        sample_rate: of the result, in Hz.
        max_seconds: decode no more than this.

    Raises:
        UserError: the file is missing, empty or unreadable, has no audio, less than 0.1 s of it, a sample rate or a
            number of channels out of range, or gaps of more than an hour in total.
    """
    data = bytearray()
    for samples in _decoded_samples(audio_source(path), sample_rate, max_seconds):
        data += samples.tobytes()
    return np.frombuffer(data, dtype=np.float32)


class SpooledAudio(SlicedSamples):
    """The samples of `load_audio` in a temporary file instead of memory, read slice by slice.

    A slice without a step is an array (samples,) float32. `peak` is the largest magnitude of all samples.
    """

    def __init__(
        self, source: str | os.PathLike | AudioSource, sample_rate: int = SAMPLE_RATE, max_seconds: float | None = None
    ) -> None:
        """Decode. Arguments and errors as of `load_audio`; also UserError when the temporary folder is full."""
        source = audio_source(source)
        super().__init__(0)
        self.peak = 0.0
        self._file = tempfile.TemporaryFile()
        for samples in _decoded_samples(source, sample_rate, max_seconds):
            self.peak = max(self.peak, float(np.abs(samples).max(initial=0)))
            self._length += len(samples)
            try:
                self._file.write(samples.tobytes())
                self._file.flush()
            except OSError as error:
                raise UserError(
                    f"{source.path}: the decoded audio cannot be kept in {tempfile.gettempdir()} ({error.strerror}); "
                    "free space there, or set TMPDIR to another folder"
                ) from error

    def _read(self, start: int, stop: int) -> np.ndarray:
        return np.frombuffer(os.pread(self._file.fileno(), 4 * (stop - start), 4 * start), dtype=np.float32)

    @property
    def is_silent(self) -> bool:
        """Whether no sample exceeds -60 dB of full scale, so that there can be no speech."""
        return self.peak < SILENCE_PEAK

    def close(self) -> None:
        """Delete the temporary file."""
        self._file.close()


def audio_source(source: str | os.PathLike | AudioSource) -> AudioSource:
    """The default audio stream of a file; an `AudioSource` itself. Raises UserError for a path that is no file."""
    return source if isinstance(source, AudioSource) else AudioSource(check_input_path(source, "audio"))


def _decoded_samples(source: AudioSource, sample_rate: int, max_seconds: float | None) -> Iterator[np.ndarray]:
    """Pieces of mono float32 samples, to the end or to `max_seconds`; errors as of `load_audio`."""
    path = source.path
    most = source.cut(max_seconds).seconds
    limit = None if most is None else round(most * sample_rate)
    length, clipped = 0, 0
    for frame in resampled(decoded_frames(path, source.track, source.delay), "flt", "mono", sample_rate):
        samples = frame.to_ndarray().reshape(-1)
        if limit is not None:
            samples = samples[: limit - length]
        clipped += int(np.count_nonzero(np.abs(samples) >= _FULL_SCALE))
        length += len(samples)
        yield np.clip(samples, -1.0, 1.0)
        if length == limit:
            break
    if length == 0:
        raise UserError(f"{path}: the audio has no samples; give a file with audio")
    if length < MIN_AUDIO_SECONDS * sample_rate:
        found = length / sample_rate
        raise UserError(f"{path}: only {found:.2f} s of audio; at least {MIN_AUDIO_SECONDS} s are needed")
    if clipped > _CLIPPED_SHARE * length:
        logger.warning("%s: the audio is clipped (%.1f%% of its samples)", path, 100 * clipped / length)


def audio_duration(path: str | os.PathLike) -> float:
    """Exact seconds of audio: decoded samples over their rate. Raises UserError as `load_audio`, but for no length."""
    path = check_input_path(path, "audio")
    seconds = sum((Fraction(frame.samples, frame.sample_rate) for frame in decoded_frames(path)), Fraction(0))
    if seconds == 0:
        raise UserError(f"{path}: the audio has no samples; give a file with audio")
    return float(seconds)


def is_silent(audio: np.ndarray) -> bool:
    """Whether no sample (in [-1, 1]) exceeds -60 dB of full scale, so that there can be no speech."""
    return audio.size == 0 or float(np.max(np.abs(audio))) < SILENCE_PEAK


class _Resampler:
    """swresample as an iterator, for streams whose rate or layout may change."""

    def __init__(self, sample_format: str, layout: str, rate: int, frame_size: int = 0) -> None:
        # Unlike its default for float output, channels are mixed with weights that add up to 1: nothing clips.
        options = {"rematrix_maxval": "1.0"}
        self._create = partial(av.AudioResampler, sample_format, layout, rate, frame_size, options=options)
        self._source: tuple[str, str, int] | None = None
        self._resampler: av.AudioResampler | None = None

    def run(self, frames: Iterator[av.AudioFrame]) -> Generator[av.AudioFrame]:
        """All of `frames` in the target format, to the last sample."""
        for frame in frames:
            source = (frame.format.name, frame.layout.name, frame.sample_rate)
            if self._resampler is None or source != self._source:
                yield from self._flush()
                self._source, self._resampler = source, self._create()
            yield from self._resampler.resample(frame)
        yield from self._flush()

    def _flush(self) -> list[av.AudioFrame]:
        return [] if self._resampler is None else self._resampler.resample(None)


def resampled(
    frames: Iterator[av.AudioFrame], sample_format: str, layout: str, rate: int, frame_size: int = 0
) -> Generator[av.AudioFrame]:
    """Convert audio frames with swresample. Unless it is 0, all but the last have `frame_size` samples."""
    return _Resampler(sample_format, layout, rate, frame_size).run(frames)
