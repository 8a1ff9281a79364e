"""The audio of the output where the video's own audio is kept: under the voice, after it, or around it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from latentsync.media.audio_stream import AudioSource, has_audio, select_audio
from latentsync.media.loudness import integrated_loudness
from latentsync.media.soundtrack import Layer, Level, write_mix
from latentsync.media.sources import IN_MEMORY, VideoSource


@dataclass(frozen=True)
class Mixer:
    """Mixes voices with the audio of a video.

    Args:
        video: the video.
        share: level of its audio under a voice, 0 to 1; at 1 both are equally loud (EBU R 128).
        folder: makes a temporary folder.
    """

    video: VideoSource
    share: float
    folder: Callable[[], Path]

    def under(self, voice: AudioSource, seconds: Fraction, fps: Fraction) -> AudioSource:
        """The voice for `seconds`, with the original audio, repeated where the video is shorter, under it."""
        original = self.original() if self.share else None
        if original is None:
            return voice
        level = Level(self._gain(original, [voice]))
        length = (self.video.available(fps) or 1) / fps
        starts = [number * length for number in range(math.ceil(seconds / length))]
        layers = [Layer(original.cut(length), start, level) for start in starts]
        return write_mix(self.folder() / "mix.wav", [Layer(voice), *layers], seconds)

    def until(self, voice: AudioSource, spoken: Fraction, seconds: Fraction) -> AudioSource:
        """The voice, and from `spoken` to `seconds` the original audio alone."""
        original = self.original()
        if original is None:
            return voice
        level = Level(self._gain(original, [voice]), 1.0, ((Fraction(0), spoken),))
        return write_mix(self.folder() / "mix.wav", [Layer(voice), Layer(original, level=level)], seconds)

    def around(
        self, voices: Sequence[Layer], spans: Sequence[tuple[Fraction, Fraction]], seconds: Fraction
    ) -> AudioSource:
        """Voices within the spans, and the original audio alone elsewhere."""
        original = self.original()
        layers = list(voices)
        if original is not None:
            gain = self._gain(original, [layer.source for layer in voices])
            layers.append(Layer(original, level=Level(gain, 1.0, tuple(spans))))
        return write_mix(self.folder() / "mix.wav", layers, seconds)

    def original(self) -> AudioSource | None:
        """The audio of the used part of the video; None if it has none."""
        path, part = self.video.info.path, self.video.part
        if path == IN_MEMORY or self.video.info.is_still or not has_audio(path):
            return None
        return select_audio(path, None, path, part.start, part.end)

    def _gain(self, original: AudioSource, voices: Sequence[AudioSource]) -> float:
        """Gain of the original audio under the voices."""
        if not self.share:
            return 0.0
        wanted = [loudness for voice in voices if (loudness := integrated_loudness(voice)) is not None]
        found = integrated_loudness(original)
        if not wanted or found is None:
            return self.share
        mean = 10 * math.log10(sum(10 ** (loudness / 10) for loudness in wanted) / len(wanted))
        return self.share * 10 ** ((mean - found) / 20)
