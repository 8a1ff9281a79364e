"""Pipelines from names and files: valid and refused combinations, and components from a base model."""

import hashlib
import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

import latentsync
from latentsync.checkpoints.loading import load_state_dict, save_checkpoint
from latentsync.loading import ModelPaths, load_pipeline, load_scheduler, pick_device, pick_dtype
from latentsync.models.lora import add_lora, save_lora
from latentsync.models.unet import UNet3DConditionModel
from latentsync.models.unet_config import UNetConfig
from latentsync.pipelines import components
from latentsync.utils.errors import UserError
from tests.tiny_model import RESOLUTION, SCHEDULER, UNET, TinyFiles


def paths(files: TinyFiles, **changes: object) -> ModelPaths:
    return ModelPaths(**{**vars(files), **changes})


def config(folder: Path, data: dict | None = None, **model: object) -> Path:
    path = folder / "changed.yaml"
    path.write_text(yaml.safe_dump({"model": UNET | model, "data": {"resolution": RESOLUTION} | (data or {})}))
    return path


def test_own_files(tiny_files, caplog):
    with caplog.at_level(logging.INFO):
        pipeline = load_pipeline(paths(tiny_files), "cpu")
    assert pipeline.resolution == RESOLUTION and pipeline.device == torch.device("cpu")
    assert pipeline.unet.dtype == pipeline.codec.dtype == torch.float32
    assert [record.getMessage() for record in caplog.records] == [
        f"model {tiny_files.unet} (your files) on cpu, float32"
    ]
    assert latentsync.load_pipeline is load_pipeline


def test_options_reach_the_parts(tiny_files):
    pipeline = load_pipeline(paths(tiny_files), "cpu", torch.bfloat16, deepcache=True, low_memory=True)
    assert pipeline.unet.dtype == pipeline.codec.dtype == torch.bfloat16
    assert pipeline.audio_encoder.encoder.positional_embedding.dtype == torch.float32
    assert pipeline.codec.vae.use_slicing and pipeline.unet._deepcache is not None


def test_without_weights_upscaling_is_sharpening_and_says_so(tiny_files, tmp_path, monkeypatch, caplog):
    weights = tmp_path / "RealESRGAN_x4plus.pth"
    monkeypatch.setattr(components, "UPSCALER_WEIGHTS", weights)
    pipeline = load_pipeline(paths(tiny_files), "cpu", upscale=True)
    assert pipeline.enhancer.name == "sharpness filter"
    assert f"{weights}: using a sharpness filter instead" in caplog.text
    with pytest.raises(UserError, match="missing weights"):
        load_pipeline(paths(tiny_files), "cpu", upscale=True, enhancer="gfpgan")  # asked for by name: strict
    assert load_pipeline(paths(tiny_files), "cpu").enhancer is None
    weights.touch()
    monkeypatch.setattr(components, "open_enhancer", lambda name: name)
    assert components.can_upscale() and components.pick_enhancer() == "realesrgan"


def test_audio_settings_come_from_the_config(tiny_files, tmp_path):
    changed = config(tmp_path, {"audio_feat_length": [1, 3], "num_frames": 8})
    encoder = load_pipeline(paths(tiny_files, unet_config=changed), "cpu").audio_encoder
    assert encoder.audio_feat_length == (1, 3) and encoder.num_frames == 8


def test_missing_components_come_from_the_base_model(tiny_files, monkeypatch):
    """Steps and guidance are those of the config, here the base's."""
    with tiny_files.unet_config.open("a") as file:
        file.write("\nrun:\n  inference_steps: 7\n  guidance_scale: 2.5\n")
    monkeypatch.setattr(components, "resolve", lambda name, own: replace(resolved(tiny_files), name=name, **own))
    pipeline = load_pipeline(ModelPaths(unet=tiny_files.unet, base="latentsync-1.5"), "cpu")
    assert (pipeline.num_inference_steps, pipeline.guidance_scale) == (7, 2.5)


def resolved(files: TinyFiles) -> components.ResolvedModel:
    return components.ResolvedModel("tiny", **vars(files), resolution=64, license="")


def test_an_adapter_is_merged(tiny_files, tmp_path, caplog):
    unet, _ = UNet3DConditionModel.from_pretrained(UNET, tiny_files.unet)
    name = "mid_block.attentions.0.transformer_blocks.0.attn2.to_v"
    parameters = add_lora(unet, rank=2, alpha=4, targets=[name])
    torch.nn.init.ones_(parameters[1])
    save_lora(unet, tmp_path / "adapter.safetensors", base="tiny", step=30)
    with caplog.at_level(logging.INFO):
        pipeline = load_pipeline(paths(tiny_files), "cpu", lora=tmp_path / "adapter.safetensors", lora_scale=0.5)
    state, before = pipeline.unet.state_dict(), load_state_dict(tiny_files.unet)
    changed = [key for key in before if not torch.equal(state[key], before[key])]
    assert state.keys() == before.keys() and changed == [f"{name}.weight"]
    assert caplog.messages[-1] == f"LoRA adapter {tmp_path / 'adapter.safetensors'} (step 30), scale 0.5"


