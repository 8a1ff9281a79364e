"""The patch autoencoder: diffusers' interface, a crop decodes as the whole, and `LatentCodec` loads it."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from latentsync.models.patch_autoencoder import PatchAutoencoder
from latentsync.models.vae import LatentCodec
from latentsync.utils.paths import PROJECT_ROOT
from tests.conformance.seeded import fill_, seeded_input

SMALL = {"latent_channels": 8, "decoder_widths": (16, 12, 8, 8), "decoder_blocks": (1, 1, 1, 1)}


@pytest.fixture
def autoencoder() -> PatchAutoencoder:
    return fill_(PatchAutoencoder(**SMALL))


def test_shapes(autoencoder: PatchAutoencoder):
    latents = autoencoder.encode(seeded_input("pixels", (2, 3, 64, 48))).latent_dist.mean
    assert latents.shape == (2, 8, 4, 3)
    assert autoencoder.decode(latents).sample.shape == (2, 3, 64, 48)


def test_the_encoder_is_linear(autoencoder: PatchAutoencoder):
    a, b = seeded_input("a", (1, 3, 32, 32)), seeded_input("b", (1, 3, 32, 32))
    encoded = [autoencoder.encode(x).latent_dist.mean for x in (a, b, a + b, torch.zeros_like(a))]
    assert torch.allclose(encoded[0] + encoded[1], encoded[2] + encoded[3], atol=1e-5)


def test_a_crop_decodes_as_the_whole_does(autoencoder: PatchAutoencoder):
    latents = seeded_input("latents", (1, 8, 14, 14))
    whole = autoencoder.decode(latents).sample
    crop = autoencoder.decode(latents[..., 2:, 2:]).sample
    margin = 16 * 5  # the receptive field
    assert torch.allclose(crop[..., margin:, margin:], whole[..., 32 + margin :, 32 + margin :], atol=1e-4)


def test_a_fresh_decoder_is_the_linear_part_alone():
    autoencoder = PatchAutoencoder(**SMALL)
    latents = seeded_input("latents", (1, 8, 2, 2))
    torch.testing.assert_close(autoencoder.decode(latents).sample, autoencoder.decoder.linear(latents))


def test_convolutions_in_another_type_change_little(autoencoder: PatchAutoencoder):
    latents = seeded_input("latents", (2, 8, 4, 4))
    exact = autoencoder.decode(latents).sample
    autoencoder.decoder.cast_convolutions(torch.bfloat16)
    rounded = autoencoder.decode(latents).sample
    assert rounded.dtype == torch.float32 and autoencoder.decoder.linear.weight.dtype == torch.float32
    added = (exact - autoencoder.decoder.linear(latents)).abs().max()
    assert 0 < (rounded - exact).abs().max() < 0.05 * added  # only what the convolutions add is rounded


def test_the_codec_loads_it(autoencoder: PatchAutoencoder, tmp_path: Path):
    autoencoder.save_pretrained(tmp_path)
    codec = LatentCodec.from_pretrained(tmp_path)
    pixels = torch.tanh(seeded_input("pixels", (1, 3, 64, 64)))
    assert (codec.factor, codec.channels) == (16, 8)
    assert torch.allclose(codec.encode(pixels), autoencoder.encode(pixels).latent_dist.mean, atol=1e-5)
    assert torch.allclose(codec.decode(codec.encode(pixels)), autoencoder(pixels), atol=1e-4)


def test_low_memory_gives_the_same_images(autoencoder: PatchAutoencoder):
    codec = LatentCodec(autoencoder)
    latents = seeded_input("latents", (3, 8, 2, 2))
    whole = codec.decode(latents)
    with codec.low_memory():
        assert autoencoder.use_slicing
        assert torch.allclose(codec.decode(latents), whole, atol=1e-5)
    assert not autoencoder.use_slicing


def test_it_is_built_saved_and_loaded_without_the_rest_of_diffusers(tmp_path: Path):
    code = (
        "import sys; from latentsync.models.patch_autoencoder import PatchAutoencoder;"
        "from latentsync.models.vae import LatentCodec;"
        "PatchAutoencoder(8, decoder_widths=(8, 8), decoder_blocks=(1, 1)).half().save_pretrained(sys.argv[1]);"
        "codec = LatentCodec.from_pretrained(sys.argv[1]).to('cpu');"
        "print(codec.channels, [name for name in ('transformers', 'peft', 'sympy') if sys.modules.get(name)])"
    )
    words = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=PROJECT_ROOT)
    assert done.stdout.strip() == "8 []"
