"""Step 6: correct the audio-visual offset; drop clips that are not in sync.

Legend: T frames.
"""

from dataclasses import replace
from fractions import Fraction

import numpy as np

from latentsync.constants import FPS, SAMPLES_PER_FRAME
from preprocess.clip import Clip
from preprocess.settings import ProcessSettings
from preprocess.tools import Tools

STEP = "sync"
SILENCE = 10 ** (-60 / 20)  # of full scale


def sync(clip: Clip, settings: ProcessSettings, tools: Tools) -> Clip:
    """Shift the audio by the offset found, in whole frames; ends without a counterpart are cut off.

    Figures: `offset` (frames by which the audio was early, see `latentsync.metrics.sync`), `confidence`,
    `sync_scorer`. Dropped: silence, too short to score, confidence below the threshold, offset too large. A clip
    without audio is left unchanged.
    """
    if clip.wave is None:
        return clip
    scorer = tools.scorer
    if abs(clip.wave).max(initial=0) < SILENCE:
        return clip.dropped(STEP, "no audio")
    if clip.num_frames < scorer.min_frames:
        return clip.dropped(STEP, f"{clip.num_frames} frames are too few to score sync, {scorer.min_frames} needed")
    found = scorer.score_faces(clip.kept_faces, clip.wave)
    confidence = round(found.confidence, 4)
    figures = {**clip.figures, "offset": found.offset, "confidence": confidence, "sync_scorer": found.scorer}
    clip = replace(clip, figures=figures)
    threshold = settings.sync_conf_threshold
    threshold = scorer.default_threshold if threshold is None else threshold
    if found.confidence < threshold:
        return clip.dropped(STEP, f"sync confidence {found.confidence:.2f}, {threshold:g} is needed")
    if abs(found.offset) > settings.max_offset:
        return clip.dropped(STEP, f"audio is {found.offset:+d} frames early, the limit is {settings.max_offset}")
    clip = shift_audio(clip, found.offset)
    if clip.num_frames < settings.min_frames:
        return clip.dropped(STEP, f"{clip.num_frames} frames are left in sync, {settings.min_frames} are needed")
    return clip


def shift_audio(clip: Clip, offset: int) -> Clip:
    """Delay the audio by `offset` frames (advance it if negative), without padding."""
    faces, wave = clip.kept_faces, clip.wave
    if offset == 0 or wave is None:
        return clip
    if offset > 0:  # the mouth at frame i belongs to the audio at i - offset
        return replace(
            clip,
            start=clip.start + Fraction(offset, FPS),
            faces=faces[offset:],
            wave=_whole(wave[: -offset * SAMPLES_PER_FRAME]),
        )
    return replace(clip, faces=faces[:offset], wave=_whole(wave[-offset * SAMPLES_PER_FRAME :]))


def _whole(wave: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(wave)
