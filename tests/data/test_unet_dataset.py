"""Pixel samples of the UNet: published keys, frames and audio of the same time, bad clips replaced and named."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from latentsync.config.sections import AugmentConfig
from latentsync.data.audio import MelReader, mel_window
from latentsync.data.clip_dataset import MAX_TRIES, ClipDataset
from latentsync.data.clips import Clip
from latentsync.data.sampler import SampleId, StepBatchSampler, collate
from latentsync.data.unet_dataset import UNetDataset, whisper_tokens
from latentsync.faces.mask import load_mask
from latentsync.utils.errors import UserError
from tests.data.conftest import NUM_FRAMES, SIDE, numbers, same

PUBLISHED = {
    "gt_pixel_values",
    "masked_pixel_values",
    "ref_pixel_values",
    "mel",
    "masks",
    "video_path",
    "start_idx",
}


@pytest.fixture
def dataset(clips, audio) -> UNetDataset:
    return UNetDataset(clips, audio, load_mask(SIDE), seed=3)


def test_frames_masks_and_audio_belong_together(dataset, clips, audio):
    for key in range(4):
        item = dataset[SampleId(1, key)]
        assert item.keys() == PUBLISHED | {"audio", "key", "failed_paths"}
        start = item["start_idx"]
        assert numbers(item["gt_pixel_values"]) == list(range(start, start + NUM_FRAMES))
        reference = numbers(item["ref_pixel_values"])
        assert reference == list(range(reference[0], reference[0] + NUM_FRAMES))
        assert abs(reference[0] - start) >= NUM_FRAMES
        assert item["masks"].shape == (NUM_FRAMES, 1, SIDE, SIDE)
        assert torch.equal(item["masked_pixel_values"], item["gt_pixel_values"] * item["masks"])
        assert torch.equal(item["mel"], mel_window(MelReader().mel(clips[1]), start, NUM_FRAMES))
        expected = audio.crop_overlap_audio_window(audio.audio2feat(clips[1].path), start)
        assert torch.equal(item["audio"], expected)
        assert item["video_path"] == str(clips[1].path)


def test_items_are_a_function_of_seed_and_key(dataset, clips, audio):
    assert same(dataset[SampleId(0, 9)], UNetDataset(clips, audio, load_mask(SIDE), seed=3)[SampleId(0, 9)])
    starts = {dataset[SampleId(0, key)]["start_idx"] for key in range(6)}
    assert len(starts) > 1


def test_target_and_reference_are_augmented_alike(clips, audio):
    plain = UNetDataset(clips, audio, load_mask(SIDE))[0]
    augmented = UNetDataset(clips, audio, load_mask(SIDE), augmentation=AugmentConfig(flip=1.0))[0]
    assert augmented["start_idx"] == plain["start_idx"]
    for name in ("gt_pixel_values", "ref_pixel_values"):
        assert torch.equal(augmented[name], plain[name].flip(-1))
    assert torch.equal(augmented["masked_pixel_values"], augmented["gt_pixel_values"] * augmented["masks"])


def test_a_broken_clip_is_named_and_another_taken(clips, audio, broken, caplog):
    dataset = UNetDataset([broken, *clips], audio, load_mask(SIDE))
    item = dataset[SampleId(0, 7)]
    assert item["failed_paths"] == [str(broken.path)]
    assert item["video_path"] in {str(clip.path) for clip in clips}
    assert f"{broken.path}: cannot be read as a clip" in caplog.text
    assert same(item, dataset[SampleId(0, 7)])


def test_tries_are_bounded_and_end_in_an_error_batch():
    class Hopeless(ClipDataset):
        def make_item(self, clip, key, rng):
            raise UserError(f"{clip.path}: bad")

    dataset = Hopeless([Clip(f"{number}.mp4", "a") for number in range(20)], seed=1)
    with pytest.raises(UserError, match=f"{MAX_TRIES} clips tried") as caught:
        dataset[4]
    assert len(set(caught.value.args[0].split(": ")[1].split(", "))) == MAX_TRIES
    batch = next(iter(DataLoader(dataset, batch_sampler=StepBatchSampler(20, 2, 0), collate_fn=collate)))
    assert batch.keys() == {"error"} and "8 clips tried" in batch["error"]
    with pytest.raises(UserError, match="2 clips tried"):
        Hopeless([Clip("a.mp4", "a"), Clip("b.mp4", "a")], seed=1)[0]


def test_batches_of_a_loader_with_workers_equal_those_without(dataset):
    batches = []
    for workers in (0, 1):
        sampler = StepBatchSampler(len(dataset), 2, 3, weights=dataset.person_weights(), start=5)
        loader = DataLoader(dataset, batch_sampler=sampler, collate_fn=collate, num_workers=workers)
        batches.append(next(iter(loader)))
    assert same(*batches)
    assert batches[0]["gt_pixel_values"].shape == (2, NUM_FRAMES, 3, SIDE, SIDE)
    assert torch.equal(batches[0]["key"], torch.tensor([10, 11]))


def test_clips_that_are_not_fit_are_refused_at_once(clips, audio):
    with pytest.raises(UserError, match="data.resolution asks for 32x32"):
        UNetDataset(clips, audio, load_mask(32))
    with pytest.raises(UserError, match="no clips to train on|none of the 0"):
        UNetDataset([], audio, load_mask(SIDE))


def test_mel_is_cached_by_content(clips, tmp_path, monkeypatch):
    reader = MelReader(tmp_path / "mels")
    mel = reader.mel(clips[0])
    copy = tmp_path / "copy.mp4"
    copy.write_bytes(clips[0].path.read_bytes())
    monkeypatch.setattr(MelReader, "_compute", lambda *_: pytest.fail("computed again"))
    assert torch.equal(reader.mel(Clip(copy, "ben")), mel)
    with pytest.raises(pytest.fail.Exception):
        reader.mel(clips[1])


def test_audio_encoder_in_the_step_gives_the_same_tokens(clips, audio, tiny_files):
    """Up to the rounding of the cache to float16."""
    plain = UNetDataset(clips, audio, load_mask(SIDE))
    own = UNetDataset(clips, audio, load_mask(SIDE), whisper_on_device=True)
    first, second = collate([plain[0], plain[2]]), collate([own[0], own[2]])
    assert "audio" not in second
    tokens = whisper_tokens(audio, second["whisper_mel"], second["whisper_rows"])
    assert tokens.shape == first["audio"].shape
    assert torch.allclose(tokens, first["audio"], atol=2e-3 * float(first["audio"].abs().max()))


def test_audio_longer_than_the_encoders_context_is_refused(audio):
    with pytest.raises(UserError, match="whisper_on_device"):
        audio.window_mel(np.zeros(int(16000 * (audio.window_seconds + 1)), np.float32))
