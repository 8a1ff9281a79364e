"""StableSyncNet against the reference's figures, other inputs, refusals, gradients."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from latentsync.config.syncnet import load_syncnet_config
from latentsync.models.stable_syncnet import StableSyncNet
from latentsync.models.syncnet_config import EncoderConfig, StableSyncNetConfig
from latentsync.utils.errors import UserError
from tests.conformance.seeded import fill_, seeded_input

ROOT = Path(__file__).parents[2]
CONFORMANCE = ROOT / "tests" / "conformance"


def encoder(**changes) -> dict:
    return {"in_channels": 6, "block_out_channels": [32, 64], "downsample_factors": [2, 2], **changes}


def tiny(audio: dict | None = None, visual: dict | None = None) -> dict:
    """Both encoders take (6, 4, 4) by default."""
    return {"audio_encoder": encoder(**audio or {}), "visual_encoder": encoder(**visual or {})}


def test_forward_conformance():
    with np.load(CONFORMANCE / "stable_syncnet.npz") as case:
        meta = json.loads(str(case["meta"]))
        vision, audio = torch.from_numpy(case["vision"]), torch.from_numpy(case["audio"])
    net = fill_(StableSyncNet(meta["config"]), meta["seed"]).double().eval()
    # The last norm has two values a group here and one group's two are nearly equal: in float32 their order of
    # summation shows up to 3e-4, so the figures are met in float64.
    inputs = (seeded_input(key, tuple(meta[key]), meta["seed"]).double() for key in ("frames", "mel"))
    with torch.no_grad():
        embeds = net(*inputs)
    for got, expected in zip(embeds, (vision, audio), strict=True):
        torch.testing.assert_close(got.float(), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["syncnet_16_pixel", "syncnet_16_pixel_attn", "syncnet_16_latent"])
def test_full_size_names_and_shapes(name):
    config = load_syncnet_config(ROOT / "configs" / "syncnet" / f"{name}.yaml", StableSyncNetConfig).model
    with torch.device("meta"):
        state = StableSyncNet(config).state_dict()
    expected = json.loads((CONFORMANCE / "state_dicts.json").read_text())[f"stable_{name}"]
    assert {key: list(tensor.shape) for key, tensor in state.items()} == expected


@pytest.mark.parametrize("name", ["syncnet_16_pixel", "syncnet_16_pixel_attn", "syncnet_16_latent", "syncnet_25_pixel"])
def test_full_size_runs(name):
    config = load_syncnet_config(ROOT / "configs" / "syncnet" / f"{name}.yaml", StableSyncNetConfig)
    with torch.device("meta"):
        net = StableSyncNet(config.model)
        frames = torch.empty(2, *config.data.visual_shape(config.model.visual_encoder.in_channels))
        mel = torch.empty(2, *config.data.audio_shape(1))
        vision, audio = net(frames, mel)
    assert vision.shape == audio.shape == (2, config.model.embedding_width)


def test_unit_vectors_gradients_and_batch_independence():
    net = fill_(StableSyncNet(tiny({"attn_blocks": [0, 1]}))).train()
    frames, mel = seeded_input("frames", (3, 6, 4, 4)), seeded_input("mel", (3, 6, 4, 4))
    vision, audio = net(frames, mel)
    assert (vision >= 0).all() and (audio >= 0).all()
    torch.testing.assert_close(vision.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(net(frames[1:2], mel[1:2])[0], vision[1:2])
    (vision * audio).sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


def test_audio_features_of_height_one():
    audio = {
        "in_channels": 1920,
        "block_out_channels": [32, 32, 32, 64, 128],
        "downsample_factors": [[1, 2]] * 5,
        "attn_blocks": [0, 0, 0, 1, 0],
    }
    visual = {
        "in_channels": 256,
        "block_out_channels": [32, 32, 64, 128],
        "downsample_factors": [[1, 2], 2, 2, 2],
        "attn_blocks": [0, 0, 1, 0],
    }
    net = StableSyncNet(tiny(audio, visual)).eval()
    vision, features = net(torch.randn(2, 256, 8, 16), torch.randn(2, 1920, 1, 32))
    assert vision.shape == features.shape == (2, 128)


def test_dropout_acts_in_training_only():
    net = fill_(StableSyncNet(tiny(visual={"dropout": 0.5})))
    frames = seeded_input("frames", (1, 6, 4, 4))
    assert torch.equal(net.eval().embed_images(frames), net.embed_images(frames))
    hidden = net.train().visual_encoder.down_blocks[0]
    assert not torch.equal(hidden(net.visual_encoder.conv_in(frames)), hidden(net.visual_encoder.conv_in(frames)))


@pytest.mark.parametrize(
    ("channels", "size", "message"),
    [
        (6, (4, 8), r"model.visual_encoder: downsample_factors \[2, 2\] must end in a 1x1 map; .*4x8 -> 2x4 -> 1x2"),
        (6, (1, 4), "got an input of 6 channels, 1x4: 1x4 -> 0x2"),
        (3, (4, 4), "in_channels is 6, got an input of 3 channels, 4x4"),
    ],
)
def test_inputs_that_do_not_fit(channels, size, message):
    net = StableSyncNet(tiny())
    with pytest.raises(UserError, match=message):
        net(torch.zeros(1, channels, *size), torch.zeros(1, 6, 4, 4))


@pytest.mark.parametrize("factor", [2, 3, (1, 2), (2, 1), (2, 3), (1, 3)])
@pytest.mark.parametrize("size", [(1, 5), (4, 6), (7, 3)])
def test_sizes_are_those_of_the_network(factor, size):
    config = EncoderConfig(in_channels=3, block_out_channels=(32, 64), downsample_factors=(1, factor))
    (before, after) = (config.map_sizes(size) + [(0, 0)])[:2]
    assert before == size
    from latentsync.models.stable_syncnet import ResnetBlock2D

    block = ResnetBlock2D(32, 32, factor, 0.0)
    if min(after) < 1:
        with pytest.raises(RuntimeError):
            block(torch.zeros(1, 32, *size))
    else:
        assert tuple(block(torch.zeros(1, 32, *size)).shape[2:]) == after


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"in_channels": 0}, "in_channels must be at least 1"),
        ({"block_out_channels": [32, 50]}, "block_out_channels 50 is not a multiple of 32"),
        ({"block_out_channels": [], "downsample_factors": []}, "block_out_channels is empty"),
        ({"block_out_channels": [32, 32]}, "the last of block_out_channels is 32: .*use at least 64"),
        ({"downsample_factors": [2]}, "downsample_factors has 1 entries, block_out_channels has 2"),
        ({"downsample_factors": [2, [2, 2, 2]]}, r"downsample_factors entry \(2, 2, 2\) is not n or \[height, width\]"),
        ({"downsample_factors": [2, 0]}, "downsample_factors entry 0 is not n"),
        ({"downsample_factors": [2, "two"]}, r"downsample_factors\[1\]: expected a whole number"),
        ({"attn_blocks": [1]}, r"attn_blocks \[1\] is not one 0 or 1 for each of the 2"),
        ({"attn_blocks": [0, 2]}, r"attn_blocks \[0, 2\] is not one 0 or 1"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\)"),
        ({"drop_out": 0.1}, "unknown key; did you mean 'dropout'"),
        ({"block_out_channels": [32, 128]}, "audio_encoder ends in 128 channels, visual_encoder in 64"),
    ],
)
def test_configs_that_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        StableSyncNet(tiny(audio=changes))


def test_centered_frames_hide_constant_features():
    config = {**tiny(), "centered_frames": 3}
    net = StableSyncNet(config).eval().double()  # norms of so few values magnify rounding errors of float32
    images, mel, person = (torch.randn(2, size, 4, 4, dtype=torch.float64) for size in (6, 6, 2))
    person, room = person.repeat(1, 3, 1, 1), torch.randn(2, 6, 4, 1, dtype=torch.float64)
    assert torch.allclose(net.embed_images(images), net.embed_images(images + person), atol=1e-5)
    assert torch.allclose(net.embed_audio(mel), net.embed_audio(mel + room), atol=1e-5)
    plain = StableSyncNet(tiny()).eval().double()
    plain.load_state_dict(net.state_dict())
    assert not torch.allclose(plain.embed_images(images), plain.embed_images(images + person), atol=1e-3)
    with pytest.raises(UserError, match="centered_frames 4 is neither 0 nor the number of frames"):
        StableSyncNet({**tiny(), "centered_frames": 4})
