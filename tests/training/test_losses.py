"""The sync losses: the reference's figures, limits, gradients that stay finite, mixed precision."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from latentsync.training.sync_losses import contrastive_loss, cosine_loss, pair_accuracy
from tests.conformance.seeded import seeded_input

CASE = Path(__file__).parents[1] / "conformance" / "cosine_loss.npz"
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
