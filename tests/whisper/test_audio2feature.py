"""Audio features: the published figures, windows of long audio, checkpoints, the disk cache."""

import json
import math
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from whisper.audio import log_mel_spectrogram
from whisper.model import ModelDimensions, Whisper

from latentsync.utils.errors import UserError
from latentsync.whisper import audio2feature
from latentsync.whisper.audio2feature import Audio2Feature
from latentsync.whisper.mel import LogMel
from latentsync.whisper.windows import count_frames
from tests.conformance.seeded import fill_

CASE = Path(__file__).parents[1] / "conformance" / "whisper_features.npz"
SMALL_CONTEXT = 100  # rows of a window: 2 s instead of 30, so that seams come cheap


@pytest.fixture(scope="module")
def case() -> dict:
    with np.load(CASE) as arrays:
        return {**arrays, "meta": json.loads(str(arrays["meta"]))}


@pytest.fixture(scope="module")
def checkpoint(case: dict, tmp_path_factory: pytest.TempPathFactory) -> Path:
    dims = ModelDimensions(**case["meta"]["dims"])
    model = fill_(Whisper(dims), case["meta"]["seed"])
    path = tmp_path_factory.mktemp("whisper") / "tiny.pt"
    torch.save({"dims": asdict(dims), "model_state_dict": model.state_dict()}, path)
    return path


def small_checkpoint(directory: Path, context: int = SMALL_CONTEXT, seed: int = 0) -> Path:
    dims = ModelDimensions(80, context, 32, 2, 1, 8, 8, 32, 2, 1)
    model = fill_(Whisper(dims), seed)
    path = directory / f"small_{context}_{seed}.pt"
    torch.save({"dims": asdict(dims), "model_state_dict": model.state_dict()}, path)
    return path


def small_audio(directory: Path, seed: int = 0, **options: Path) -> Audio2Feature:
    return Audio2Feature(small_checkpoint(directory, seed=seed), overlap_seconds=0.8, **options)


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (0.1 * rng.standard_normal(round(seconds * 16000))).astype(np.float32)


def test_conformance(case: dict, checkpoint: Path) -> None:
    meta = case["meta"]
    audio = Audio2Feature(checkpoint, audio_feat_length=meta["audio_feat_length"], overlap_seconds=0)
    features = audio.wave2feat(case["wave"])
    assert list(features.shape) == meta["feature_shape"]
    picked = features[meta["picked_feature_rows"]].numpy()
    np.testing.assert_allclose(picked, case["features"], atol=1e-4)

    chunks = audio.feature2chunks(features, meta["fps"], num_frames=meta["num_chunks"])
    picked = torch.stack([chunks[i] for i in meta["picked_frames"]]).numpy()
    np.testing.assert_allclose(picked, case["chunks"], atol=1e-4)

    true_frames = math.ceil(meta["seconds"] * meta["fps"])
    assert len(audio.feature2chunks(features, meta["fps"])) == true_frames
    assert len(audio.stream(case["wave"], meta["fps"])) == true_frames


def test_conformance_mel(case: dict) -> None:
    mel = LogMel(case["wave"])
    assert [80, mel.num_frames] == case["log_mel_shape"].tolist()
    np.testing.assert_allclose(mel.frames(0, mel.num_frames)[:, ::50], case["log_mel_cols"], atol=1e-4)


def test_mel_by_blocks_equals_whisper() -> None:
    wave = noise(65.003)
    wave[16000:24000] *= 5  # the loudest point of one block sets the floor of all
    wave[40 * 16000 :] *= 1e-6
    mel = LogMel(wave)
    expected = log_mel_spectrogram(torch.from_numpy(wave))
    assert expected.shape[1] == mel.num_frames
    for start, stop in ((0, 1), (0, mel.num_frames), (2990, 3010), (mel.num_frames - 1, mel.num_frames)):
        torch.testing.assert_close(mel.frames(start, stop), expected[:, start:stop], atol=1e-5, rtol=0)


def test_overlap_leaves_30_seconds_as_they_were(checkpoint: Path) -> None:
    wave = noise(30)
    plain = Audio2Feature(checkpoint, overlap_seconds=0).wave2feat(wave)
    assert torch.equal(plain, Audio2Feature(checkpoint).wave2feat(wave))


