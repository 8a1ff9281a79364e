"""The sync losses: the reference's figures, limits, gradients that stay finite, mixed precision."""

import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from latentsync.models.stable_syncnet import StableSyncNet
from latentsync.models.syncnet_config import StableSyncNetConfig
from latentsync.training.losses import Estimate, SyncLoss
from latentsync.training.sync_losses import SyncSupervision, contrastive_loss, cosine_loss, pair_accuracy
from tests.conformance.seeded import fill_, seeded_input

CASE = Path(__file__).parents[1] / "conformance" / "cosine_loss.npz"
COLUMNS_PER_FRAME = Fraction(80, 25)
LABELS = torch.tensor([1.0, 0, 1, 0, 1, 0])


def embeddings() -> tuple[torch.Tensor, torch.Tensor]:
    vision, audio = (F.normalize(F.relu(seeded_input(name, (6, 16))), dim=1) for name in ("v", "a"))
    return vision, audio


def test_cosine_loss_conformance():
    with np.load(CASE) as case:
        expected = torch.from_numpy(case["loss"])
    vision, audio = embeddings()
    torch.testing.assert_close(cosine_loss(vision, audio, LABELS, reduction="none"), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(cosine_loss(vision, audio, LABELS[:, None]), expected.mean())


@pytest.mark.parametrize("label", [0.0, 1.0])
@pytest.mark.parametrize("other", [[1.0, 0.0], [0.0, 1.0]])
def test_cosine_loss_and_its_gradient_are_finite_at_the_limits(label, other):
    vision = torch.tensor([[1.0, 0.0]], requires_grad=True)
    loss = cosine_loss(vision, torch.tensor([other]), torch.tensor([label]))
    loss.backward()
    assert loss.isfinite() and vision.grad.isfinite().all()


def test_losses_leave_autocast():
    vision, audio = embeddings()
    with torch.autocast("cpu", torch.bfloat16):
        loss = cosine_loss(vision.bfloat16(), audio.bfloat16(), LABELS)
        contrast = contrastive_loss(vision.bfloat16(), audio.bfloat16(), 0.07)
    assert loss.dtype == contrast.dtype == torch.float32
    torch.testing.assert_close(loss, cosine_loss(vision, audio, LABELS), atol=0.02, rtol=0)


def test_contrastive_loss_limits():
    same = F.normalize(torch.ones(8, 4), dim=1)
    assert contrastive_loss(same, same, 0.1).item() == pytest.approx(math.log(8))
    apart = torch.eye(8)
    assert contrastive_loss(apart, apart, 0.05).item() < 1e-4
    assert contrastive_loss(apart, apart.roll(1, 0), 0.05).item() > 10
    vision, audio = torch.rand(8, 4), torch.rand(8, 4)
    torch.testing.assert_close(contrastive_loss(vision, audio, 0.1), contrastive_loss(audio, vision, 0.1))


def test_excluded_pairs_are_no_negatives():
    vision = F.normalize(torch.eye(4)[[0, 0, 1, 2]], dim=1)  # the first two show the same moment
    same_moment = torch.zeros(4, 4, dtype=torch.bool)
    same_moment[:2, :2] = True
    assert contrastive_loss(vision, vision, 0.05).item() == pytest.approx(math.log(2) / 2, abs=1e-3)
    assert contrastive_loss(vision, vision, 0.05, same_moment).item() < 1e-4


def test_pair_accuracy():
    vision = torch.tensor([[1.0, 0.0]] * 4)
    audio = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    assert pair_accuracy(vision, audio, torch.tensor([[1.0], [0], [0], [0]])).item() == 0.75


def test_the_cosine_loss_of_a_broken_embedding_is_not_finite():
    """The training loop skips such a batch; an error would end the run."""
    assert cosine_loss(torch.full((2, 4), float("nan")), torch.ones(2, 4), torch.ones(2)).isnan()


def syncnet(frames: int, columns: int, factors: list) -> SyncSupervision:
    """A small StableSyncNet on the lower halves of 64 px faces and the mel, with a window of `frames`."""
    config = StableSyncNetConfig.from_dict(
        {
            "audio_encoder": {"in_channels": 1, "block_out_channels": [32, 64], "downsample_factors": factors},
            "visual_encoder": {
                "in_channels": 3 * frames,
                "block_out_channels": [32, 64],
                "downsample_factors": [[4, 8], 8],
            },
        }
    )
    pixels = {"latent_space": False, "lower_half": True, "resolution": 64, "audio_features": "mel"}
    net = fill_(StableSyncNet(config), seed=frames)
    assert columns == math.ceil(frames * COLUMNS_PER_FRAME)
    return SyncSupervision(net, num_frames=frames, num_layers=1, columns_per_frame=COLUMNS_PER_FRAME, **pixels)


def test_windows_of_5_16_and_25_frames():
    """The mean over the SyncNets of the mean over their half-overlapping windows, each computed by itself."""
    nets = {
        5: syncnet(5, 16, [[8, 4], [10, 4]]),
        16: syncnet(16, 52, [[8, 4], [10, 13]]),
        25: syncnet(25, 80, [[8, 8], [10, 10]]),
    }
    starts = {5: [*range(0, 21, 2)], 16: [0, 8, 9], 25: [0]}
    frames, mel = seeded_input("frames", (2, 25, 3, 64, 64)).clamp(-1, 1), seeded_input("mel", (2, 1, 80, 80))
    expected = []
    for length, supervision in nets.items():
        width, losses = math.ceil(length * 3.2), []
        for start in starts[length]:
            images = frames[:, start : start + length, :, 32:].flatten(1, 2)
            first = min(int(start * 3.2), 80 - width)
            vision, audio = supervision.syncnet(images, mel[..., first : first + width])
            losses.append(F.binary_cross_entropy((vision * audio).sum(1).clamp(1e-6, 1 - 1e-6), torch.ones(2)))
        expected.append(float(torch.stack(losses).mean()))
    frames.requires_grad_()
    nothing = torch.zeros(2, 4, 25, 8, 8)
    estimate = Estimate(nothing, nothing, nothing, frames, None, torch.ones(2, dtype=torch.bool), mel)
    for some in ([5], [16], [25], [5, 16, 25]):
        loss = SyncLoss([nets[length] for length in some])(estimate)
        assert float(loss.detach()) == pytest.approx(np.mean([expected[[5, 16, 25].index(n)] for n in some]), rel=1e-4)
    loss.backward()
    assert (frames.grad.abs().amax(dim=(2, 3, 4)) > 0).all()  # of every frame
    assert len({round(value, 4) for value in expected}) == 3
