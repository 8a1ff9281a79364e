"""Data types of the networks; bfloat16 hardly changes the faces of the embedded model."""

import numpy as np
import pytest
import torch

from latentsync.loading import load_pipeline
from latentsync.pipelines import base
from latentsync.pipelines.lipsync_pipeline import LipsyncPipeline


def load(monkeypatch: pytest.MonkeyPatch, fast: bool, dtype: torch.dtype | None = None) -> LipsyncPipeline:
    monkeypatch.setattr(base, "multiplies_bfloat16", lambda: fast)
    return load_pipeline("embedded", "cpu", dtype)


@pytest.mark.parametrize(
    "fast, dtype, expected",
    [
        (True, None, torch.bfloat16),
        (False, None, torch.float32),
        (True, torch.float32, torch.float32),
        (False, torch.bfloat16, torch.bfloat16),
    ],
)
def test_the_type_follows_the_cpu_unless_it_is_given(
    monkeypatch: pytest.MonkeyPatch, fast: bool, dtype: torch.dtype | None, expected: torch.dtype
):
    pipeline = load(monkeypatch, fast, dtype)
    assert pipeline.unet.dtype == pipeline.codec.vae.decoder.conv_in.weight.dtype == expected
    assert str(expected).removeprefix("torch.") in repr(pipeline)


def test_pixels_and_latents_stay_in_float32(monkeypatch: pytest.MonkeyPatch):
    pipeline = load(monkeypatch, fast=True)
    assert pipeline.dtype == pipeline.codec.vae.decoder.linear.weight.dtype == torch.float32


def test_faces_change_by_a_few_levels(monkeypatch: pytest.MonkeyPatch):
    rng = np.random.default_rng(0)
    face = np.kron(rng.integers(60, 200, (8, 8, 3)), np.ones((32, 32, 1))).astype(np.uint8)
    faces = np.stack([np.roll(face, shift, axis=1) for shift in range(4)])
    audio = torch.randn(4, 50, 384, generator=torch.Generator().manual_seed(0))
    exact, rounded = (load(monkeypatch, fast).speak(faces, audio) for fast in (False, True))
    difference = (exact - rounded).abs()
    assert 0 < difference.max() < 4  # of 255; measured: 0.9
    assert difference.mean() < 0.3  # measured: 0.07