@pytest.mark.parametrize("seconds", [2.1, 3.0, 3.02, 7.77])
def test_overlapped_windows_join_without_a_jump(tmp_path: Path, seconds: float) -> None:
    audio = small_audio(tmp_path)
    rows = audio._rows(noise(seconds))
    features = rows.read(0, rows.num_rows)
    assert features.shape == (int(seconds * 50), 2, 32)
    for row in (0, 59, 70, 80, 81, rows.num_rows - 1):  # any stretch is the same read alone
        assert torch.equal(rows.read(row, row + 1), features[row : row + 1])

    hop, half_fade = 60, 20
    first, second = (rows._window(index) for index in (0, 1))
    seam = hop + 20
    assert torch.equal(features[: seam - half_fade], first[: seam - half_fade])
    weight = (0.5 + torch.arange(2 * half_fade)) / (2 * half_fade)
    fade = torch.lerp(first[60:100], second[0:40], weight[:, None, None])
    end = min(seam + half_fade, rows.num_rows)
    torch.testing.assert_close(features[60:end], fade[: end - 60])


def test_stream_equals_whole_features(tmp_path: Path) -> None:
    audio = small_audio(tmp_path)
    wave = noise(9.3)
    for fps in (25, Fraction(30000, 1001), 12.5):
        stream = audio.stream(wave, fps)
        expected = torch.stack(audio.feature2chunks(audio.wave2feat(wave), fps, len(stream)))
        parts = [stream.chunks(start, min(start + 16, len(stream))) for start in range(0, len(stream), 16)]
        assert torch.equal(torch.cat(parts), expected)
        assert torch.equal(stream.chunk(3), expected[3])
    with pytest.raises(IndexError):
        stream.chunks(len(stream), len(stream) + 1)


def test_stream_holds_two_windows_and_encodes_each_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    audio = Audio2Feature(small_checkpoint(tmp_path), overlap_seconds=0.4)
    encoded = []
    encode = audio._encode
    monkeypatch.setattr(audio, "_encode", lambda mel: encoded.append(1) or encode(mel))
    stream = audio.stream(noise(20), 25)
    for start in range(0, len(stream), 10):
        stream.chunks(start, start + 10)
        assert len(stream._rows._windows) <= 2
    assert len(encoded) == stream._rows.num_windows


def test_training_window(checkpoint: Path) -> None:
    audio = Audio2Feature(checkpoint, num_frames=5)
    features = audio.wave2feat(noise(2))
    chunks = audio.feature2chunks(features, 25)
    window = audio.crop_overlap_audio_window(features, 7)
    assert window.shape == (5, audio.num_tokens, audio.width) == (5, 30, 32)
    assert torch.equal(window, torch.stack(chunks[7:12]))


@pytest.mark.parametrize("samples", [0, 1, 300, 800])
def test_very_short_audio(tmp_path: Path, samples: int) -> None:
    audio = small_audio(tmp_path)
    stream = audio.stream(np.zeros(samples, np.float32), 25)
    assert len(stream) == math.ceil(samples / 640)
    if samples:
        assert stream.chunks(0, len(stream)).isfinite().all()


def test_frame_count_has_no_rounding_error() -> None:
    assert count_frames(4480, 25) == 7  # 0.28 * 25 is 7.000000000000001 in floating point
    assert count_frames(4481, 25) == 8
    assert count_frames(16000, Fraction(30000, 1001)) == 30


def test_not_a_number_is_refused(tmp_path: Path) -> None:
    audio = small_audio(tmp_path)
    wave = noise(1)
    wave[500] = np.nan
    with pytest.raises(UserError, match="NaN"):
        audio.wave2feat(wave)


def test_safetensors_checkpoint_in_half_precision(tmp_path: Path) -> None:
    full = small_checkpoint(tmp_path)
    state = torch.load(full, weights_only=True)["model_state_dict"]
    encoder = {name: value.half() for name, value in state.items() if name.startswith("encoder.")}
    path = tmp_path / "encoder.safetensors"
    save_file(encoder, path, metadata={"n_audio_head": "2"})
    half, single = (Audio2Feature(weights, overlap_seconds=0) for weights in (path, full))
    assert half.encoder.conv1.weight.dtype == torch.float32
    features = half.wave2feat(noise(1))
    assert features.dtype == torch.float32
    torch.testing.assert_close(features, single.wave2feat(noise(1)), atol=2e-2, rtol=2e-2)


