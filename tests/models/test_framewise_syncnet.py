"""FramewiseSyncNet: windows of a sequence, refused inputs, learning."""

import math

import pytest
import torch
import torch.nn.functional as F

from latentsync.config.schema import build
from latentsync.config.syncnet import load_syncnet_config
from latentsync.models.framewise_syncnet import FramewiseSyncNet, FramewiseSyncNetConfig
from latentsync.models.syncnets import SYNCNET_SCHEMAS, make_syncnet
from latentsync.utils.errors import UserError
from latentsync.utils.paths import PROJECT_ROOT

TRAINING_CONFIG = "recipes/embedded/first_generation/configs/syncnet_training.yaml"
TINY = {
    "frame_channels": 2,
    "frame_size": [4, 8],
    "audio_channels": 6,
    "frame_widths": [8, 8, 16],
    "feature_width": 16,
    "window_widths": [16, 16],
    "embedding_width": 12,
    "dropout": 0.0,
}


def tiny(**changes) -> FramewiseSyncNet:
    torch.manual_seed(0)
    return FramewiseSyncNet(build(FramewiseSyncNetConfig, {**TINY, **changes})).eval()


def a_run(frames: int, count: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(1)
    return torch.randn(count, 2 * frames, 4, 8, generator=rng), torch.randn(count, 6, 1, 2 * frames, generator=rng)


@torch.no_grad()
def test_windows_of_a_run_are_those_cut_out_of_it():
    net = tiny(window_stride=3)
    images, features = a_run(24)
    vision, audio = net(images, features)
    assert vision.shape == audio.shape == (2 * 3, 12)
    for clip in range(2):
        for window in range(3):
            start = 3 * window
            vision_part, audio_part = net(
                images[clip : clip + 1, 2 * start : 2 * (start + 16)],
                features[clip : clip + 1, ..., 2 * start : 2 * (start + 16)],
            )
            assert torch.allclose(vision_part[0], vision[3 * clip + window], atol=1e-5)
            assert torch.allclose(audio_part[0], audio[3 * clip + window], atol=1e-5)


@torch.no_grad()
def test_embeddings_are_unit_vectors_that_are_not_negative():
    vision, audio = tiny()(*a_run(16))
    for embeds in (vision, audio):
        assert embeds.min() >= 0
        assert torch.allclose(embeds.norm(dim=1), torch.ones(2), atol=1e-5)
    assert not torch.allclose(vision[0], vision[1], atol=1e-3)


def test_other_shapes_are_refused():
    net = tiny()
    images, features = a_run(16)
    with pytest.raises(UserError, match="16 or more frames of 2 x 4 x 8; got 30 x 4 x 8"):
        net.embed_images(images[:, 2:])
    with pytest.raises(UserError, match="got 32 x 4 x 4"):
        net.embed_images(images[..., :4])
    with pytest.raises(UserError, match="6 x 1 x 32 or more .* got 6 x 1 x 31"):
        net.embed_audio(features[..., 1:])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_frames": 4}, "num_frames must be at least 5"),
        ({"feature_width": 12}, "width 12 is not a multiple of 8"),
        ({"window_stride": 0}, "window_stride must be above 0"),
        ({"dropout": 1.0}, "dropout"),
        ({"frame_widths": [8, 8]}, "frame_widths"),
    ],
)
def test_wrong_configs_are_reported(changes, message):
    with pytest.raises(UserError, match=message):
        tiny(**changes)


def test_learns_which_audio_belongs_to_which_frames():
    """Sixteen clips of moving frames, each with audio that moves alike."""
    net = tiny().train()
    rng = torch.Generator().manual_seed(2)
    motion = torch.randn(16, 16, generator=rng).cumsum(1)
    images = (motion[:, :, None, None, None] * torch.ones(2, 4, 8)).flatten(1, 2)
    audios = motion.repeat_interleave(2, 1)[:, None, None].expand(16, 6, 1, 32)
    optimizer, losses = torch.optim.Adam(net.parameters(), 3e-3), []
    for _ in range(100):
        vision, audio = net(images, audios)
        loss = F.cross_entropy(vision @ audio.T / 0.07, torch.arange(16))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    # 0.01 to 0.75 over up to 5 seeds, 1 and 2 threads and several instruction sets; 2.7 with pairs shuffled at every
    # step, 4.2 and more at learning rate 0.
    assert min(losses[-20:]) < 0.5 * math.log(16)
    assert all(parameter.grad is not None for parameter in net.parameters())


@pytest.mark.parametrize("path", ["configs/syncnet/embedded.yaml", TRAINING_CONFIG])
def test_configs_build_it(path):
    config = load_syncnet_config(PROJECT_ROOT / path, *SYNCNET_SCHEMAS)
    net = make_syncnet(config.model)
    assert isinstance(net, FramewiseSyncNet)
    assert sum(parameter.numel() for parameter in net.parameters()) < 4e6
