"""Training samples of silence: a closed mouth in the target while the mouth of the reference frames moves.

Clips of speech have almost no silence as long as a window, so a network trained on them alone keeps the mouth of its
reference moving in pauses. Legend: F frames of a window, N frames of a clip, T rows of audio states, L layers, D width.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from latentsync.constants import FPS, SAMPLE_RATE, SAMPLES_PER_FRAME, WHISPER_ROWS_PER_FRAME
from latentsync.data.audio import frame_tokens
from latentsync.data.cache import fetch, file_digest, store
from latentsync.data.clips import Clip, read_frames
from latentsync.data.encoded_clips import EncodedClip
from latentsync.data.unet_dataset import LatentWindow
from latentsync.faces.mouth import OpeningEstimator, closed_opening, mean_opening
from latentsync.media.audio import load_audio
from latentsync.media.silence import SETTLE, frame_rms, runs_of, silence_and_speech
from latentsync.whisper.audio2feature import Audio2Feature
from recipes.embedded.first_generation.augmented_copies import AugmentedClip, paced_span

logger = logging.getLogger(__name__)

SHORTEST_REST = 4  # frames of a mouth at rest that are worth repeating
REST_OPENING = 0.1  # of the mean opening in speech: a mouth that is less open than this is at rest
PADDING_FRAMES = 40  # of silence around speech
NUM_CLIPS = 8  # whose padded audio is used


@dataclass(frozen=True)
class PaddedAudio:
    """Audio states (T, L, D) of speech between silences, and the frames [start, end) of each silence."""

    states: Tensor
    silences: tuple[tuple[int, int], ...]


class SilentWindows:
    """Draws silent windows of clips at 25 frames/s that have a pause; a `DrawWindow` of `LatentClipDataset`.

    The longest pause (`silence_and_speech`) with a closed mouth is played back and forth; it must be closed because
    many people wait with open lips before they speak. The audio is the silence before or after the speech of some clip,
    encoded with it: digital silence, or noise as loud as the clip at its quietest.

    Args:
        clips: of the dataset; a copy rests where its original does. Copies without their original have no rest.
        audio: audio encoder.
        num_frames: F.
        audio_feat_length: (l, r), frames of audio context before and after.
        share: of the samples that are to be silent, in [0, 1].
        openings: mouth openings of a clip, (N,), NaN where there is no face: see `MouthOpenings`.

    Raises:
        UserError: a clip has no audio.
    """

    def __init__(
        self,
        clips: Sequence[EncodedClip],
        audio: Audio2Feature,
        num_frames: int,
        audio_feat_length: Sequence[int],
        share: float,
        openings: Callable[[EncodedClip], np.ndarray],
    ) -> None:
        self.num_frames, self.audio_feat_length, self.share = num_frames, tuple(audio_feat_length), share
        once = {clip.path: clip for clip in clips if not isinstance(clip, AugmentedClip)}
        waves = {path: load_audio(path, SAMPLE_RATE) for path in once}
        rests = {path: _longest_rest(clip, waves[path], openings) for path, clip in once.items()}
        self._rests = {path: rest for path, rest in rests.items() if rest is not None}
        self._padded: list[PaddedAudio] = []
        if not self._rests:
            logger.warning("recipe.silent_share has no effect: no clip shows a closed mouth in a pause; add such clips")
            return
        logger.info("silence: %d of %d clips show a mouth at rest", len(self._rests), len(once))
        spread = list(waves.values())[:: -(-len(waves) // NUM_CLIPS)]
        self._padded = [_pad_with_silence(wave, audio, num_frames, bool(i % 2)) for i, wave in enumerate(spread)]

    def __call__(self, clip: EncodedClip, rng: np.random.Generator) -> LatentWindow | None:
        """A silent window of `clip`, or None: by chance, or because it has no rest with room for a reference window."""
        if rng.random() >= self.share or clip.path not in self._rests:
            return None
        start, end = paced_span(*self._rests[clip.path], clip.pace, clip.num_frames)
        reference = draw_apart(clip.num_frames, self.num_frames, start, end, rng)
        if reference is None:
            return None
        frames = back_and_forth(start, end, self.num_frames, rng)
        return LatentWindow(frames, reference, self._tokens(rng), has_speech=False)

    def _tokens(self, rng: np.random.Generator) -> Tensor:
        audio = self._padded[rng.integers(len(self._padded))]
        start, end = audio.silences[rng.integers(len(audio.silences))]
        first = int(rng.integers(start, end - self.num_frames + 1))
        return frame_tokens(
            lambda rows: audio.states[rows.start : rows.stop],
            len(audio.states),
            range(first, first + self.num_frames),
            FPS,
            self.audio_feat_length,
        )


def _longest_rest(
    clip: EncodedClip, wave: np.ndarray, openings_of: Callable[[EncodedClip], np.ndarray]
) -> tuple[int, int] | None:
    """[start, end) of the longest pause with a closed mouth; None where all are shorter than 4 frames."""
    silence, speech = silence_and_speech(wave, clip.num_frames)
    if _longest_stretch(silence) is None:  # estimating openings is slow
        return None
    openings = openings_of(clip)
    closed = closed_opening(openings)
    shut = openings <= closed + REST_OPENING * mean_opening(openings, speech, closed)  # never where NaN
    return _longest_stretch(silence & shut)


def _longest_stretch(flags: np.ndarray) -> tuple[int, int] | None:
    """[start, end) of the longest stretch where the flags (N,) bool are set; None where all are shorter than 4."""
    runs = [run for run in runs_of(flags) if run[1] - run[0] >= SHORTEST_REST]
    return max(runs, key=lambda run: run[1] - run[0], default=None)


def _pad_with_silence(wave: np.ndarray, audio: Audio2Feature, num_frames: int, noise: bool) -> PaddedAudio:
    padding = max(PADDING_FRAMES, num_frames + SETTLE)
    padded = np.pad(wave, padding * SAMPLES_PER_FRAME)
    if noise:
        level = frame_rms(wave, len(wave) // SAMPLES_PER_FRAME).min()
        padded += np.random.default_rng(0).normal(0, level, len(padded)).astype(np.float32)
    states = audio.wave2feat(padded.clip(-1, 1))
    total = len(states) // WHISPER_ROWS_PER_FRAME
    return PaddedAudio(states, ((0, padding - SETTLE), (total - padding + SETTLE, total)))


class MouthOpenings:
    """Mouth openings of clips of aligned faces, cached in `cache_dir`. Called with a clip it returns (N,) float64, see
    `OpeningEstimator.openings`.

    Args:
        cache_dir: created if it does not exist.
        fps: frame rate that clips must have.

    Raises:
        UserError: a clip cannot be read, or its entry cannot be written (at the call).
    """

    def __init__(self, cache_dir: str | Path, fps: float = FPS) -> None:
        self.cache_dir, self.fps = Path(cache_dir), fps
        self._estimator: OpeningEstimator | None = None  # loaded when first needed: not at all if everything is cached

    def __call__(self, clip: Clip) -> np.ndarray:
        entry = self.cache_dir / f"{file_digest(clip.path)}_openings.safetensors"
        cached = fetch(entry)
        if cached is None:
            self._estimator = self._estimator or OpeningEstimator()
            cached = {"openings": torch.from_numpy(self._estimator.openings(read_frames(clip.path, fps=self.fps)))}
            store(entry, cached)
        return cached["openings"].numpy()

    def close(self) -> None:
        """Free the network."""
        if self._estimator is not None:
            self._estimator.close()


def draw_apart(total: int, length: int, start: int, end: int, rng: np.random.Generator) -> int | None:
    """First frame of a window that does not overlap the frames [start, end); None where there is no room for one."""
    starts = np.arange(total - length + 1)
    apart = starts[(starts >= end) | (starts <= start - length)]
    return int(rng.choice(apart)) if len(apart) else None


def back_and_forth(start: int, end: int, length: int, rng: np.random.Generator) -> np.ndarray:
    """(length,) frames of [start, end), at least two, played forwards and backwards from a random position on."""
    cycle = np.concatenate([np.arange(start, end), np.arange(end - 2, start, -1)])
    return cycle[(rng.integers(len(cycle)) + np.arange(length)) % len(cycle)]
