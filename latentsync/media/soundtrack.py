"""Mixing several audio sources into one file, in constant memory. Letters: C channels, N samples."""

import logging
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from latentsync.media.audio import resampled
from latentsync.media.audio_stream import AudioSource, decoded_frames, first_audio_stream
from latentsync.media.paths import open_input

logger = logging.getLogger(__name__)

RATE = 48_000  # where the sources have different ones
FADE_SECONDS = 0.02  # of a change of level
LAYOUTS = {1: "mono", 2: "stereo"}


@dataclass(frozen=True)
class Level:
    """Gain of a source over time: `gain` within `spans` (start and end in seconds), `outside` elsewhere.

    The change takes 20 ms, within the span. Without spans it is `gain` all the time.
    """

    gain: float = 1.0
    outside: float = 1.0
    spans: tuple[tuple[Fraction, Fraction], ...] = ()

    def at(self, start: int, stop: int, rate: int) -> np.ndarray:
        """(stop - start,) float32 gains of samples."""
        if not self.spans:
            return np.full(stop - start, self.gain, np.float32)
        share = np.zeros(stop - start)  # 1 within a span
        fade = round(FADE_SECONDS * rate)
        position = np.arange(start, stop)
        for low, high in self.spans:
            first, last = round(low * rate), round(high * rate)
            into = (position - first + 1) / fade if first > 0 else np.ones(len(position))
            share = np.maximum(share, np.clip(np.minimum(into, (last - position) / fade), 0, 1))
        return (self.outside + (self.gain - self.outside) * share).astype(np.float32)


@dataclass(frozen=True)
class Layer:
    """A source in a mix, from `start` seconds on, at a level over the time of the mix."""

    source: AudioSource
    start: Fraction = Fraction(0)
    level: Level = Level()


def write_mix(path: Path, layers: Sequence[Layer], seconds: Fraction) -> AudioSource:
    """Write the sum of the layers as a WAV file of 32-bit floats, `seconds` long; returns its audio.

    Sample rate and channels are those of the layers where they agree, else 48 kHz and stereo. A single layer at gain 1
    keeps its samples. A mix that exceeds full scale is made quieter as a whole.
    """
    formats = [_format(layer.source) for layer in layers]
    rate = formats[0][0] if len({found[0] for found in formats}) == 1 else RATE
    channels = max(min(found[1], 2) for found in formats)
    peak = _write(path, layers, rate, channels, round(seconds * rate), 1.0)
    if peak > 1:
        logger.info("the mixed audio is %.1f dB above full scale and is made quieter", 20 * np.log10(peak))
        _write(path, layers, rate, channels, round(seconds * rate), 1 / peak)
    return AudioSource(path)


def _write(path: Path, layers: Sequence[Layer], rate: int, channels: int, length: int, gain: float) -> float:
    """Write the mix times `gain`; returns its largest magnitude."""
    peak = 0.0
    readers = [_Reader(layer.source, rate, channels) for layer in layers]
    with av.open(str(path), "w", format="wav") as container:
        stream = container.add_stream("pcm_f32le", rate=rate, layout=LAYOUTS[channels])
        for start in range(0, length, rate):
            stop = min(length, start + rate)
            mix = np.zeros((stop - start, channels), np.float32)
            for layer, reader in zip(layers, readers, strict=True):
                first = round(layer.start * rate)
                if stop > first:
                    part = reader.read(stop - max(start, first))
                    mix[stop - start - len(part) :] += part * layer.level.at(stop - len(part), stop, rate)[:, None]
            mix *= gain
            peak = max(peak, float(np.abs(mix).max(initial=0)))
            frame = av.AudioFrame.from_ndarray(mix.reshape(1, -1), "flt", LAYOUTS[channels])
            frame.sample_rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    for reader in readers:
        reader.close()
    return peak


def _format(source: AudioSource) -> tuple[int, int]:
    """Sample rate and number of channels."""
    with open_input(source.path, "audio") as container:
        codec = first_audio_stream(container, source.path, source.track).codec_context
        return codec.sample_rate, codec.channels


class _Reader:
    """Reads a source in order, as (n, C) float32; silence after its end."""

    def __init__(self, source: AudioSource, rate: int, channels: int) -> None:
        self._channels = channels
        self._pieces = self._decode(source, rate)
        self._waiting = np.zeros((0, channels), np.float32)

    def read(self, count: int) -> np.ndarray:
        parts, missing = [], count
        while missing > 0:
            if not len(self._waiting):
                self._waiting = next(self._pieces, np.zeros((missing, self._channels), np.float32))
            parts.append(self._waiting[:missing])
            self._waiting = self._waiting[missing:]
            missing -= len(parts[-1])
        return np.concatenate(parts)

    def close(self) -> None:
        self._pieces.close()

    def _decode(self, source: AudioSource, rate: int) -> Generator[np.ndarray, None, None]:
        # One channel is doubled here, because swresample would make it 3 dB quieter.
        layout = LAYOUTS[min(_format(source)[1], self._channels)]
        left = None if source.seconds is None else round(source.seconds * rate)
        for frame in self._frames(source, layout, rate):
            samples = frame.to_ndarray().reshape(-1, len(frame.layout.channels))
            samples = samples if left is None else samples[:left]
            left = None if left is None else left - len(samples)
            yield np.repeat(samples, self._channels, axis=1) if samples.shape[1] < self._channels else samples
            if left == 0:
                return

    @staticmethod
    def _frames(source: AudioSource, layout: str, rate: int) -> Iterator[av.AudioFrame]:
        return resampled(decoded_frames(source.path, source.track, source.delay), "flt", layout, rate)
