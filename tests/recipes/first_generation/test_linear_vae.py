"""The hand-set autoencoder: exactly linear encoding, a decoder that starts from the patches' colors."""

import pytest
import torch
from diffusers import AutoencoderKL
from einops import rearrange

from recipes.embedded.first_generation.linear_vae import PATCH, fit_patch_code, pair_layout, set_encoder
from tests.recipes.tiny_first_generation import linear_vae

CHANNELS = 6


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    """Smooth random images (8, 3, 64, 64), which patches of few components describe well."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(8, 3, 4, 4, generator=generator) * 2 - 1
    return torch.nn.functional.interpolate(coarse, size=(64, 64), mode="bicubic").clamp(-1, 1)


@pytest.fixture(scope="module")
def code(images):
    return fit_patch_code(images, CHANNELS)


@pytest.fixture(scope="module")
def vae(code) -> AutoencoderKL:
    return linear_vae(code)


def to_patches(images: torch.Tensor) -> torch.Tensor:
    return rearrange(images, "n c (h y) (w x) -> n h w (y x c)", y=PATCH, x=PATCH)


@torch.no_grad()
def test_encoder_computes_the_patch_code(vae, code, images):
    expected = (to_patches(images) - code.mean) @ code.basis.T
    latents = vae.encode(images).latent_dist.mean
    assert (latents - rearrange(expected, "n h w c -> n c h w")).abs().max() < 2e-3
    assert expected.std() > 0.3


@torch.no_grad()
def test_encoding_is_linear_in_the_image(vae, images):
    zero = vae.encode(torch.zeros_like(images[:1])).latent_dist.mean
    whole, half = (vae.encode(factor * images[:1]).latent_dist.mean - zero for factor in (1.0, 0.5))
    assert (whole - 2 * half).abs().max() < 4e-3


@torch.no_grad()
def test_decoder_starts_from_the_colors(vae, images):
    decoded = vae.decode(vae.encode(images).latent_dist.mean).sample
    means = torch.nn.functional.avg_pool2d(images, PATCH)
    both = torch.stack([torch.nn.functional.avg_pool2d(decoded, PATCH).flatten(), means.flatten()])
    assert torch.corrcoef(both)[0, 1] > 0.9


def test_components_are_ordered_and_whitened(images):
    patches = to_patches(images).flatten(0, 2)
    plain, white = (fit_patch_code(images, CHANNELS, whitening) for whitening in (0.0, 1.0))
    deviations = ((patches - plain.mean) @ plain.basis.T).std(dim=0, correction=0)
    assert (deviations.diff() <= 0).all()
    assert torch.allclose(plain.basis @ plain.basis.T, torch.eye(CHANNELS), atol=1e-4)
    assert torch.allclose(((patches - white.mean) @ white.basis.T).std(dim=0), torch.ones(CHANNELS), atol=1e-2)


def test_more_components_keep_more_of_the_image(images):
    patches = to_patches(images)
    errors = []
    for channels in (2, 6, 12):
        code = fit_patch_code(images, channels, 0.0)
        errors.append((((patches - code.mean) @ code.basis.T @ code.basis + code.mean - patches) ** 2).mean())
    assert errors[0] > errors[1] > errors[2]


def test_pair_layout_is_balanced():
    weight, bias, used, deviation = pair_layout(width=32, groups=4, signals=5, constant=10.0)
    groups = bias.view(4, 8)
    assert torch.equal(groups.sum(dim=1), torch.zeros(4))
    assert torch.equal(weight.sum(dim=0), torch.zeros(5))
    assert deviation == pytest.approx(groups[0].std(correction=0).item())
    assert used.tolist() == [True] * 24 + [False] * 8


def test_too_many_signals_are_refused():
    with pytest.raises(ValueError, match="do not fit"):
        pair_layout(width=16, groups=4, signals=5, constant=10.0)


def test_too_narrow_an_encoder_is_refused(code):
    narrow = AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=[16, 32, 32, 64],
        latent_channels=CHANNELS,
        norm_num_groups=4,
    )
    with pytest.raises(ValueError, match="48"):
        set_encoder(narrow, code)
