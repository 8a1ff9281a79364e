"""The UNet against the reference's figures, other numbers of blocks, odd sizes, gradients."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel

from latentsync.config.unet import load_unet_config
from latentsync.models.motion_module import MotionModule, TemporalAttention
from latentsync.models.resnet import FrameGroupNorm
from latentsync.models.unet import UNet3DConditionModel
from latentsync.models.unet_config import MotionModuleConfig, UNetConfig
from latentsync.utils.errors import UserError
from tests.conformance.seeded import fill_, seeded_input

ROOT = Path(__file__).parents[2]
CONFORMANCE = ROOT / "tests" / "conformance"
# The full-size models: config file, parameters in millions.
FULL_SIZE = {"unet_stage1": ("stage1", 849.96), "unet_stage2": ("stage2", 1267.94)}
FULL_SIZE["unet_stage2_efficient"] = ("stage2_efficient", 1100.75)


def make_unet(config: UNetConfig, seed: int = 0) -> UNet3DConditionModel:
    """A UNet none of whose parameters is zero."""
    return fill_(UNet3DConditionModel(config), seed).eval()


def make_inputs(
    config: UNetConfig, batch: int = 2, frames: int = 3, size: int = 8
) -> tuple[torch.Tensor, torch.Tensor]:
    sample = seeded_input("sample", (batch, config.in_channels, frames, size, size))
    return sample, seeded_input("audio", (batch, frames, 5, config.cross_attention_dim))


@pytest.mark.parametrize("name", FULL_SIZE)
def test_forward_conformance(name):
    with np.load(CONFORMANCE / f"{name}.npz") as case:
        meta = json.loads(str(case["meta"]))
        expected, expected_null = torch.from_numpy(case["out"]), torch.from_numpy(case["out_null_audio"])
    unet = fill_(UNet3DConditionModel.from_config(meta["config"]), meta["seed"]).eval()
    sample, audio = (seeded_input(key, tuple(meta[key]), meta["seed"]) for key in ("sample", "audio"))
    timesteps = torch.tensor(meta["timestep"])
    with torch.no_grad():
        torch.testing.assert_close(unet(sample, timesteps, audio).sample, expected, atol=1e-4, rtol=0)
        torch.testing.assert_close(unet(sample, timesteps, audio * 0).sample, expected_null, atol=1e-4, rtol=0)
        torch.testing.assert_close(unet(sample, timesteps, None).sample, expected_null, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", FULL_SIZE)
def test_full_size_names_and_shapes(name):
    config_name, millions = FULL_SIZE[name]
    config = load_unet_config(ROOT / "configs" / "unet" / f"{config_name}.yaml", UNetConfig).model
    with torch.device("meta"):
        state = UNet3DConditionModel(config).state_dict()
    expected = json.loads((CONFORMANCE / "state_dicts.json").read_text())[name]
    assert {key: list(tensor.shape) for key, tensor in state.items()} == expected
    assert sum(tensor.numel() for tensor in state.values()) / 1e6 == pytest.approx(millions, abs=0.006)


def test_denoise_case_config_builds():
    with np.load(CONFORMANCE / "denoise_faces.npz") as case:
        config = json.loads(str(case["meta"]))["unet_config"]
    unet = UNet3DConditionModel.from_config(config)
    assert unet.dtype == torch.float32 and unet.device.type == "cpu" and unet.config.sample_size == 8


def test_any_number_of_blocks_channels_and_odd_sizes(tiny_config):
    one = replace(
        tiny_config,
        in_channels=25,
        out_channels=8,
        block_out_channels=(8,),
        down_block_types=("CrossAttnDownBlock3D",),
        up_block_types=("CrossAttnUpBlock3D",),
    )
    three = replace(
        tiny_config,
        block_out_channels=(8, 8, 16),
        down_block_types=("DownBlock3D", "CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D", "UpBlock3D"),
        attention_head_dim=(1, 2, 4),
        motion_module_resolutions=(2, 4),
        motion_module_mid_block=True,
    )
    for config, size in ((one, 7), (three, 10), (tiny_config, 9)):
        sample, audio = make_inputs(config, size=size)
        with torch.no_grad():
            out = make_unet(config)(sample, 10, audio).sample
        assert out.shape == (2, config.out_channels, 3, size, size) and out.isfinite().all()


def test_fresh_model_starts_at_zero_and_without_effect_of_time(tiny_config):
    sample, audio = make_inputs(tiny_config)
    unet = UNet3DConditionModel(tiny_config)
    assert unet(sample, 3, audio).sample.abs().max() == 0
    assert unet.conv_in.weight.abs().max() == 0 and unet.conv_out.weight.abs().max() == 0
    own = UNet3DConditionModel(replace(tiny_config, zero_initialize_conv_in=False))
    assert own.conv_in.weight.abs().max() > 0 and own.conv_out.weight.abs().max() == 0
    module, x = MotionModule(8, 4, MotionModuleConfig(num_attention_heads=2)), torch.randn(6, 8, 4, 4)
    assert torch.equal(module(x, 3), x)


def test_timestep_forms_agree(tiny_config):
    unet, (sample, audio) = make_unet(tiny_config), make_inputs(tiny_config)
    with torch.no_grad():
        number = unet(sample, 500, audio).sample
        for timestep in (500.0, torch.tensor(500), torch.tensor([500, 500])):
            assert torch.equal(unet(sample, timestep, audio).sample, number)
        mixed = unet(sample, torch.tensor([500, 20]), audio).sample
    assert torch.allclose(mixed[0], number[0], atol=1e-5) and not torch.allclose(mixed[1], number[1], atol=1e-3)


def test_audio_reaches_its_own_frame_alone_without_motion(tiny_config):
    config = replace(tiny_config, use_motion_module=False, use_inflated_groupnorm=True)
    unet, (sample, audio) = make_unet(config), make_inputs(config)
    changed = audio.clone()
    changed[:, 1] += 1
    with torch.no_grad():
        difference = (unet(sample, 9, changed).sample - unet(sample, 9, audio).sample).abs().amax(dim=(0, 1, 3, 4))
    assert difference[1] > 1e-3 and difference[0] < 1e-6 and difference[2] < 1e-6


def test_without_audio_layer_has_no_cross_attention(tiny_config):
    unet = make_unet(replace(tiny_config, add_audio_layer=False))
    assert not [
        name for name in unet.state_dict() if "attn2" in name or "norm2.weight" in name and "transformer" in name
    ]
    sample, audio = make_inputs(tiny_config)
    with torch.no_grad():
        assert torch.equal(unet(sample, 1, audio).sample, unet(sample, 1, None).sample)


def test_group_norm_spans_the_frames():
    norm, x = FrameGroupNorm(2, 8, 1e-5), torch.randn(6, 8, 5, 4)
    five_d = x.view(2, 3, 8, 5, 4).transpose(1, 2)
    expected = torch.nn.functional.group_norm(five_d, 2, norm.weight, norm.bias).transpose(1, 2).reshape(x.shape)
    torch.testing.assert_close(norm(x.contiguous(memory_format=torch.channels_last), 3), expected)
    per_frame = FrameGroupNorm(2, 8, 1e-5, per_frame=True)
    torch.testing.assert_close(per_frame(x, 3), torch.nn.functional.group_norm(x, 2))


def test_temporal_attention_in_parts_equals_the_whole(monkeypatch):
    attention, x = TemporalAttention(8, 2, max_len=4).eval(), torch.randn(10, 4, 8)
    whole = attention(x)
    monkeypatch.setattr("latentsync.models.motion_module.MAX_SEQUENCES", 4)
    torch.testing.assert_close(attention(x), whole)


def test_gradient_checkpointing_changes_no_gradient(tiny_config):
    unet, (sample, audio) = make_unet(tiny_config).train(), make_inputs(tiny_config)
    gradients = []
    for enabled in (False, True):
        unet.enable_gradient_checkpointing(enabled)
        unet.zero_grad()
        unet(sample, 7, audio).sample.square().mean().backward()
        gradients.append({name: parameter.grad.clone() for name, parameter in unet.named_parameters()})
    unet.disable_gradient_checkpointing()
    assert not unet.mid_block.gradient_checkpointing
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


def test_gradient_checkpointing_runs_layers_twice(tiny_config):
    unet, (sample, audio) = make_unet(tiny_config), make_inputs(tiny_config, batch=1)
    calls = []
    unet.down_blocks[0].resnets[0].register_forward_hook(lambda *_: calls.append(1))
    unet.enable_gradient_checkpointing()
    unet(sample, 7, audio).sample.sum().backward()
    assert len(calls) == 2


def test_bad_inputs_are_reported_apart(tiny_config):
    unet, (sample, audio) = make_unet(tiny_config), make_inputs(tiny_config)
    with pytest.raises(UserError, match="takes 9 input channels, got 8"):
        unet(sample[:, :8], 1, audio)
    with pytest.raises(UserError, match="of width 6, got 4; use the Whisper encoder"):
        unet(sample, 1, audio[..., :4])
    with pytest.raises(ValueError, match="do not match 2 samples of 3 frames"):
        unet(sample, 1, audio[:, :2])
    sample, audio = make_inputs(tiny_config, batch=1, frames=25, size=2)
    with pytest.raises(UserError, match="num_frames 25 exceeds the 24 frames"):
        unet(sample, 1, audio)


def test_one_frame_is_stable_diffusion(tiny_config):
    """Without motion, a single frame meets exactly diffusers' 2-D UNet: plain SD 1.5 weights need no renaming."""
    config = replace(tiny_config, use_motion_module=False)
    image_unet = UNet2DConditionModel(
        in_channels=config.in_channels,
        block_out_channels=config.block_out_channels,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=config.attention_head_dim,
        cross_attention_dim=config.cross_attention_dim,
        norm_num_groups=config.norm_num_groups,
    ).eval()
    unet = UNet3DConditionModel(config).eval()
    unet.load_state_dict(image_unet.state_dict())
    sample, audio = make_inputs(config, frames=1)
    with torch.no_grad():
        expected = image_unet(sample[:, :, 0], 400, audio[:, 0]).sample
        torch.testing.assert_close(unet(sample, 400, audio).sample[:, :, 0], expected, atol=1e-5, rtol=1e-4)


def test_half_precision_runs(tiny_config):
    unet, (sample, audio) = make_unet(tiny_config), make_inputs(tiny_config)
    with torch.no_grad():
        expected = unet(sample, 400, audio).sample
        out = unet.to(torch.bfloat16)(sample.bfloat16(), 400, audio.bfloat16()).sample
    assert out.dtype == torch.bfloat16 == unet.dtype
    assert (out.float() - expected).abs().mean() < 0.1 * expected.abs().mean()
