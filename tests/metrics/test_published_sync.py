"""Windows of audio and frames, offset and confidence of the published metric."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from latentsync.metrics.published_sync import batched_windows, mfcc_windows, score_embeddings, score_faces
from tests.conformance.seeded import seeded_input

CASE = Path(__file__).parents[1] / "conformance" / "syncnet_offset.npz"


def test_offset_conformance():
    with np.load(CASE) as case:
        meta = json.loads(str(case["meta"]))
        vision = seeded_input("f1", tuple(meta["f1"]), meta["seed"])
        audio = torch.roll(vision, 3, 0) + 0.3 * seeded_input("f2", tuple(meta["f1"]), meta["seed"])
        score = score_embeddings(vision, audio, meta["vshift"])
        np.testing.assert_allclose(score.mean_distances, case["mean_dists"], atol=1e-5)
        assert score.offset == case["offset"] == -3
        assert score.confidence == pytest.approx(float(case["conf"]), abs=1e-5)
        assert score.min_distance == pytest.approx(float(case["min_dist"]), abs=1e-5)


def test_window_confidences_show_where_sync_is_lost():
    generator = torch.Generator().manual_seed(0)
    vision = torch.randn(80, 16, generator=generator)
    audio = torch.cat([vision[:50], torch.randn(30, 16, generator=generator)])
    windows = score_embeddings(vision, audio).window_confidences
    assert windows.shape == (80,)
    assert windows[:45].min() > 1 > abs(windows[55:]).mean()


def test_mfcc_has_four_columns_a_frame_and_the_log_energy_first():
    wave = np.random.default_rng(0).normal(0, 0.1, 16000).astype(np.float32)
    windows = mfcc_windows(wave)
    assert windows.shape[1:] == (13, 20)
    assert 20 <= len(windows) <= 21  # a second: 25 frames, of which the last four have less than 0.2 s
    assert torch.equal(windows[0][:, 4:], windows[1][:, :16])
    louder = mfcc_windows(wave * 2)
    assert torch.allclose(louder[3, 0] - windows[3, 0], torch.full((20,), 2 * np.log(2).astype(np.float32)), atol=1e-2)
    assert torch.allclose(louder[3, 1:], windows[3, 1:], atol=0.2)
    assert len(mfcc_windows(wave[:1600])) == 0


@pytest.mark.parametrize(("frames", "limit", "expected"), [(4, 9, 0), (5, 9, 1), (13, 99, 9), (13, 7, 7), (30, 8, 8)])
def test_faces_are_streamed_in_windows_of_five(frames, limit, expected):
    faces = [np.full((4, 4, 3), (index, 100, 200), np.uint8) for index in range(frames)]
    windows = list(batched_windows(iter(faces), 4, limit))
    assert sum(map(len, windows)) == expected
    if expected:
        joined = torch.cat(windows)
        assert joined.shape[1:] == (3, 5, 4, 4)
        # red is the last channel
        assert joined[:, 2, :, 0, 0].tolist() == [[start + k for k in range(5)] for start in range(expected)]
        assert (joined[:, 0] == 200).all()


class Loudness(nn.Module):
    """Stands in for SyncNet: the brightness of a face and the energy of the audio, which change together."""

    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def embed_images(self, faces):
        return faces.mean(dim=(1, 3, 4)) / 10

    def embed_audio(self, mfcc):
        return mfcc[:, 0, 0].unflatten(1, (5, 4)).mean(-1).sub(10)


@pytest.mark.parametrize("shift", [-4, 0, 3])
def test_offset_of_shifted_audio(shift):
    """Positive: the audio is early."""
    levels = np.random.default_rng(1).uniform(0.5, 5, 70)
    noise = np.random.default_rng(2).normal(0, 1, (70, 640))
    wave = (np.exp(levels[:, None] / 2) * noise).ravel().astype(np.float32) * 1e-3
    faces = [np.full((4, 4, 3), 10 * level, np.uint8) for level in levels]
    moved = wave[shift * 640 :] if shift >= 0 else np.concatenate([wave[: -shift * 640], wave])
    score = score_faces(Loudness(), faces, moved, batch_size=16)
    assert score.offset == shift
    with pytest.raises(ValueError, match="fewer than five frames"):
        score_faces(Loudness(), faces[:4], wave)
