"""The opened inputs of a run: frames, the speech of each person, and the audio of the output."""

import logging
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from latentsync.constants import SAMPLE_RATE
from latentsync.media.audio import SpooledAudio
from latentsync.media.audio_stream import AudioSource
from latentsync.media.probe import VideoInfo
from latentsync.media.samples import Samples
from latentsync.media.sources import VideoSource
from latentsync.options import GenerationOptions
from latentsync.pipelines.length import Fit
from latentsync.pipelines.speakers import Speaker, make_speaker
from latentsync.pretrained.text_to_speech import synthesize
from latentsync.whisper.audio2feature import Audio2Feature

logger = logging.getLogger(__name__)

Files = Mapping[str, Path]  # audio files of a script by name


@dataclass(frozen=True)
class Clip:
    """Opened inputs.

    Args:
        source: the video.
        fps: frame rate of the generated frames.
        fit: the frames.
        speakers: the people to edit.
        audio: makes the audio of the output.
    """

    source: VideoSource
    fps: Fraction
    fit: Fit
    speakers: tuple[Speaker, ...]
    audio: Callable[[], AudioSource]

    @property
    def info(self) -> VideoInfo:
        return self.source.info


@dataclass(frozen=True)
class Opened:
    """Inputs common to all kinds of clips; `stack` closes the files they open. seconds: maximum duration, if any."""

    stack: ExitStack
    source: VideoSource
    fps: Fraction
    options: GenerationOptions
    encoder: Audio2Feature

    @property
    def seconds(self) -> Fraction | None:
        most = self.options.max_seconds
        return None if most is None else Fraction(most).limit_denominator(1_000_000)

    def spool(self, source: AudioSource) -> SpooledAudio:
        """The samples of an audio source at 16 kHz."""
        wave = self.stack.enter_context(closing(SpooledAudio(source, SAMPLE_RATE)))
        if wave.is_silent:
            logger.warning("%s is silent: the mouth will not move", source.path)
        return wave

    def speak(self, text: str, voice: str | None) -> Path:
        """A temporary file with a spoken text."""
        path = self.folder() / "speech.wav"
        synthesize(text, voice, path)
        return path

    def folder(self) -> Path:
        return Path(self.stack.enter_context(tempfile.TemporaryDirectory(prefix="latentsync-")))

    def speaker(self, face: str, wave: Samples, weights: np.ndarray) -> Speaker:
        return make_speaker(face, wave, self.encoder, self.fps, self.options.silence, weights)
