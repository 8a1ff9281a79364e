"""SyncNet's mel against the reference's figures, and its windows at the ends of a signal."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from latentsync.config.audio import load_audio_config, syncnet_mel_config
from latentsync.config.syncnet import SyncNetDataConfig
from latentsync.data.audio import mel_filters, mel_window, syncnet_mel
from latentsync.utils.errors import UserError

ROOT = Path(__file__).parents[2]
CONFORMANCE = ROOT / "tests" / "conformance"


def test_conformance():
    with np.load(CONFORMANCE / "syncnet_mel.npz") as case, np.load(CONFORMANCE / "whisper_features.npz") as features:
        expected, shape = torch.from_numpy(case["mel"]), tuple(case["shape"])
        wave = features["wave"][: json.loads(str(case["meta"]))["seconds"] * 16000]
    mel = syncnet_mel(wave)
    assert mel.shape == shape and mel.dtype == torch.float32
    torch.testing.assert_close(mel[:, : expected.shape[1]], expected, atol=1e-4, rtol=0)
    assert torch.equal(syncnet_mel(torch.from_numpy(wave).float() / 32768), mel)


def test_the_config_file_reaches_mel_and_windows(tmp_path, monkeypatch):
    wave = np.random.default_rng(0).normal(0, 0.1, 16000).astype(np.float32)
    published, width = syncnet_mel(wave), mel_window(torch.zeros(80, 200), 0).shape[-1]
    text = (ROOT / "configs" / "audio.yaml").read_text().replace("fmin: 55", "fmin: 1234")
    (tmp_path / "audio.yaml").write_text(text.replace("hop_size: 200", "hop_size: 400"))
    monkeypatch.setattr("latentsync.config.audio.AUDIO_CONFIG", tmp_path / "audio.yaml")
    syncnet_mel_config.cache_clear()
    try:
        other = syncnet_mel(wave)
        data = SyncNetDataConfig()
        assert other.shape == (80, 41) and (other[:5].mean() - published[:5].mean()).abs() > 0.1
        assert mel_window(torch.zeros(80, 200), 0).shape[-1] == width // 2 and data.audio_shape(1) == (1, 80, 26)
    finally:
        monkeypatch.undo()
        syncnet_mel_config.cache_clear()
    assert load_audio_config(ROOT / "configs" / "audio.yaml").syncnet == syncnet_mel_config()


def test_silence_and_noise_stay_on_the_scale():
    assert (syncnet_mel(np.zeros(1000, np.float32)) == -4).all()
    loud = syncnet_mel(torch.randn(4000, generator=torch.Generator().manual_seed(0)) * 100)
    assert loud.shape == (80, 21) and loud.max() == 4


def test_filters_have_equal_area_and_no_gap():
    filters = mel_filters(replace(syncnet_mel_config(), n_fft=8000, win_size=8000))
    torch.testing.assert_close(filters.sum(1) * 2, torch.ones(80), atol=0.05, rtol=0)  # 2 Hz a bin
    assert filters.min() >= 0 and (filters.sum(0)[50:3750] > 0).all()


def test_windows_of_a_clip():
    mel = torch.arange(320.0).repeat(80, 1)
    window = mel_window(mel, 7)
    assert window.shape == (1, 80, 52) and window[0, 0, 0] == 22  # int(80 * 7 / 25)
    assert torch.equal(window[0], mel[:, 22:74])
    assert mel_window(mel, 3, num_frames=5).shape == (1, 80, 16)
    assert mel_window(mel, 30, fps=30)[0, 0, 0] == 80


def test_windows_over_the_ends_hold_silence():
    mel = torch.zeros(80, 100)
    over_end, over_begin = mel_window(mel, 20)[0], mel_window(mel, -5)[0]
    assert (over_end[:, :36] == 0).all() and (over_end[:, 36:] == -4).all()
    assert (over_begin[:, :16] == -4).all() and (over_begin[:, 16:] == 0).all()
    for start in (-100, 100):
        assert (mel_window(mel, start) == -4).all() and mel_window(mel, start).shape == (1, 80, 52)
    assert mel_window(torch.zeros(80, 10), -5).shape == (1, 80, 52)


@pytest.mark.parametrize(("frames", "fps", "width"), [(16, 25, 52), (5, 25, 16), (25, 25, 80), (16, 29.97, 43)])
def test_width(frames, fps, width):
    assert syncnet_mel_config().width(frames, fps) == width


@pytest.mark.parametrize("wave", [[], [0.0, float("nan")], [float("inf")] * 3])
def test_bad_audio_is_named(wave):
    with pytest.raises(UserError, match="the audio is empty or has NaN"):
        syncnet_mel(torch.tensor(wave))
    with pytest.raises(ValueError, match="expected a mono wave"):
        syncnet_mel(torch.zeros(2, 100))