def test_bad_checkpoints(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        Audio2Feature(tmp_path / "absent.pt")

    good = small_checkpoint(tmp_path)
    truncated = tmp_path / "truncated.pt"
    truncated.write_bytes(good.read_bytes()[:5000])
    other = tmp_path / "other.pt"
    torch.save({"state_dict": {}}, other)
    pickled = tmp_path / "pickled.pt"
    torch.save({"dims": Path("x"), "model_state_dict": {}}, pickled)
    wrong = tmp_path / "wrong.safetensors"
    save_file({"layer.weight": torch.zeros(2)}, wrong)
    text = tmp_path / "text.safetensors"
    text.write_text("not weights")
    heads = []
    content = torch.load(good, weights_only=True)
    for number, value in enumerate(("abc", "9" * 5000, 0, -2, math.nan, math.inf, [2], 10**30)):
        heads.append(tmp_path / f"heads{number}.pt")
        torch.save({**content, "dims": {**content["dims"], "n_audio_head": value}}, heads[-1])
    encoder = {name: tensor for name, tensor in content["model_state_dict"].items() if name.startswith("encoder.")}
    for number, value in enumerate(("abc", "²", "9" * 5000)):
        heads.append(tmp_path / f"heads{number}.safetensors")
        save_file(encoder, heads[-1], {"n_audio_head": value})
    quantized = tmp_path / "quantized.safetensors"
    save_file({name: tensor.to(torch.int8) for name, tensor in encoder.items()}, quantized)
    for path in (truncated, other, pickled, wrong, text, quantized, *heads):
        with pytest.raises(UserError, match=path.name) as caught:
            Audio2Feature(path)
        assert "\n" not in str(caught.value)


def test_bad_overlap(checkpoint: Path) -> None:
    with pytest.raises(UserError, match="between 0 and 15"):
        Audio2Feature(checkpoint, overlap_seconds=29)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Files decoded so far; a 'file' is its bytes as 16-bit samples."""
    calls = []

    def decode(path: Path, sample_rate: int) -> np.ndarray:
        assert sample_rate == 16000
        calls.append(path)
        return np.frombuffer(Path(path).read_bytes(), np.int16)

    monkeypatch.setattr(audio2feature, "load_audio", decode)
    return calls


def test_cache_is_keyed_by_content(tmp_path: Path, decoded: list[Path]) -> None:
    first, second, copy = (tmp_path / part / "voice.wav" for part in "abc")
    for path, seed in ((first, 1), (second, 2), (copy, 1)):
        path.parent.mkdir()
        path.write_bytes((noise(1, seed) * 32767).astype(np.int16).tobytes())
    cache = tmp_path / "cache"
    audio = small_audio(tmp_path, audio_embeds_cache_dir=cache)
    features = audio.audio2feat(first)
    assert not torch.equal(audio.audio2feat(second), features)  # same name, other audio
    assert torch.equal(audio.audio2feat(copy), features)
    assert decoded == [first, second]
    other_model = small_audio(tmp_path, seed=1, audio_embeds_cache_dir=cache)
    assert not torch.equal(other_model.audio2feat(first), features)
    assert len(list(cache.iterdir())) == 3  # and no temporary file is left


@pytest.mark.parametrize("damage", [b"", b"x" * 200, None])
def test_damaged_cache_entry_is_computed_anew(tmp_path: Path, decoded: list[Path], damage: bytes | None) -> None:
    voice = tmp_path / "voice.wav"
    voice.write_bytes((noise(1) * 32767).astype(np.int16).tobytes())
    audio = small_audio(tmp_path, audio_embeds_cache_dir=tmp_path / "cache")
    features = audio.audio2feat(voice)
    (entry,) = (tmp_path / "cache").iterdir()
    entry.write_bytes(entry.read_bytes()[:-10] if damage is None else damage)
    assert torch.equal(audio.audio2feat(voice), features)
    assert len(decoded) == 2
    assert torch.equal(audio.audio2feat(voice), features)
    assert len(decoded) == 2


def test_a_file(tmp_path: Path) -> None:
    audio = small_audio(tmp_path, audio_embeds_cache_dir=tmp_path / "cache")
    voice = Path(__file__).parents[2] / "assets" / "demo_voice.wav"
    features = audio.audio2feat(voice)
    assert features.shape == (250, 2, 32)
    assert torch.equal(features, audio.audio2feat(str(voice)))
    with pytest.raises(UserError, match="absent.wav"):
        audio.audio2feat(tmp_path / "absent.wav")
