"""Step 6: correct the audio-visual offset; drop clips that are not in sync, or whose voice is someone else's."""

from dataclasses import replace
from fractions import Fraction

import numpy as np

from latentsync.constants import FPS, SAMPLES_PER_FRAME
from latentsync.metrics.clip_sync import ClipSync, ClipSyncScorer
from latentsync.metrics.sync_gate import Evidence, gather
from preprocess.clip import Clip
from preprocess.settings import ProcessSettings
from preprocess.tools import Tools

STEP = "sync"
SILENCE = 10 ** (-60 / 20)  # of full scale
SECOND_AGREEMENT = 2  # frames


def sync(clip: Clip, settings: ProcessSettings, tools: Tools) -> Clip:
    """Shift the audio by the offset found, in whole frames; ends without a counterpart are cut off.

    Figures: `offset` (frames by which the audio was early, see `latentsync.metrics.sync`), `confidence`,
    `preference`, `offset_halves` (see `latentsync.metrics.sync_gate`), `sync_scorer`, and with a second scorer
    `offset_second`. Dropped: silence, too short to score, confidence or preference below its threshold, offset too
    large, or not the same in both halves or by a second scorer that is certain. A clip without audio is left unchanged.
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
    evidence = gather(found.vision, found.audio, found.offset)
    figures = {**clip.figures, "offset": found.offset, "confidence": confidence, "sync_scorer": found.scorer}
    figures |= {"preference": round(evidence.preference, 4), "offset_halves": _halves(evidence)}
    clip = replace(clip, figures=figures)
    problem = _problem(found, evidence, scorer, settings)
    if problem is not None:
        return clip.dropped(STEP, problem)
    if tools.second_scorer is not None:
        clip, problem = _ask_second(clip, tools.second_scorer, found.offset)
        if problem is not None:
            return clip.dropped(STEP, problem)
    clip = shift_audio(clip, found.offset)
    if clip.num_frames < settings.min_frames:
        return clip.dropped(STEP, f"{clip.num_frames} frames are left in sync, {settings.min_frames} are needed")
    return clip


def _problem(found: ClipSync, evidence: Evidence, scorer: ClipSyncScorer, settings: ProcessSettings) -> str | None:
    """Why the audio cannot be trusted to be the speaker's; None if it can."""
    threshold, preference = settings.sync_conf_threshold, settings.min_preference
    threshold = scorer.default_threshold if threshold is None else threshold
    preference = scorer.default_preference if preference is None else preference
    if found.confidence < threshold:
        return f"sync confidence {found.confidence:.2f}, {threshold:g} is needed"
    if abs(found.offset) > settings.max_offset:
        return f"audio is {found.offset:+d} frames early, the limit is {settings.max_offset}"
    if preference != 0 and not evidence.agrees:
        return f"audio of the two halves is {_halves(evidence)} frames early"
    if preference is not None and evidence.preference < preference:
        return f"sync preference {evidence.preference:.1%}, {preference:.1%} is needed"
    return None


def _halves(evidence: Evidence) -> str:
    return "" if evidence.halves is None else "{:+d} and {:+d}".format(*evidence.halves)


def _ask_second(clip: Clip, second: ClipSyncScorer, offset: int) -> tuple[Clip, str | None]:
    """The clip with the second scorer's offset, and the problem if it is certain of another one."""
    if clip.wave is None or clip.num_frames < second.min_frames:
        return clip, None
    found = second.score_faces(clip.kept_faces, clip.wave)
    clip = replace(clip, figures={**clip.figures, "offset_second": found.offset})
    evidence = gather(found.vision, found.audio, found.offset)
    sure = evidence.agrees and evidence.preference >= (second.default_preference or 1)
    if sure and abs(found.offset - offset) > SECOND_AGREEMENT:
        return clip, f"audio is {offset:+d} frames early, but {found.offset:+d} by the SyncNet {second.name}"
    return clip, None


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
