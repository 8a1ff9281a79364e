"""Evidence that a voice belongs to a face: on made-up embeddings, and of a face that rests."""

import numpy as np
import pytest
import torch

from eval.reconstruction import longest_track
from latentsync.metrics.clip_sync import EmbeddedScorer
from latentsync.metrics.sync import preference
from latentsync.metrics.sync_gate import gather, half_offset
from latentsync.utils.paths import PROJECT_ROOT

WINDOWS = 60


def in_sync(offset: int, noise: float = 0.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings (W, 16) of a voice that is `offset` frames early."""
    rng = np.random.default_rng(seed)
    spoken = rng.standard_normal((WINDOWS + 40, 16))
    seen = spoken[20 : 20 + WINDOWS] + noise * rng.standard_normal((WINDOWS, 16))
    return seen, spoken[20 + offset : 20 + offset + WINDOWS]


@pytest.mark.parametrize("offset", [-6, 0, 3])
def test_a_voice_in_sync(offset):
    found = gather(*in_sync(offset), offset)
    assert found.preference == 1 and found.halves == (offset, offset) and found.agrees


def test_a_foreign_voice_prefers_nothing():
    vision, audio = in_sync(0)[0], in_sync(0, seed=1)[1]
    shares = [gather(vision, audio, offset).preference for offset in range(-5, 6)]
    assert np.mean(shares) == pytest.approx(0.5, abs=0.1)


def test_preference_is_that_of_a_syncnet_test_after_the_shift():
    """The share of windows as `latentsync.metrics.sync.preference` computes it from unit vectors."""
    vision, audio = (side / np.linalg.norm(side, axis=1, keepdims=True) for side in in_sync(4, noise=1.5))
    moved = preference(torch.from_numpy(vision[4:]), torch.from_numpy(audio[:-4]))
    far = np.abs(np.subtract.outer(np.arange(WINDOWS - 4), np.arange(WINDOWS))) >= 6
    distances = np.linalg.norm(vision[4:, None] - audio[None], axis=-1)
    by_hand = (distances > distances.diagonal()[:, None])[far].mean()
    found = gather(vision, audio, 4).preference
    assert found == pytest.approx(by_hand) and found == pytest.approx(float(moved.mean()), abs=0.03)
    assert 0.5 < found < 1


def test_halves_find_their_own_offsets():
    vision, audio = in_sync(0)
    other = in_sync(5)[1]
    mixed = np.concatenate([audio[:30], other[30:]])
    assert gather(vision, mixed, 0).halves == (0, 5) and not gather(vision, mixed, 0).agrees


def test_offsets_with_too_few_pairs_do_not_count():
    distances = np.ones((20, 20))
    distances[9, 0] = 0  # the only pair of the first half at offset 9
    assert half_offset(distances, slice(0, 10)) == -14  # the first offset with six pairs
    vision, audio = in_sync(6)
    assert gather(vision[:20], audio[:20], 6).halves is None and gather(vision[:20], audio[:20], 6).agrees


def test_a_still_mouth_prefers_no_audio():
    """One face for three seconds, with noise: its real voice fits it no better than other audio."""
    scorer = EmbeddedScorer()
    faces, wave = longest_track(PROJECT_ROOT / "assets" / "demo_video.mp4", scorer.scorer.resolution, 75)
    noise = np.random.default_rng(0).normal(0, 3, faces.shape)
    still = np.clip(faces[:1] + noise, 0, 255).astype(np.uint8)
    moving, resting = (scorer.score_faces(part, wave) for part in (faces, still))
    assert gather(moving.vision, moving.audio, moving.offset).preference > scorer.default_preference
    assert gather(resting.vision, resting.audio, resting.offset).preference < 0.8
