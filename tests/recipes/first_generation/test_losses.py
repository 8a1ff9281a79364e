"""The optional losses: each penalizes its defect, and its gradient reduces it."""

from collections.abc import Callable
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentsync.models.patchgan import PatchDiscriminator
from latentsync.pretrained.perceptual import LPIPS
from latentsync.training.adversarial import AdversarialLoss, DiscriminatorLoss, mouths
from latentsync.training.losses import crop, region_box
from latentsync.training.sync_losses import WindowedSyncLoss, blur, half_overlapping
from recipes.embedded.first_generation.losses import FlowConsistencyLoss, IdentityLoss, TrunkEmbedding, motion_grid

pytestmark = pytest.mark.usefixtures("one_thread")

SIDE = 48


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def texture(side: int, seed: int = 0) -> Tensor:
    """(3, side, side) smooth and detailed enough to be tracked."""
    small = noise(1, 3, side // 4, side // 4, seed=seed)
    return F.interpolate(small, size=(side, side), mode="bicubic")[0].clamp(-1, 1)


def moving(frames: int = 4, step: int = 1, seed: int = 0) -> Tensor:
    """(1, frames, 3, SIDE, SIDE): a texture that moves `step` pixels a frame to the right."""
    wide = texture(SIDE + 16, seed)
    return torch.stack([wide[:, 8 : 8 + SIDE, 8 - step * t : 8 - step * t + SIDE] for t in range(frames)])[None]


def descend(loss: Callable[[Tensor], Tensor], start: Tensor, rate: float, steps: int) -> tuple[Tensor, list[float]]:
    """Gradient descent on pixels: what they become, and the values on the way."""
    pixels, values = start.clone().requires_grad_(), []
    for _ in range(steps):
        value = loss(pixels)
        (gradient,) = torch.autograd.grad(value, pixels)
        pixels = (pixels - rate * gradient).detach().requires_grad_()
        values.append(value.item())
    return pixels.detach(), values


def outside_mouth(frames: Tensor) -> Tensor:
    kept = torch.ones_like(frames)
    crop(kept, region_box("mouth", SIDE)).zero_()
    return frames * kept


# Adversarial


@pytest.fixture(scope="module")
def discriminator() -> PatchDiscriminator:
    """Trained for a moment to tell a texture from gray."""
    torch.manual_seed(0)
    net = PatchDiscriminator(8, 1)
    loss, optimizer = DiscriminatorLoss(net), torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(15):
        optimizer.zero_grad()
        value = loss(torch.zeros(1, 2, 3, SIDE, SIDE), moving(2))
        value.backward()
        optimizer.step()
    assert value < 0.5  # starts at 2; at most 0.01 over 4 seeds, 1 and 2 threads, SSE4.1 and AVX-512
    return net.eval()


def test_the_discriminator_starts_undecided():
    torch.manual_seed(0)
    value = DiscriminatorLoss(PatchDiscriminator(8, 1))(torch.zeros(1, 2, 3, SIDE, SIDE), moving(2))
    assert value.item() == pytest.approx(2, abs=0.3)


def test_made_mouths_learn_to_pass_for_real(discriminator):
    loss = AdversarialLoss(discriminator)
    gray, real = torch.zeros(1, 2, 3, SIDE, SIDE), moving(2)
    assert loss(gray) > loss(real)
    better, values = descend(loss, gray + 0.1 * noise(*gray.shape), 100.0, 10)
    assert values[-1] < values[0] - 0.1  # a drop of 87 to 446 over the same
    assert torch.equal(outside_mouth(better), outside_mouth(gray + 0.1 * noise(*gray.shape)))


def test_each_side_has_its_own_gradient(discriminator):
    made, real = (moving(2, seed=seed).requires_grad_() for seed in (0, 1))
    discriminator.zero_grad()
    AdversarialLoss(discriminator)(made).backward()
    assert made.grad.abs().sum() > 0
    assert all(parameter.requires_grad and parameter.grad is None for parameter in discriminator.parameters())
    made.grad = None
    DiscriminatorLoss(discriminator)(made, real).backward()
    assert made.grad is None and real.grad is None
    assert all(parameter.grad is not None for parameter in discriminator.parameters())
    discriminator.zero_grad()


def test_mouths_are_cut_out():
    assert mouths(torch.zeros(2, 3, 3, 128, 128)).shape == (6, 3, 38, 58)


# Flow


def test_flow_is_found_and_the_same_every_time():
    real = moving(step=2)
    grid = motion_grid(real)
    columns = (grid[..., 0] + 1) * SIDE / 2 - 0.5 - torch.arange(SIDE)
    assert grid.shape == (3, SIDE, SIDE, 2) and columns[:, 12:-12, 12:-12].mean().item() == pytest.approx(-2, abs=0.1)
    assert torch.equal(motion_grid(real), grid)


def test_flicker_and_a_mouth_that_stands_still_cost():
    loss, real = FlowConsistencyLoss(), moving()
    brightness = torch.tensor([0.2, -0.2, 0.2, -0.2])[None, :, None, None, None]
    still = real[:, :1].expand_as(real)
    assert loss(real, real).item() == pytest.approx(0, abs=1e-6)
    assert loss(real + 0.2, real).item() == pytest.approx(0, abs=1e-5)  # not its business: nothing changes in time
    slight, strong, motionless = (loss(made, real).item() for made in (real + brightness / 4, real + brightness, still))
    assert 0.05 < slight < strong and motionless > slight


def test_gradient_removes_flicker():
    loss, real = FlowConsistencyLoss(), moving()
    flickering = real + 0.3 * noise(1, 4, 1, 1, 1)
    calmer, values = descend(lambda made: loss(made, real), flickering, 30.0, 20)
    # 0.10 to 0.41 over 4 seeds, alike on 1 and 2 threads and three instruction sets.
    assert values[-1] < 0.5 * values[0]
    assert torch.equal(calmer[..., :8, :], flickering[..., :8, :])  # far from the mouth nothing is touched


def test_pixels_without_matching_flow_do_not_count():
    loss = FlowConsistencyLoss()
    counted = []
    for real in (moving(2), torch.stack([moving(1)[:, 0], texture(SIDE, seed=9)[None]], dim=1)):  # the second: a cut
        made = real + torch.tensor([0, 0.5])[None, :, None, None, None]
        value = loss(made.requires_grad_(), real)
        value.backward()
        assert value.item() == pytest.approx(0.5, abs=0.02)
        share = (crop(made.grad, region_box("mouth", SIDE)).abs().amax(dim=(0, 1, 2)) > 1e-4).float().mean()
        counted.append(share.item())
    assert counted[0] > 0.95 and counted[1] < 0.7


def test_a_batch_is_the_mean_of_its_clips():
    loss, real = FlowConsistencyLoss(), torch.cat([moving(), moving(step=2, seed=1)])
    made = real + 0.1 * noise(*real.shape)
    clips = [loss(made[i : i + 1], real[i : i + 1]) for i in range(2)]
    torch.testing.assert_close(loss(made, real), torch.stack(clips).mean())


def test_a_single_frame_is_reported():
    with pytest.raises(ValueError, match="at least 2"):
        FlowConsistencyLoss()(moving(1), moving(1))


@pytest.mark.parametrize("kind", ["adversarial", "discriminator", "flow"])
def test_losses_on_frames_work_in_half_precision(kind):
    torch.manual_seed(0)
    net = PatchDiscriminator(4, 1)
    loss = {"adversarial": AdversarialLoss(net), "discriminator": DiscriminatorLoss(net), "flow": FlowConsistencyLoss()}
    made = moving(2).bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        value = loss[kind](made, moving(2, seed=1))
    value.backward()
    assert value.dtype == torch.float32 and value.isfinite()


# Multi-scale sync


class Loudness(nn.Module):
    """A SyncNet of sorts: brightness against loudness, frame by frame."""

    def __init__(self, columns: Fraction):
        super().__init__()
        self.columns, self.seen = columns, []

    def forward(self, images: Tensor, audio: Tensor) -> tuple[Tensor, Tensor]:
        self.seen.append((tuple(images.shape), tuple(audio.shape)))
        brightness = images.unflatten(1, (-1, 3)).mean(dim=(2, 3, 4))
        loudness = F.adaptive_avg_pool1d(audio.flatten(1, -2), brightness.shape[1]).mean(dim=1)
        return F.normalize(brightness.exp(), dim=1), F.normalize(loudness.exp(), dim=1)


def sync_case(columns: Fraction = Fraction(2)) -> tuple[Tensor, Tensor]:
    """Images of 8 frames whose brightness follows the loudness of the audio, and the audio (1, 1, 5, 16)."""
    loudness = torch.tensor([0.0, 1, 2, 0, -2, 0, 2, 1])
    images = loudness.repeat_interleave(3)[None, :, None, None].expand(1, 24, 8, 8)
    return images.clone(), loudness.repeat_interleave(2).expand(1, 1, 5, 16).clone()


def test_out_of_sync_costs_and_the_gradient_mends_it():
    loss = WindowedSyncLoss(Loudness(Fraction(2)), 4, Fraction(2), scales=(1, 2, 4))
    images, audio = sync_case()
    late = images.roll(6, dims=1)
    assert loss(late, audio) > 3 * loss(images, audio)
    _, values = descend(lambda made: loss(made, audio), late, 100.0, 10)
    # 0.27 over 4 seeds, alike on 1 and 2 threads and three instruction sets.
    assert values[-1] < 0.5 * values[0]


def test_every_window_is_paired_with_its_own_audio():
    short, long = Loudness(Fraction(2)), Loudness(Fraction(2))
    for net, length in ((short, 4), (long, 8)):
        assert WindowedSyncLoss(net, length, Fraction(2), scales=(1, 2))(*sync_case()).item() < 0.02
    assert len(short.seen) == 3 * 2 and len(long.seen) == 2
    assert set(short.seen) == {((1, 12, 8, 8), (1, 1, 5, 8))} and long.seen[0] == ((1, 24, 8, 8), (1, 1, 5, 16))


def test_mel_windows_have_the_width_that_syncnets_take():
    net = Loudness(Fraction(80, 25))
    images = torch.zeros(1, 25 * 3, 4, 4)
    for length in (16, 25):
        WindowedSyncLoss(net, length, Fraction(80, 25))(images, torch.zeros(1, 1, 80, 80))
    assert [audio[-1] for _, audio in net.seen] == [52, 52, 52, 80]


def test_windows_cover_the_run():
    assert (
        half_overlapping(16, 16) == [0]
        and half_overlapping(16, 8) == [0, 4, 8]
        and half_overlapping(16, 5) == [0, 2, 4, 6, 8, 10, 11]
    )
    assert half_overlapping(3, 5) == []
    with pytest.raises(ValueError, match="2 frames are fewer than"):
        WindowedSyncLoss(Loudness(Fraction(2)), 4, Fraction(80, 25))(torch.zeros(1, 6, 4, 4), torch.zeros(1, 1, 80, 7))


def test_coarse_images_keep_shape_and_lose_detail():
    fine = noise(1, 3, 16, 16)
    coarse = blur(fine, 4)
    assert coarse.shape == fine.shape and coarse.std() < 0.4 * fine.std()
    assert blur(fine, 1) is fine


# Identity


@pytest.fixture(scope="module")
def identity() -> IdentityLoss:
    return IdentityLoss(TrunkEmbedding(LPIPS(random_trunk=True)))


def test_another_face_costs_more_than_the_same_one_moved(identity):
    wide, other = texture(40), 0.3 * texture(32, seed=1) + 0.5
    real, moved = wide[None, None, :, :32, :32], wide[None, None, :, 4:36, :32]
    assert identity(real, real).item() == pytest.approx(0, abs=1e-5)
    assert identity(other[None, None], real) > 2 * identity(moved, real) > 0


def test_gradient_brings_the_face_closer(identity):
    real, made = texture(32)[None, None], 0.3 * texture(32, seed=1)[None, None] + 0.5
    _, values = descend(lambda frames: identity(frames, real), made, 500.0, 5)
    # 0.41 to 0.50 over 4 seeds, alike on 1 and 2 threads and three instruction sets.
    assert values[-1] < 0.8 * values[0]
    real.requires_grad_()
    identity(made.requires_grad_(), real).backward()
    assert real.grad is None
