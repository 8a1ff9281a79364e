"""Step 6: offset between lips and sound, measured and corrected; clips that are not in sync are left out.

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
SILENCE = 10 ** (-60 / 20)  # of full scale: nothing is said


def sync(clip: Clip, settings: ProcessSettings, tools: Tools) -> Clip:
    """Moves the sound by the offset found, at whole frames; the ends that lose their partner are cut off.

    Figures: `offset` (frames that the sound was EARLY, see `latentsync.metrics.clip_sync`), `confidence`,
    `sync_scorer`. Dropped: silence, too short to measure, confidence below the threshold, offset too large. A clip of
    a source without sound stays as it is.
    """
    if clip.wave is None:
        return clip
    scorer = tools.scorer
    if abs(clip.wave).max(initial=0) < SILENCE:
        return clip.dropped(STEP, "no sound")
    if clip.num_frames < scorer.min_frames:
        return clip.dropped(STEP, f"{clip.num_frames} frames are too few to measure sync, {scorer.min_frames} needed")
    found = scorer.score_faces(clip.faces, clip.wave)
    figures = {"offset": found.offset, "confidence": round(found.confidence, 4), "sync_scorer": found.scorer}
    clip = replace(clip, figures={**clip.figures, **figures})
    threshold = settings.sync_conf_threshold
    threshold = scorer.default_threshold if threshold is None else threshold
    if found.confidence < threshold:
        return clip.dropped(STEP, f"sync confidence {found.confidence:.2f}, {threshold:g} is needed")
    if abs(found.offset) > settings.max_offset:
        return clip.dropped(STEP, f"sound is {found.offset:+d} frames early, {settings.max_offset} can be mended")
    clip = shift_sound(clip, found.offset)
    if clip.num_frames < settings.min_frames:
        return clip.dropped(STEP, f"{clip.num_frames} frames are left in sync, {settings.min_frames} are needed")
    return clip


def shift_sound(clip: Clip, offset: int) -> Clip:
    """The clip with its sound `offset` frames later than it was (earlier if negative); nothing is made up."""
    if offset == 0:
        return clip
    faces, wave = clip.faces, clip.wave
    if offset > 0:  # what is seen at i was heard at i - offset
        return replace(
            clip,
            start=clip.start + Fraction(offset, FPS),
            faces=faces[offset:],
            wave=_whole(wave[: -offset * SAMPLES_PER_FRAME]),
        )
    return replace(clip, faces=faces[:offset], wave=_whole(wave[-offset * SAMPLES_PER_FRAME :]))


def _whole(wave: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(wave)
