"""Clips in which several people speak, as a script says."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import numpy as np

from latentsync.constants import SAMPLE_RATE
from latentsync.media.audio import SpooledAudio
from latentsync.media.audio_stream import AudioSource, select_audio
from latentsync.media.paths import check_input_path
from latentsync.media.samples import PlacedSamples
from latentsync.media.soundtrack import Layer
from latentsync.pipelines.clip import Clip, Files, Opened
from latentsync.pipelines.length import whole_video
from latentsync.pipelines.original_audio import Mixer
from latentsync.pipelines.script import Cue, check_overlaps, find_audio, read_script
from latentsync.pipelines.speakers import Speaker, fade_in
from latentsync.utils.errors import UserError

logger = logging.getLogger(__name__)

LONGER = Fraction(1, 10)  # seconds by which audio may exceed its cue without a word


@dataclass(frozen=True)
class Line:
    """A cue with its audio. start, end: seconds from the first used frame; the start may be negative."""

    face: str
    start: Fraction
    end: Fraction
    source: AudioSource
    wave: SpooledAudio


def open_scripted(opened: Opened, script: Path, files: Files | None) -> Clip:
    """A clip with the voices of a script; frames and audio outside its cues are those of the video.

    Args:
        files: audio files by the names in the script; None where these are paths relative to it.

    Raises:
        UserError: the script or one of its files is not valid, or it has no cue within the video.
    """
    lines = _lines(opened, read_script(check_input_path(script, "script")), script.parent, files)
    latest = max((line.end for line in lines), default=Fraction(0))
    fit = whole_video(opened.source, latest, opened.fps, opened.seconds)
    seconds = fit.count / opened.fps
    lines = [line for line in lines if line.end > 0 and line.start < seconds]
    if not lines:
        raise UserError(f"{script}: no cue is within the {float(seconds):.2f} s of video that are used")
    faces = dict.fromkeys(line.face for line in lines)
    speakers = tuple(_speaker(opened, [line for line in lines if line.face == face], fit.count) for face in faces)

    def mix() -> AudioSource:
        mixer = Mixer(opened.source, opened.options.mix_original, opened.folder)
        return mixer.around([_layer(line) for line in lines], [(line.start, line.end) for line in lines], seconds)

    return Clip(opened.source, opened.fps, fit, speakers, mix)


def _lines(opened: Opened, cues: Sequence[Cue], folder: Path, files: Files | None) -> list[Line]:
    offset = opened.source.part.start
    waves: dict[AudioSource, SpooledAudio] = {}
    lines = []
    for cue in cues:
        source = _source(opened, cue, folder, files)
        if source not in waves:
            waves[source] = opened.spool(source)
        wave = waves[source]
        length = Fraction(len(wave), SAMPLE_RATE)
        end = cue.start + length if cue.end is None else cue.end
        if length > end - cue.start + LONGER:
            logger.warning(
                "%s: its audio lasts %.2f s and is cut to %.2f s", cue.place, float(length), float(end - cue.start)
            )
        lines.append(Line(cue.face or opened.options.face, cue.start - offset, end - offset, source, wave))
    check_overlaps([(cue, line.face, line.start, line.end) for cue, line in zip(cues, lines, strict=True)])
    return lines


def _source(opened: Opened, cue: Cue, folder: Path, files: Files | None) -> AudioSource:
    if cue.text is not None:
        return select_audio(opened.speak(cue.text, cue.voice or opened.options.voice))
    try:
        return select_audio(find_audio(cue, folder, files), opened.options.audio_track)
    except UserError as error:
        raise UserError(str(error) if str(error).startswith(cue.place) else f"{cue.place}: {error}") from error


def _speaker(opened: Opened, lines: Sequence[Line], count: int) -> Speaker:
    """The person of the lines, all of one face."""
    fps = opened.fps
    time = np.zeros(count, bool)
    for line in lines:
        time[max(0, math.ceil(line.start * fps)) : max(0, math.ceil(line.end * fps))] = True
    parts = [
        (round(line.start * SAMPLE_RATE), PlacedSamples([(0, line.wave)], round((line.end - line.start) * SAMPLE_RATE)))
        for line in lines
    ]
    wave = PlacedSamples(parts, math.ceil(count / fps * SAMPLE_RATE))
    return opened.speaker(lines[0].face, wave, fade_in(time))


def _layer(line: Line) -> Layer:
    """The voice of a line in the mix, from the first used frame on."""
    early = min(line.start, Fraction(0))  # audio before the used part is left out
    source = replace(line.source, delay=line.source.delay + early).cut(line.end - max(line.start, Fraction(0)))
    return Layer(source, max(line.start, Fraction(0)))
