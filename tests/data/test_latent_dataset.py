"""Encoded clips: runs that do not overlap their reference, balance by person, caches that follow the content."""

import numpy as np
import pytest
import torch
from torch import Tensor

from latentsync.data import latent_dataset
from latentsync.data.clips import Clip, read_fileslist
from latentsync.data.latent_dataset import ClipEncoder, EncodedClip, LatentClipDataset, file_digest, jitter_clip
from latentsync.utils.errors import UserError


class FakeAudio:
    """Stands for Audio2Feature: states are row numbers."""

    def audio2feat(self, path) -> Tensor:
        return torch.arange(100.0)[:, None, None]

    def crop_overlap_audio_window(self, states: Tensor, start: int) -> Tensor:
        return states[2 * start : 2 * start + 8]


class FakeCodec:
    """Stands for LatentCodec: means of 8x8 patches; counts what it encodes."""

    def __init__(self):
        self.encoded = 0

    def encode(self, pixels: Tensor) -> Tensor:
        self.encoded += len(pixels)
        return torch.nn.functional.avg_pool2d(pixels, 8)


def clip_of(frames: int, person: str = "a") -> EncodedClip:
    numbers = torch.arange(float(frames)).view(-1, 1, 1, 1).half()
    return EncodedClip(person, numbers, -numbers, torch.arange(2.0 * frames)[:, None, None].half())


@pytest.mark.parametrize("frames", [8, 9, 11, 12, 30])
def test_reference_never_overlaps_the_run(frames):
    dataset = LatentClipDataset([clip_of(frames)], FakeAudio(), num_frames=4)
    starts = set()
    for _ in range(200):
        item = dataset[0]
        run, reference = item["latents"].flatten(), item["ref_latents"].flatten()
        assert not set(run.tolist()) & set(reference.tolist())
        assert torch.equal(run.diff(), torch.ones(3))
        assert torch.equal(item["masked_latents"].flatten(), -run)
        assert item["audio"].flatten()[0] == 2 * run[0]
        starts.add(run[0].item())
    assert len(starts) > 1


def test_equal_seeds_draw_equal_runs():
    first, second = (LatentClipDataset([clip_of(30)], FakeAudio(), 4, seed=3) for _ in range(2))
    assert all(torch.equal(first[0]["latents"], second[0]["latents"]) for _ in range(10))


def test_short_clips_are_left_out_and_named_when_none_is_left(caplog):
    dataset = LatentClipDataset([clip_of(7), clip_of(8)], FakeAudio(), num_frames=4)
    assert len(dataset) == 1
    assert "1 clips are shorter than 8 frames" in caplog.text
    with pytest.raises(UserError, match="8 frames"):
        LatentClipDataset([clip_of(7)], FakeAudio(), num_frames=4)


def test_people_count_with_the_root_of_their_clips():
    clips = [clip_of(8, "many") for _ in range(9)] + [clip_of(8, "one")]
    weights = LatentClipDataset(clips, FakeAudio(), 4).person_weights()
    assert weights[:9].sum() / weights[9] == pytest.approx(3.0)


def test_cache_follows_the_content_not_the_name(tmp_path, monkeypatch):
    frames = np.full((3, 16, 16, 3), 128, np.uint8)
    monkeypatch.setattr(latent_dataset, "read_frames", lambda path: frames)
    first, copy, other = tmp_path / "a.mp4", tmp_path / "b.mp4", tmp_path / "c.mp4"
    first.write_bytes(b"one")
    copy.write_bytes(b"one")
    other.write_bytes(b"two")
    codec = FakeCodec()
    encoder = ClipEncoder(codec, FakeAudio(), torch.zeros(1, 1, 16, 16), tmp_path / "cache", "key")
    encoded = encoder.encode(Clip(first, "a"))
    assert encoded.latents.shape == (3, 3, 2, 2)
    assert encoded.masked_latents.abs().max() == 0
    assert codec.encoded == 6
    encoder.encode(Clip(copy, "b"))
    assert codec.encoded == 6
    encoder.encode(Clip(other, "a"))
    encoder.encode(Clip(first, "a"), variant=1)
    assert codec.encoded == 18
    assert file_digest(first) == file_digest(copy) != file_digest(other)


def test_jitter_mirrors_and_stays_in_range():
    frames = torch.rand(2, 3, 8, 8) * 2 - 1
    changed = jitter_clip(frames, 1)
    assert torch.equal(changed, jitter_clip(frames, 1))
    assert not torch.equal(changed, jitter_clip(frames, 2))
    assert changed.abs().max() <= 1
    order = lambda x: x[0, 0, 0].argsort()  # noqa: E731
    assert torch.equal(order(changed), 7 - order(frames)) or (changed.abs() == 1).any()


def test_file_lists(tmp_path):
    listing = tmp_path / "list.txt"
    listing.write_text("p/a.mp4\tanna\n\nq/b c.mp4\n", encoding="utf-8")
    clips = read_fileslist(listing)
    assert clips == [Clip(tmp_path / "p/a.mp4", "anna"), Clip(tmp_path / "q/b c.mp4", "q")]
    assert read_fileslist(listing, tmp_path / "data")[0].path == tmp_path / "data" / "p/a.mp4"
    listing.write_text("\n")
    with pytest.raises(UserError, match="empty"):
        read_fileslist(listing)
    with pytest.raises(UserError, match="no such file list"):
        read_fileslist(tmp_path / "none.txt")
