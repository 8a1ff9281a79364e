"""Samples of SyncNet: positive and negative pairs; frames or latents, mel or Whisper states."""

import pytest
import torch
from torch import Tensor

from latentsync.config.sections import AugmentConfig
from latentsync.data.audio import AudioReader, AudioTrack, MelReader, WhisperReader, mel_window
from latentsync.data.encoded_clips import ClipEncoder, EncodedClip
from latentsync.data.sampler import SampleId
from latentsync.data.syncnet_dataset import MIN_SHIFT, SyncNetDataset
from latentsync.models.syncnet_input import whisper_rows
from latentsync.utils.errors import UserError
from tests.data.conftest import CLIP_FRAMES, NUM_FRAMES, SIDE, numbers, same
from tests.data.test_encoded_clips import MeanCodec

KEYS = {"frames", "audio_samples", "y", "start_idx", "pace", "key", "video_path", "failed_paths"}


class NumberedTrack(AudioTrack):
    """Stands for an audio track: windows tell their clip and where they begin."""

    def __init__(self, name: str, num_frames: int):
        self.name, self.num_frames = name, num_frames

    def window(self, start: int, num_frames: int) -> Tensor:
        return torch.tensor([float(ord(self.name[0])), float(start)])


class NumberedReader(AudioReader):
    fps = 25.0

    def __init__(self, num_frames: int = CLIP_FRAMES):
        self.num_frames = num_frames

    def open(self, clip) -> AudioTrack:
        return NumberedTrack(clip.path.name, self.num_frames)


@pytest.fixture
def encoded(clips, audio, tmp_path) -> list[EncodedClip]:
    encoder = ClipEncoder(MeanCodec(), audio, torch.ones(1, 1, SIDE, SIDE), tmp_path / "cache", "key")
    return [encoder.encode(clip) for clip in clips]


def test_frames_are_the_lower_half_and_the_mel_is_theirs(clips):
    dataset = SyncNetDataset(clips, MelReader(), NUM_FRAMES, contrastive=True, resolution=SIDE)
    whole = SyncNetDataset(clips, MelReader(), NUM_FRAMES, contrastive=True, use_lower_half=False)
    item = dataset[2]
    assert item.keys() == KEYS
    assert item["frames"].shape == (NUM_FRAMES, 3, SIDE // 2, SIDE) and item["y"].tolist() == [1.0]
    frames, start = whole[2]["frames"], item["start_idx"]
    assert numbers(frames) == list(range(start, start + NUM_FRAMES))
    assert torch.equal(frames[:, :, SIDE // 2 :], item["frames"])
    assert torch.equal(item["audio_samples"], mel_window(MelReader().mel(clips[2]), start, NUM_FRAMES))
    assert same(item, dataset[2])


def test_half_of_the_pairs_are_at_least_six_frames_off(clips):
    dataset = SyncNetDataset(clips, NumberedReader(), NUM_FRAMES, other_clip_negatives=0.3)
    dataset._frames = lambda *_: torch.zeros(1, 2, 1)
    shifts, others = [], 0
    for key in range(400):
        item = dataset[SampleId(0, key)]
        name, start = item["audio_samples"].tolist()
        if item["y"] == 1:
            assert name == ord("a") and start == item["start_idx"]
            continue
        if name == ord("a"):
            shifts.append(start - item["start_idx"])
        others += name != ord("a")
    assert 160 < len(shifts) + others < 240
    assert 0.2 < others / (len(shifts) + others) < 0.4
    assert min(abs(shift) for shift in shifts) == MIN_SHIFT and min(shifts) < 0 < max(shifts)


def test_contrastive_pairs_are_all_in_sync_and_spread(clips):
    dataset = SyncNetDataset(clips, NumberedReader(), NUM_FRAMES, contrastive=True)
    dataset._frames = lambda *_: torch.zeros(1, 2, 1)
    items = [dataset[SampleId(0, key)] for key in range(20)]
    assert all(item["y"] == 1 and item["audio_samples"][1] == item["start_idx"] for item in items)
    assert len({item["start_idx"] for item in items}) >= 18


def test_latents_with_whisper_states(encoded, clips, audio):
    dataset = SyncNetDataset(encoded, WhisperReader(), NUM_FRAMES, contrastive=True, use_lower_half=False)
    item = dataset[1]
    start = item["start_idx"]
    assert item["frames"].shape == (NUM_FRAMES, 3, 8, 8)
    assert torch.equal(item["frames"], encoded[1].read(latents=range(start, start + NUM_FRAMES))["latents"])
    states = audio.audio2feat(clips[1].path)
    rows = item["audio_samples"]
    assert rows.shape == (2 * NUM_FRAMES, *states.shape[1:])
    assert torch.equal(rows, states[2 * start : 2 * (start + NUM_FRAMES)].half().float())
    tokens = audio.crop_overlap_audio_window(states, start)[None]
    assert torch.allclose(rows, whisper_rows(tokens, audio.num_layers)[0], atol=1e-2)
    halved = SyncNetDataset(encoded, WhisperReader(), NUM_FRAMES, contrastive=True)[1]
    assert torch.equal(halved["frames"], item["frames"][:, :, 4:])


def test_frames_with_whisper_states_and_latents_with_mel(encoded, clips, audio):
    pixels = SyncNetDataset(clips, WhisperReader(audio), NUM_FRAMES, contrastive=True)[0]
    latents = SyncNetDataset(encoded, WhisperReader(), NUM_FRAMES, contrastive=True)[0]
    assert torch.allclose(pixels["audio_samples"], latents["audio_samples"], atol=1e-2)
    assert SyncNetDataset(encoded, MelReader(), NUM_FRAMES)[0]["audio_samples"].shape == (1, 80, 13)


def test_audio_that_ends_early_shortens_the_clip(clips, caplog):
    dataset = SyncNetDataset(clips, NumberedReader(12), NUM_FRAMES, contrastive=True)
    assert max(dataset[SampleId(0, key)]["start_idx"] for key in range(60)) == 12 - NUM_FRAMES
    mute = SyncNetDataset(clips, NumberedReader(3), NUM_FRAMES, contrastive=True)
    with pytest.raises(UserError, match="3 clips tried"):
        mute[0]
    assert "only 3 frames have audio" in caplog.text


def test_options_that_contradict_are_refused(clips, encoded):
    with pytest.raises(UserError, match="at least two clips"):
        SyncNetDataset(clips[:1], NumberedReader(), NUM_FRAMES, other_clip_negatives=0.5)
    with pytest.raises(UserError, match="between 0 and 1"):
        SyncNetDataset(clips, NumberedReader(), NUM_FRAMES, other_clip_negatives=1.5)
    with pytest.raises(UserError, match="latents cannot be augmented"):
        SyncNetDataset(encoded, WhisperReader(), NUM_FRAMES, augmentation=AugmentConfig(flip=0.5))
    with pytest.raises(UserError, match="shorter than 46 frames"):
        SyncNetDataset(clips, NumberedReader(), num_frames=40)
