"""Intervals of speech, and the silence that the model gets elsewhere."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from latentsync.media.audio import load_audio
from latentsync.media.samples import GatedSamples, PlacedSamples
from latentsync.pretrained import voice_activity
from latentsync.pretrained.voice_activity import MARGIN, speech_intervals

VOICE = Path(__file__).resolve().parents[2] / "assets" / "demo_voice.wav"
RATE = 16000


@pytest.fixture(params=["silero", "level"])
def method(request, monkeypatch) -> str:
    if request.param == "silero":
        pytest.importorskip("silero_vad")
    else:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    return request.param


def test_a_pause_between_two_utterances(method):
    voice = load_audio(VOICE)[: 2 * RATE]
    wave = np.concatenate([voice, np.zeros(2 * RATE, np.float32), voice])
    threads = torch.get_num_threads()
    intervals = speech_intervals(wave)
    assert torch.get_num_threads() == threads
    assert intervals[0][0] == 0 and intervals[-1][1] == len(wave)
    pauses = [(end, start) for (_, end), (start, _) in zip(intervals, intervals[1:], strict=False)]
    longest = max(pauses, key=lambda pause: pause[1] - pause[0])
    assert np.allclose(longest, (2 * RATE, 4 * RATE), atol=0.35 * RATE) and longest[1] - longest[0] > 1.4 * RATE


def test_silence_has_no_speech(method):
    noise = np.random.default_rng(0).normal(0, 1e-4, 3 * RATE).astype(np.float32)
    assert speech_intervals(noise) == []


def test_blocks_agree_with_the_whole(monkeypatch):
    pytest.importorskip("silero_vad")
    voice = load_audio(VOICE)[: 2 * RATE]
    wave = np.concatenate([voice, np.zeros(2 * RATE, np.float32)] * 3)
    whole = speech_intervals(wave)
    monkeypatch.setattr(voice_activity, "BLOCK_SECONDS", 3)
    parts = speech_intervals(wave)
    assert len(whole) == len(parts) and np.abs(np.array(whole) - parts).max() <= MARGIN


def test_the_gate_is_exact():
    wave = np.full(4000, 0.5, np.float32)
    gated = GatedSamples(wave, [(0, 1000), (2000, 3000)], RATE)
    whole = gated[:]
    assert len(gated) == 4000 and not whole[1000:2000].any() and not whole[3000:].any()
    assert (whole[:680] == 0.5).all() and (whole[2320:2680] == 0.5).all()
    assert (np.diff(whole[2000:2320]) > 0).all() and (np.diff(whole[2680:3000]) < 0).all()
    assert np.array_equal(np.concatenate([gated[start : start + 7] for start in range(0, 4000, 7)]), whole)


def test_placed_signals():
    ones, twos = np.ones(10, np.float32), np.full(10, 2, np.float32)
    placed = PlacedSamples([(-4, ones), (8, twos)], 12)
    assert placed[:].tolist() == [1] * 6 + [0] * 2 + [2] * 4
    assert placed[5:9].tolist() == [1, 0, 0, 2] and len(placed) == 12 and placed.shape == (12,)
    with pytest.raises(ValueError, match="without a step"):
        placed[::2]
