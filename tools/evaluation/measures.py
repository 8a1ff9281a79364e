"""The measurements on one clip, each a dictionary of plain values for the report.

Legend: T frames, N samples, R pixels. Faces are (T, 3, R, R) in [-1, 1].
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from latentsync.faces.mouth import MouthMeter, closed_opening, mean_opening
from latentsync.media.silence import silence_and_speech
from latentsync.metrics.image import crop_region, mouth_region, psnr, ssim
from latentsync.metrics.sync import SyncScore, SyncScorer, offset_score, preference
from tools.evaluation.clips import FPS, SAMPLE_RATE, HeldOutClip, LoadedClip, Voice
from tools.evaluation.synthesis import CHUNK, Talker, pingpong

SILENCE_SECONDS = 1.5
MAX_CORRECTION = 6  # frames; data processing moves the sound of a clip by no more
Values = dict[str, Any]


def identity(clip: HeldOutClip) -> Values:
    """What every clip's entry begins with."""
    return {"clip": clip.name, "person": clip.person, "seen": clip.seen}


def to_uint8(faces: Tensor) -> np.ndarray:
    """(T, 3, R, R) in [-1, 1] -> (T, R, R, 3) uint8."""
    return ((faces.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).contiguous().numpy()


def measure_syncnet(scorer: SyncScorer, clip: LoadedClip, reference: SyncScorer | None = None) -> Values:
    """A real clip as the scorer sees it: how often in-sync windows are preferred, offset, confidence.

    Some recordings are out of sync themselves. corrected_preference is that with the sound moved by the offset found,
    if that is at most 6 frames, as data processing would do before training. With a `reference`, another SyncNet,
    aligned_preference and aligned_offset are those with the sound moved by what the reference finds,
    `reference_offset`.
    """
    vision, audio = scorer.embed(clip.faces, clip.wave)
    shares, score = preference(vision, audio), offset_score(vision, audio)
    corrected = preference(*_put_in_sync(vision, audio, _correction(score.offset)))
    values = {
        **identity(clip.clip),
        "windows": len(shares),
        "preference": float(shares.mean()),
        "corrected_preference": float(corrected.mean()),
        "offset": score.offset,
        "confidence": score.confidence,
    }
    if reference is not None:
        late = reference.score(clip.faces, clip.wave).offset
        aligned = preference(*_put_in_sync(vision, audio, _correction(late)))
        values["reference_offset"] = late
        values["aligned_preference"] = float(aligned.mean())
        values["aligned_offset"] = score.offset - _correction(late)
    return values


def _correction(offset: int) -> int:
    return offset if abs(offset) <= MAX_CORRECTION else 0


def _put_in_sync(vision: Tensor, audio: Tensor, late: int) -> tuple[Tensor, Tensor]:
    """Windows (W, D) of both, the sound moved by so many frames: (W - |late|, D) that belong together."""
    windows = len(vision) - abs(late)
    return vision[max(-late, 0) :][:windows], audio[max(late, 0) :][:windows]


def score_voices(
    scorer: SyncScorer,
    clip: LoadedClip,
    self_driven: Tensor,
    other_driven: Tensor,
    voice: Voice,
    wrong: Sequence[Voice],
) -> dict[str, list[SyncScore]]:
    """Scores of the real clip and of the results.

    self_driven speaks the clip's own sound and is scored with it, other_driven that of `voice`; "shuffled" is
    other_driven scored with each of the wrong voices, which have lent it neither picture nor sound.
    """
    return {
        "real": [scorer.score(clip.faces, clip.wave)],
        "self-driven": [scorer.score(self_driven, clip.wave)],
        "other voice": [scorer.score(other_driven, voice.wave)],
        "shuffled": [scorer.score(other_driven, other.wave) for other in wrong],
    }


def sync_values(scores: Mapping[str, Sequence[SyncScore]]) -> Values:
    """Mean confidence of each kind, and the offset of its first score."""
    return {
        name: {"confidence": float(np.mean([score.confidence for score in group])), "offset": group[0].offset}
        for name, group in scores.items()
    }


def measure_reconstruction(talker: Talker, perceptual: nn.Module, clip: LoadedClip) -> tuple[Values, dict[str, Tensor]]:
    """The mouth against the real one: rebuilt by the model, pasted from the reference frames, through the codec.

    Returns the values {what: {"lpips", "psnr", "ssim"}}, means over the frames, and the pictures by the same names.
    """
    faces = clip.faces
    rebuilt, pasted = talker.reconstruct(faces, clip.wave)
    pictures = {"model": rebuilt, "pasted": pasted, "codec": talker.through_codec(faces)}
    return {name: mouth_likeness(made, faces, perceptual) for name, made in pictures.items()}, pictures


@torch.no_grad()
def mouth_likeness(made: Tensor, real: Tensor, perceptual: nn.Module) -> dict[str, float]:
    """LPIPS, PSNR (dB) and SSIM on the mouth, means over the frames (T, 3, R, R)."""
    region = mouth_region(real.shape[-1])
    distances = [
        perceptual(crop_region(one, region), crop_region(other, region)).flatten()
        for one, other in zip(made.split(CHUNK), real.split(CHUNK), strict=True)
    ]
    return {
        "lpips": float(torch.cat(distances).mean()),
        "psnr": float(psnr(made, real, region).mean()),
        "ssim": float(ssim(made, real, region).mean()),
    }


def pad_with_silence(speech: np.ndarray) -> np.ndarray:
    """(N,) with 1.5 s of digital silence before and after."""
    return np.pad(speech, round(SILENCE_SECONDS * SAMPLE_RATE))


def measure_silence(talker: Talker, meter: MouthMeter, clip: LoadedClip, wave: np.ndarray) -> tuple[Values, Tensor]:
    """Mean mouth opening above this person's closed mouth while `wave` is silent and while it speaks.

    The clip is played forth and back for as long as the wave lasts; the person's mouth in it goes on moving, and the
    same is measured of it (`input_silence`). `real_speech` is that of the real clip while the person speaks. Returns
    the values and the result (T, 3, R, R).
    """
    num_frames = len(wave) * FPS // SAMPLE_RATE
    faces = pingpong(clip.faces, num_frames)
    made = talker.drive(faces, wave)
    silence, speech = silence_and_speech(wave, num_frames)
    given = meter.openings(clip.frames)
    closed = closed_opening(given)
    openings = meter.openings(to_uint8(made))
    shown = pingpong(torch.from_numpy(given), num_frames).numpy()
    values = {
        "closed": closed,
        "silence": mean_opening(openings, silence, closed),
        "speech": mean_opening(openings, speech, closed),
        "real_speech": mean_opening(given, silence_and_speech(clip.wave, len(given))[1], closed),
        "input_silence": mean_opening(shown, silence, closed),
        "frames_without_face": int(np.isnan(openings).sum()),
    }
    return values, made
