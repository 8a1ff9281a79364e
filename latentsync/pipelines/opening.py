"""Opens the inputs of a run."""

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from pathlib import Path

import numpy as np

from latentsync.constants import SAMPLE_RATE
from latentsync.media.audio_stream import AudioSource, select_audio
from latentsync.media.samples import PlacedSamples, Samples
from latentsync.media.sources import AudioInput, VideoInput, audio_file, open_video
from latentsync.media.timeline import Part
from latentsync.options import GenerationOptions
from latentsync.pipelines.clip import Clip, Files, Opened
from latentsync.pipelines.length import KEEP_TAIL, REST_TAIL, fit_length
from latentsync.pipelines.original_audio import Mixer
from latentsync.pipelines.scripted import open_scripted
from latentsync.pipelines.speakers import fade_out
from latentsync.utils.errors import UserError
from latentsync.utils.rates import exact_rate
from latentsync.whisper.audio2feature import Audio2Feature


@contextmanager
def open_clip(
    video: VideoInput, audio: AudioInput | Files | None, options: GenerationOptions, encoder: Audio2Feature
) -> Iterator[Clip]:
    """Open the inputs of a run; temporary files are removed on exit.

    Args:
        video, audio: see `latentsync.media.sources`. With a script, `audio` maps the names in it to files, or is None
            where these are paths relative to it. With a text it is None.

    Raises:
        UserError: invalid input or options.
    """
    with ExitStack() as stack:
        opened_video = open_video(video, _part(options), ten_bits=options.is_ten_bit, keep_hdr=options.hdr == "keep")
        source = stack.enter_context(opened_video)
        keep_fps = options.keep_fps and not source.info.is_still
        fps = source.info.fps if keep_fps else exact_rate(options.video_fps)
        opened = Opened(stack, source, fps, options, encoder)
        if options.script is not None:
            yield open_scripted(opened, options.script, _script_files(audio))
        else:
            yield _open_voice(opened, audio)


def _part(options: GenerationOptions) -> Part:
    start, end = (None if time is None else Fraction(str(time)) for time in (options.start, options.end))
    return Part(start or Fraction(0), end)


def _script_files(audio: AudioInput | Files | None) -> Files | None:
    if audio is None or isinstance(audio, Mapping):
        return audio
    raise UserError("audio and script exclude each other; name the audio files in the script")


def _voice_file(opened: Opened, audio: AudioInput | Files | None) -> Path:
    options = opened.options
    if options.text is not None:
        if audio is not None:
            raise UserError("audio and text exclude each other; give one of them")
        return opened.speak(options.text, options.voice)
    if audio is None or isinstance(audio, Mapping):
        raise UserError("audio is missing; give a file, a text or a script")
    return Path(opened.stack.enter_context(audio_file(audio)))


def _open_voice(opened: Opened, audio: AudioInput | Files | None) -> Clip:
    """A clip in which one person speaks all the time."""
    options, source, fps = opened.options, opened.source, opened.fps
    part = source.part
    voice = select_audio(_voice_file(opened, audio), options.audio_track, source.info.path, part.start, part.end).cut(
        opened.seconds
    )
    wave = opened.spool(voice)
    fit = fit_length(source, Fraction(len(wave), SAMPLE_RATE), fps, options.length_mode, opened.seconds)
    padded: Samples = wave
    if fit.count > fit.spoken:
        padded = PlacedSamples([(0, wave)], math.ceil(fit.count / fps * SAMPLE_RATE))
    spoken = np.arange(fit.count) < fit.spoken
    keeps_tail = options.length_mode == KEEP_TAIL and not spoken.all()
    weights = fade_out(spoken) if keeps_tail else np.ones(fit.count, np.float32)
    speaker = opened.speaker(options.face, padded, weights)
    if options.length_mode == REST_TAIL:  # also where pauses keep the original frames
        np.maximum(speaker.weights, fade_out(~spoken), out=speaker.weights)

    def mix() -> AudioSource:
        seconds = min(Fraction(len(wave), SAMPLE_RATE), fit.count / fps)
        mixer = Mixer(source, options.mix_original, opened.folder)
        if keeps_tail:
            return mixer.until(voice, seconds, fit.count / fps)
        return mixer.under(voice.cut(seconds) if options.length_mode == "cut" else voice, seconds, fps)

    return Clip(source, fps, fit, (speaker,), mix)
