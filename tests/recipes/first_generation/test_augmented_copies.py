"""Augmented copies of clips: other speed, colors and audio, the same content."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from latentsync.constants import SAMPLE_RATE
from latentsync.data.audio import WhisperReader
from latentsync.data.augment import warp
from latentsync.data.encoded_clips import ClipEncoder, encode_all
from latentsync.data.syncnet_dataset import SyncNetDataset
from recipes.embedded.first_generation import augmented_copies
from recipes.embedded.first_generation.augmented_copies import (
    PACES,
    change_audio,
    change_pace,
    copy_parameters,
    draw_pace,
    encode_copy,
    encoding_jobs,
    move_head,
    paced_frames,
    paced_span,
)
from tests.data.conftest import CLIP_FRAMES, NUM_FRAMES, SIDE, numbers
from tests.data.test_encoded_clips import MeanCodec


@pytest.fixture
def encoder(audio, tmp_path) -> ClipEncoder:
    return ClipEncoder(MeanCodec(), audio, torch.zeros(1, 1, SIDE, SIDE), tmp_path / "cache", "key")


def clicks(*seconds: float) -> np.ndarray:
    wave = np.zeros(2 * SAMPLE_RATE, dtype=np.float32)
    for second in seconds:
        wave[int(second * SAMPLE_RATE) :][:160] = np.hanning(160)
    return wave


def loudest(wave: np.ndarray) -> float:
    """Time in seconds at which the audio is loudest."""
    return float(np.convolve(wave.astype(float) ** 2, np.ones(160), "same").argmax()) / SAMPLE_RATE


@pytest.mark.parametrize("pace", PACES, ids=str)
def test_frames_and_audio_of_a_speed_are_synchronized(pace):
    frames = paced_frames(np.arange(int(50 / pace)), pace)
    assert frames[0] == 0 and 48 <= frames[-1] <= 49
    assert set(np.diff(frames)) <= ({0, 1} if pace < 1 else {1, 2})
    wave = change_pace(clicks(1.02), pace)  # in the middle of frame 25
    loudest_frame = int(loudest(wave) * 25)
    assert abs(frames[loudest_frame] - 25) <= 1
    assert len(wave) / SAMPLE_RATE == pytest.approx(float(2 / pace), abs=1e-3)


def test_paces_are_drawn_from_all_of_them_and_half_speed_shows_frames_twice():
    rng = np.random.default_rng(0)
    assert {draw_pace(rng) for _ in range(200)} == set(PACES) and Fraction(1) in PACES
    assert paced_frames(np.arange(8), Fraction(1, 2)).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize("pace", PACES, ids=str)
def test_a_span_of_a_copy_shows_the_span_of_the_clip(pace):
    shown = paced_frames(np.arange(int(50 / pace)), pace)
    for start, end in ((0, 4), (7, 12), (20, 41), (44, 50)):
        assert (
            list(range(*paced_span(start, end, pace, len(shown))))
            == np.nonzero((shown >= start) & (shown < end))[0].tolist()
        )


def test_audio_changes_and_its_timing_does_not():
    wave = clicks(0.5)
    results = [change_audio(wave, np.random.default_rng(seed)) for seed in range(30)]
    for result in results:
        assert result.dtype == np.float32 and result.shape == wave.shape
        assert 0.09 < np.abs(result).max() < 1
        assert loudest(result) == pytest.approx(0.505, abs=0.02)  # half a frame
    spectra = [np.abs(np.fft.rfft(result / np.linalg.norm(result))) for result in results]
    assert np.median([np.abs(spectra[0] - other).max() for other in spectra[1:]]) > 0.05
    assert np.array_equal(results[3], change_audio(wave, np.random.default_rng(3)))
    assert np.isfinite(change_audio(np.zeros(SAMPLE_RATE, np.float32), np.random.default_rng(1))).all()


def test_copies_follow_the_clip_and_the_number(encoder, clips):
    assert encoder.encode(clips[0]).pace == 1
    copies = [encode_copy(encoder, clip, variant) for clip in clips for variant in (1, 2, 3)]
    assert len({copy.entry for copy in copies}) == 9 and len({copy.pace for copy in copies}) > 2
    for copy in copies:
        assert copy.num_frames == int(CLIP_FRAMES / copy.pace)
        assert copy.num_rows >= 2 * copy.num_frames  # audio for each frame
    before = encoder.codec.encoded
    assert encode_copy(encoder, clips[1], 2) == copies[4] and encoder.codec.encoded == before
    assert {copy_parameters(clips[0].path, number).pace for number in range(1, 100)} == set(PACES)


def test_a_copy_shows_the_frames_of_its_pace(encoder, clips, monkeypatch):
    copy = encode_copy(encoder, clips[0], 1)
    some = np.array([9, 2, 2])
    shown = copy.pixels(some, 25.0)
    patches = encoder.codec.encode(shown)
    assert torch.allclose(patches, copy.read(latents=range(copy.num_frames))["latents"][some], atol=1e-3)
    monkeypatch.setattr(augmented_copies, "augment", lambda frames, _: frames)
    monkeypatch.setattr(augmented_copies, "warp", lambda frames, _: frames)
    still = copy.pixels(some, 25.0)
    assert numbers(still) == paced_frames(some, copy.pace).tolist()
    assert shown.shape == still.shape and (shown - still).abs().mean() > 0.05


def test_each_head_moves_smoothly_around_its_place():
    motions = [move_head(100, np.random.default_rng(seed)) for seed in range(20)]
    places = torch.stack([motion.mean(0) for motion in motions])
    assert all(motion.shape == (100, 2, 3) for motion in motions)
    assert (places - torch.eye(2, 3)).abs().amax() < 0.3 and places.std(0)[:, 2].min() > 0.02
    for motion in motions:
        assert motion.std(0).amax() > 0.01
        assert motion.diff(dim=0).abs().amax() < 0.04  # 2.5 pixels of 128


def test_where_a_head_is_moved_to():
    rng = np.random.default_rng(4)
    motion = move_head(3, rng)
    frames = torch.zeros(3, 3, SIDE, SIDE)
    where = torch.tensor([[0.2, 0.3, 1.0]])  # of the result
    for frame, source in zip(frames, (motion @ where.T)[..., 0], strict=True):
        right, down = ((source + 1) * SIDE / 2).long()
        frame[:, down - 2 : down + 2, right - 2 : right + 2] = 1.0
    moved = warp(frames, motion)[:, 0]
    for image in moved:
        down, right = (torch.nonzero(image > 0.5).float().mean(0) + 0.5) * 2 / SIDE - 1
        assert float(right) == pytest.approx(0.2, abs=0.05) and float(down) == pytest.approx(0.3, abs=0.05)


def test_samples_of_copies_tell_their_pace(encoder, clips):
    encoded = encode_all(encoder, encoding_jobs(encoder, clips[:1], 1))
    dataset = SyncNetDataset(encoded, WhisperReader(), NUM_FRAMES, contrastive=True)
    assert [float(dataset[index]["pace"]) for index in (0, 1)] == [1.0, float(np.float32(encoded[1].pace))]
    pixels = SyncNetDataset(clips, WhisperReader(encoder.audio), NUM_FRAMES, contrastive=True, use_lower_half=False)
    item = pixels[0]
    assert item["pace"] == 1
    assert numbers(item["frames"]) == list(range(item["start_idx"], item["start_idx"] + NUM_FRAMES))
