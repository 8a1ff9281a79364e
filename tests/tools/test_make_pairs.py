"""Editing without a mask: altered twins, training on them, and a model that sees the whole frame."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import default_collate

from latentsync.data.clips import read_fileslist, read_frames
from latentsync.data.sampler import SampleId
from latentsync.data.unet_dataset import UNetDataset, twin_path
from latentsync.faces.mask import load_mask
from latentsync.loading import ModelPaths, load_pipeline
from latentsync.pipelines.lipsync_pipeline import LipsyncPipeline
from latentsync.training.losses import LossNetworks
from latentsync.training.unet_setup import build_dataset
from latentsync.training.unet_task import UNetTask
from latentsync.utils.errors import UserError
from tests.data.conftest import CLIP_FRAMES, NUM_FRAMES, SIDE, audio, clips, numbers  # noqa: F401  (fixtures)
from tests.tiny_model import TinyFiles
from tests.training.tiny_unet import frozen_components, tiny_config, write_clips
from tools.make_pairs import make_pairs, other_voice


@pytest.fixture
def pipeline(tiny_files: TinyFiles) -> LipsyncPipeline:
    return load_pipeline(ModelPaths(**vars(tiny_files)), "cpu")


@pytest.fixture
def fast(pipeline: LipsyncPipeline) -> LipsyncPipeline:
    pipeline.num_inference_steps, pipeline.guidance_scale = 1, 1.0
    return pipeline


def test_twins_are_written_once_and_differ_inside_the_mask_only(fast, clips, tmp_path):  # noqa: F811
    assert make_pairs(fast, clips, tmp_path / "twins") == len(clips)
    real, twin = read_frames(clips[0].path), read_frames(twin_path(tmp_path / "twins", clips[0]))
    assert twin.shape == real.shape == (CLIP_FRAMES, SIDE, SIDE, 3)
    change = np.abs(twin.astype(int) - real).mean(axis=(0, 3))
    kept = load_mask(SIDE)[0, 0].numpy() == 1
    assert change[~kept].mean() > 4 * change[kept].mean()
    assert make_pairs(fast, clips, tmp_path / "twins") == 0
    with pytest.raises(UserError, match="at least two clips"):
        make_pairs(fast, clips[:1], tmp_path / "twins")


def test_the_voice_is_that_of_another_person(clips):  # noqa: F811
    assert [other_voice(clips, index) for index in range(3)] == [clips[2], clips[2], clips[0]]
    assert other_voice(clips[:2], 0) == clips[1]


def test_the_condition_is_the_twin_at_the_same_time(fast, clips, audio, tmp_path):  # noqa: F811
    make_pairs(fast, clips, tmp_path)
    plain = UNetDataset(clips, audio, load_mask(SIDE), seed=3)[SampleId(1, 2)]
    paired = UNetDataset(clips, audio, load_mask(SIDE), seed=3, pairs=tmp_path)[SampleId(1, 2)]
    window = range(paired["start_idx"], paired["start_idx"] + NUM_FRAMES)
    assert torch.equal(paired["gt_pixel_values"], plain["gt_pixel_values"])
    assert torch.equal(paired["ref_pixel_values"], plain["ref_pixel_values"])
    twin = read_frames(twin_path(tmp_path, clips[1]), np.array(window))
    expected = torch.from_numpy(twin).permute(0, 3, 1, 2).float() / 127.5 - 1
    assert torch.allclose(paired["masked_pixel_values"], expected, atol=1e-5)
    assert not torch.equal(paired["masked_pixel_values"], plain["masked_pixel_values"])


def test_a_model_with_the_whole_condition_sees_masked_pixels(pipeline, monkeypatch):
    seen = []
    encode = pipeline.codec.encode
    monkeypatch.setattr(pipeline.codec, "encode", lambda pixels: seen.append(pixels.clone()) or encode(pixels))
    faces = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)
    tokens = torch.zeros(2, 50, pipeline.audio_encoder.width)
    settings = {"inference_steps": 1, "guidance_scale": 1.0}
    masked = pipeline.speak(faces, tokens, **settings)
    monkeypatch.setattr(pipeline.unet, "config", replace(pipeline.unet.config, whole_condition=True))
    whole = pipeline.speak(faces, tokens, **settings)
    reference, hidden, same, shown = seen
    assert torch.equal(reference, same) and torch.equal(shown, reference) and not torch.equal(hidden, reference)
    assert not torch.equal(masked, whole)


def test_a_step_on_pairs(fast, tiny_files, tmp_path):
    """The twins of the run's own clips; then the tiny UNet with the whole condition learns from them."""
    parts = frozen_components(tiny_files)
    files = parts.codec, Path(tiny_files.vae), Path(tiny_files.whisper)
    listed, config = write_clips(tmp_path), tiny_config(tmp_path)
    with pytest.raises(UserError, match="set model.whole_condition to true"):
        replace(config, data=replace(config.data, pairs_dir=str(tmp_path)))
    make_pairs(fast, read_fileslist(listed), tmp_path / "twins")
    whole = replace(config, model=replace(config.model, whole_condition=True))
    with pytest.raises(UserError, match=r"tools\.make_pairs"):
        build_dataset(whole, *files, with_mel=False)
    paired = replace(whole, data=replace(whole.data, pairs_dir=str(tmp_path / "twins")))
    dataset = build_dataset(paired, *files, with_mel=False)
    task = UNetTask(paired, parts, LossNetworks(), lambda: dataset)
    batch = default_collate([dataset[SampleId(0, key)] | {"failed_paths": 0} for key in range(2)])
    losses = task.step(task.model, batch, 0)
    losses["loss"].backward()
    assert torch.isfinite(losses["loss"]) and task.model.conv_out.weight.grad.abs().sum() > 0
