"""Variations of clips: off by default, the same in every frame, in range."""

import math

import pytest
import torch

from latentsync.config.sections import AugmentConfig
from latentsync.data.augment import Augmentation, Placement, augment, draw_augmentation
from latentsync.data.sampler import item_rng
from latentsync.utils.errors import UserError


@pytest.fixture
def frames() -> torch.Tensor:
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    return image.expand(3, -1, -1, -1)


def test_nothing_happens_by_default(frames):
    assert augment(frames, draw_augmentation(AugmentConfig(), item_rng(1, 1))) is frames


@pytest.mark.parametrize("config", [AugmentConfig(flip=1.0), AugmentConfig(color=1.0), AugmentConfig(affine=1.0)])
def test_all_frames_change_alike_and_stay_in_range(frames, config):
    changed = augment(frames, draw_augmentation(config, item_rng(1, 1)))
    assert changed.shape == frames.shape and changed.abs().max() <= 1
    assert not torch.equal(changed, frames)
    assert torch.equal(changed[0], changed[1]) and torch.equal(changed[0], changed[2])
    assert torch.equal(changed, augment(frames, draw_augmentation(config, item_rng(1, 1))))


def test_switching_one_variation_on_leaves_the_draw_of_the_others():
    flips = [draw_augmentation(AugmentConfig(flip=0.5), item_rng(1, key)).mirrored for key in range(50)]
    both = [
        draw_augmentation(AugmentConfig(flip=0.5, color=1.0, affine=1.0), item_rng(1, key)).mirrored
        for key in range(50)
    ]
    assert flips == both and 10 < sum(flips) < 40


def test_placement_turns_zooms_and_shifts_the_way_it_says():
    spot = -torch.ones(1, 3, 9, 9)
    spot[..., 4, 6] = 1  # two right of the center

    def peak(placement: Placement) -> tuple[int, int]:
        moved = augment(spot, Augmentation(placement=placement))[0, 0]
        return divmod(int(moved.argmax()), 9)

    assert peak(Placement(0.0, 1.0, (0.0, 0.0))) == (4, 6)
    assert peak(Placement(0.0, 1.0, (2 / 9, -4 / 9))) == (2, 7)
    assert peak(Placement(math.pi / 2, 1.0, (0.0, 0.0))) == (6, 4)
    assert peak(Placement(0.0, 0.5, (0.0, 0.0))) == (4, 5)


def test_strengths_out_of_range_are_refused():
    with pytest.raises(UserError, match="color must be between 0"):
        AugmentConfig(color=2.0)
