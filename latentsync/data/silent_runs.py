"""Training samples of silence: a mouth at rest in the target while the reference frames speak.

Clips of speech hold next to no silence that is as long as a run, so a network trained on them alone lets the mouth of
its reference go on speaking in pauses. Legend: F frames of a run, T rows of audio states, L layers, D width.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from latentsync.data.encoded_clips import EncodedClip
from latentsync.data.sound import frame_tokens
from latentsync.data.varied_copies import paced_span
from latentsync.data.windows import back_and_forth, draw_apart
from latentsync.faces.mouth import closed_opening, mean_opening
from latentsync.media.audio import load_audio
from latentsync.media.silence import FPS, SAMPLE_RATE, SETTLE, frame_rms, runs_of, silence_and_speech
from latentsync.utils.errors import UserError
from latentsync.whisper.audio2feature import Audio2Feature
from latentsync.whisper.windows import ROWS_PER_SECOND

logger = logging.getLogger(__name__)

SHORTEST_REST = 4  # frames of a mouth at rest that are worth playing back and forth
REST_OPENING = 0.1  # of the mean opening in speech: a mouth that is no further open than this is at rest
PADDING_FRAMES = 40  # of silence around speech
SOUNDS = 8  # clips whose padded sound is heard


@dataclass(frozen=True)
class SilentRun:
    """frames: (F,) indices of a mouth at rest; reference: first frame of a run beside it; tokens (F, S, D): silence."""

    frames: np.ndarray
    reference: int
    tokens: Tensor


@dataclass(frozen=True)
class SilentSound:
    """Audio states (T, L, D) of speech between silences, and the frames [start, end) of each silence."""

    states: Tensor
    silences: tuple[tuple[int, int], ...]


class SilentRuns:
    """Draws silent runs of clips at 25 frames/s that hold a pause.

    The longest run of frames in which the sound pauses (`silence_and_speech`) and the mouth is shut is played back and
    forth: before they speak many people sit with their lips apart. What is heard is silence before or after the speech
    of some clip, as Whisper hears it there: digital silence, or a hiss as loud as the clip at its quietest.

    Args:
        clips: of the dataset, of which every copy rests where its clip does. Copies of a clip that is not there itself
            have no rest.
        audio: audio encoder.
        num_frames: F.
        audio_feat_length: (l, r), the frames heard before and after.
        share: of the samples that are to be silent, in [0, 1].
        openings: how far the mouth of a clip is open, (T,), NaN where no face is seen: see `MouthOpenings`.

    Raises:
        UserError: no clip shows a mouth at rest, or one has no sound.
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
        once = {clip.path: clip for clip in clips if not clip.variant}
        waves = {path: load_audio(path, SAMPLE_RATE) for path in once}
        rests = {path: _longest_rest(clip, waves[path], openings) for path, clip in once.items()}
        self._rests = {path: rest for path, rest in rests.items() if rest is not None}
        if not self._rests:
            raise UserError(
                "data.silent_share: in none of the clips a mouth is shut while the sound pauses; set it to 0, or add "
                "clips with pauses"
            )
        logger.info("silence: %d of %d clips show a mouth at rest", len(self._rests), len(once))
        spread = list(waves.values())[:: -(-len(waves) // SOUNDS)]
        self._sounds = [_between_silences(wave, audio, num_frames, bool(i % 2)) for i, wave in enumerate(spread)]

    def draw(self, clip: EncodedClip, rng: np.random.Generator) -> SilentRun | None:
        """A silent run of `clip`, or None: by chance, or because the clip has no rest with a reference beside it."""
        if rng.random() >= self.share or clip.path not in self._rests:
            return None
        start, end = paced_span(*self._rests[clip.path], clip.pace, clip.num_frames)
        reference = draw_apart(clip.num_frames, self.num_frames, start, end, rng)
        if reference is None:
            return None
        return SilentRun(back_and_forth(start, end, self.num_frames, rng), reference, self._tokens(rng))

    def _tokens(self, rng: np.random.Generator) -> Tensor:
        sound = self._sounds[rng.integers(len(self._sounds))]
        start, end = sound.silences[rng.integers(len(sound.silences))]
        first = int(rng.integers(start, end - self.num_frames + 1))
        return frame_tokens(
            lambda rows: sound.states[rows.start : rows.stop],
            len(sound.states),
            range(first, first + self.num_frames),
            FPS,
            self.audio_feat_length,
        )


def _longest_rest(
    clip: EncodedClip, wave: np.ndarray, openings_of: Callable[[EncodedClip], np.ndarray]
) -> tuple[int, int] | None:
    """[start, end) of the longest run of frames with a pause and a shut mouth; None where all are shorter than 4."""
    silence, speech = silence_and_speech(wave, clip.num_frames)
    if _longest_run(silence) is None:  # looking at mouths takes long
        return None
    openings = openings_of(clip)
    closed = closed_opening(openings)
    shut = openings <= closed + REST_OPENING * mean_opening(openings, speech, closed)  # never where NaN
    return _longest_run(silence & shut)


def _longest_run(flags: np.ndarray) -> tuple[int, int] | None:
    """[start, end) of the longest stretch where the flags (T,) bool are set; None where all are shorter than 4."""
    runs = [run for run in runs_of(flags) if run[1] - run[0] >= SHORTEST_REST]
    return max(runs, key=lambda run: run[1] - run[0], default=None)


def _between_silences(wave: np.ndarray, audio: Audio2Feature, num_frames: int, hiss: bool) -> SilentSound:
    padding = max(PADDING_FRAMES, num_frames + SETTLE)
    padded = np.pad(wave, padding * SAMPLE_RATE // FPS)
    if hiss:
        level = frame_rms(wave, len(wave) * FPS // SAMPLE_RATE).min()
        padded += np.random.default_rng(0).normal(0, level, len(padded)).astype(np.float32)
    states = audio.wave2feat(padded.clip(-1, 1))
    total = len(states) * FPS // ROWS_PER_SECOND
    return SilentSound(states, ((0, padding - SETTLE), (total - padding + SETTLE, total)))
