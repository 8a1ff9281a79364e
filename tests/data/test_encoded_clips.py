"""Encoded clips: caches that follow the content, windows read from them, the audio encoder's tokens."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from latentsync.data import encoded_clips
from latentsync.data.audio import MelReader
from latentsync.data.cache import CacheWriteError, file_digest
from latentsync.data.clips import Clip, read_frames, to_pixel_values
from latentsync.data.encoded_clips import ClipEncoder, EncodedClip, encode_all
from latentsync.data.sampler import SampleId
from latentsync.data.unet_dataset import LatentClipDataset
from latentsync.utils.errors import UserError
from recipes.embedded.first_generation.augmented_copies import encode_copy, paced_frames
from tests.data.conftest import CLIP_FRAMES, NUM_FRAMES, SIDE, numbers, same


class MeanCodec:
    """Stands for LatentCodec: means of 8x8 patches; counts what it encodes."""

    def __init__(self):
        self.encoded = 0

    def encode(self, pixels: Tensor) -> Tensor:
        self.encoded += len(pixels)
        return torch.nn.functional.avg_pool2d(pixels, 8)


@pytest.fixture
def encoder(audio, tmp_path) -> ClipEncoder:
    return ClipEncoder(MeanCodec(), audio, torch.zeros(1, 1, SIDE, SIDE), tmp_path / "cache", "key")


def counted(tmp_path, frames: int, person: str = "a") -> EncodedClip:
    """A clip whose latents are frame numbers."""
    values = torch.arange(float(frames)).view(-1, 1, 1, 1).half()
    states = torch.arange(2.0 * frames)[:, None, None].half()
    entry = tmp_path / f"{person}{frames}.safetensors"
    save_file({"latents": values, "masked_latents": -values, "audio_states": states}, entry)
    return EncodedClip(tmp_path / f"{person}{frames}.mp4", person, frames, entry, 2 * frames)


def test_runs_lie_apart_from_their_reference_and_are_a_function_of_the_draw(tmp_path):
    dataset = LatentClipDataset([counted(tmp_path, 9), counted(tmp_path, 30)], (2, 2), 4)
    for key in range(40):
        item = dataset[SampleId(1, key)]
        run, reference = item["latents"].flatten(), item["ref_latents"].flatten()
        assert item["latents"].dtype == torch.float32 and item["latents"].shape == (4, 1, 1, 1)
        assert not set(run.tolist()) & set(reference.tolist())
        assert run[0] == item["start_idx"] and torch.equal(run.diff(), torch.ones(3))
        assert torch.equal(item["masked_latents"].flatten(), -run)
        assert item["audio"].shape == (4, 10, 1)
        assert same(item, dataset[SampleId(1, key)])
    assert not same(dataset[SampleId(1, 2)], dataset[SampleId(1, 3)])
    assert same(dataset[1], dataset[SampleId(1, 1)])


def test_short_clips_are_left_out_and_named_when_none_is_left(tmp_path, caplog):
    dataset = LatentClipDataset([counted(tmp_path, 7), counted(tmp_path, 8)], (2, 2), 4)
    assert len(dataset) == 1
    assert "1 clips are shorter than 8 frames" in caplog.text
    with pytest.raises(UserError, match="8 frames"):
        LatentClipDataset([counted(tmp_path, 7)], (2, 2), 4)


def test_people_count_with_the_root_of_their_clips(tmp_path):
    clips = [counted(tmp_path, 8, "many")] * 9 + [counted(tmp_path, 8, "one")]
    weights = LatentClipDataset(clips, (2, 2), 4).person_weights()
    assert weights[:9].sum() / weights[9] == pytest.approx(3.0)


def test_items_of_real_clips(encoder, clips, audio):
    variants = [encoder.encode(clips[0]), encode_copy(encoder, clips[2], 5)]
    dataset = LatentClipDataset(variants, audio.audio_feat_length, NUM_FRAMES, mels=MelReader(), with_pixels=True)
    item = dataset[0]
    start = item["start_idx"]
    assert numbers(item["gt_pixel_values"]) == list(range(start, start + NUM_FRAMES))
    expected = audio.crop_overlap_audio_window(audio.audio2feat(clips[0].path).half().float(), start)
    assert torch.equal(item["audio"], expected)
    assert item["mel"].shape == (1, 80, 13)
    patches = encoder.codec.encode(item["gt_pixel_values"])
    assert torch.allclose(item["latents"], patches, atol=1e-3)
    copy = dataset[1]
    assert torch.allclose(copy["latents"], encoder.codec.encode(copy["gt_pixel_values"]), atol=1e-3)
    shown = paced_frames(np.arange(copy["start_idx"], copy["start_idx"] + NUM_FRAMES), variants[1].pace)
    plain = to_pixel_values(read_frames(clips[2].path))[shown]
    assert (copy["gt_pixel_values"] - plain).abs().mean() > 0.02  # of another look


def test_cache_follows_the_content_not_the_name(encoder, clips, tmp_path):
    copy = tmp_path / "copy.mp4"
    copy.write_bytes(clips[0].path.read_bytes())
    encoded = encoder.encode(clips[0])
    assert (encoded.num_frames, encoded.person) == (CLIP_FRAMES, "anna")
    assert encoded.entry.name == f"{file_digest(copy)}_key_0.safetensors"
    assert encoder.codec.encoded == 2 * CLIP_FRAMES
    again = encoder.encode(Clip(copy, "ben"))
    assert again.entry == encoded.entry and again.person == "ben"
    assert encoder.codec.encoded == 2 * CLIP_FRAMES
    encoder.encode(clips[1])
    assert encoder.codec.encoded == 4 * CLIP_FRAMES
    encoded.entry.write_bytes(b"damaged")
    assert encoder.encode(clips[0]) == encoded
    assert encoder.codec.encoded == 6 * CLIP_FRAMES


def test_a_clip_that_cannot_be_encoded_is_left_out_and_named(encoder, clips, broken, caplog):
    assert len(encode_all(encoder, encoder.jobs([broken, clips[0]]))) == 1
    assert f"1 clips cannot be encoded and are left out: {broken.path}" in caplog.text
    with pytest.raises(UserError, match="broken.mp4: cannot be read as a clip"):
        encode_all(encoder, encoder.jobs([broken]))


def test_a_full_disk_is_no_fault_of_the_clip(encoder, clips, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("latentsync.data.cache.write_safetensors", full)
    monkeypatch.setattr(encoded_clips.ClipEncoder, "_compute", lambda *_: {})
    with pytest.raises(CacheWriteError, match="No space left on device"):
        encode_all(encoder, encoder.jobs(clips[:2]))
    assert not list(encoder.cache_dir.iterdir())


def test_a_damaged_entry_is_named_and_another_clip_taken(tmp_path, caplog):
    good, bad = counted(tmp_path, 20), counted(tmp_path, 21)
    dataset = LatentClipDataset([good, bad], (2, 2), 4)
    bad.entry.write_bytes(b"damaged")
    item = dataset[SampleId(1, 5)]
    assert item["video_path"] == str(good.path) and item["failed_paths"] == [str(bad.path)]
    assert str(bad.entry) in caplog.text