def test_an_adapter_of_another_model(tiny_files, tmp_path):
    unet = UNet3DConditionModel(UNetConfig.from_dict(UNET | {"cross_attention_dim": 64}))
    add_lora(unet, rank=2)
    save_lora(unet, tmp_path / "adapter.safetensors")
    with pytest.raises(UserError, match="cross_attention_dim 64 instead of 32"):
        load_pipeline(paths(tiny_files), "cpu", lora=tmp_path / "adapter.safetensors")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"unet": "none.pt"}, "none.pt: no such UNet checkpoint"),
        ({"vae": "none"}, "none: no such autoencoder folder"),
        ({"whisper": "none.pt"}, "none.pt: no such Whisper checkpoint"),
        ({"unet_config": "none.yaml"}, "none.yaml: no such UNet config"),
        ({"scheduler_config": "none.json"}, "none.json: no such scheduler config"),
        ({"vae": SCHEDULER}, "no autoencoder here"),
        ({"whisper": SCHEDULER}, "as a Whisper checkpoint"),
        ({"unet": SCHEDULER}, "is not a checkpoint"),
        ({"unet_config": SCHEDULER}, "missing section model"),
        ({"base": "syncnet"}, "syncnet is not a lip-sync model"),
    ],
)
def test_wrong_files(tiny_files, changes, message):
    with pytest.raises(UserError, match=message):
        load_pipeline(paths(tiny_files, **changes), "cpu")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"block_out_channels": [32, 64]}, "does not fit the model config"),
        ({"in_channels": 9}, "only as a start for training"),
        ({"cross_attention_dim": 64}, "only as a start for training"),
        ({"use_motion_module": False}, "does not fit the model config"),
    ],
)
def test_config_and_checkpoint_that_do_not_match(tiny_files, tmp_path, model, message):
    with pytest.raises(UserError, match=message):
        load_pipeline(paths(tiny_files, unet_config=config(tmp_path, **model)), "cpu")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            {"cross_attention_dim": 64},
            "features of width 64, but those of the Whisper checkpoint have width 32",
        ),
        ({"in_channels": 25, "out_channels": 8}, r"autoencoder \(4 latent channels\) are incompatible"),
    ],
)
def test_parts_that_do_not_fit_each_other(tiny_files, tmp_path, model, message):
    unet = UNet3DConditionModel(UNetConfig.from_dict(UNET | model))
    save_checkpoint(tmp_path / "unet.safetensors", unet.state_dict())
    wrong = paths(tiny_files, unet=tmp_path / "unet.safetensors", unet_config=config(tmp_path, **model))
    with pytest.raises(UserError, match=message):
        load_pipeline(wrong, "cpu")


def test_a_released_checkpoint_with_the_config_of_another_resolution(tiny_files, tmp_path, monkeypatch):
    path = tmp_path / "unet.pt"
    path.write_bytes(b"weights")
    entry = components.REGISTRY["latentsync-1.6"]
    unet = replace(entry.model.unet, size=len(b"weights"), sha256=hashlib.sha256(b"weights").hexdigest())
    monkeypatch.setitem(components.REGISTRY, "latentsync-1.6", replace(entry, model=replace(entry.model, unet=unet)))
    with pytest.raises(UserError, match="latentsync-1.6 was trained on 512 px faces, but the config is for 64 px"):
        load_pipeline(paths(tiny_files, unet=path), "cpu")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not a JSON file"),
        ("{}", "is not a config of keys"),
        ("[1]", "is not a config of keys"),
        ('"stabilityai/sd"', "is not a config of keys"),
        ({"_class_name": "AutoencoderKL"}, "the config of AutoencoderKL, not of DDIMScheduler"),
        ({"block_out_channels": [1]}, "unknown keys block_out_channels"),
        ({"beta_schedule": "foo"}, "DDIMScheduler cannot be built"),
        ({"num_train_timesteps": "x"}, "DDIMScheduler cannot be built"),
        ({"num_train_timesteps": 0}, "num_inference_steps"),
        ({"prediction_type": "foo"}, "prediction_type must be one of"),
        ({"timestep_spacing": "foo"}, "foo is not supported"),
    ],
)
def test_scheduler_configs_that_are_not(tmp_path, capfd, content, message):
    path = tmp_path / "scheduler.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(UserError, match=message):
        load_scheduler(path)
    assert capfd.readouterr().err == ""


def test_the_published_scheduler():
    assert load_scheduler(SCHEDULER).config.beta_schedule == "scaled_linear"


@pytest.mark.parametrize("name", ["tpu", "cuda:x", "cuda:-1", ""])
def test_unknown_devices(name):
    with pytest.raises(UserError, match="device"):
        pick_device(name)


def test_devices(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert pick_device() == pick_device("auto") == pick_device("cpu") == torch.device("cpu")
    with pytest.raises(UserError, match="device 'cuda' is not available here; use cpu"):
        pick_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device() == torch.device("cuda") and pick_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(UserError, match="there are 2 CUDA devices"):
        pick_device("cuda:2")


def test_half_precision_everywhere_but_on_the_cpu():
    assert pick_dtype(torch.device("cpu")) == torch.float32
    assert pick_dtype(torch.device("cuda")) == pick_dtype(torch.device("mps")) == torch.float16
