"""The recipe of the embedded model, part by part: the basis, the inflated UNet, the pack, exact resume."""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from latentsync.models.patch_autoencoder import PatchAutoencoder
from latentsync.models.unet import UNet3DConditionModel
from latentsync.models.unet_config import UNetConfig
from latentsync.models.vae import LatentCodec
from latentsync.utils.errors import UserError
from recipes.embedded.basis import enlarged_basis, linear_patches, residual_basis, set_linear
from recipes.embedded.compact import compact
from recipes.embedded.denoiser import LAST_TIMESTEP
from recipes.embedded.export import fold_one_step
from recipes.embedded.inflate import inflate, inflated_config
from recipes.embedded.pack import Pack, PackWriter, decode_video, encode_face
from recipes.embedded.training import Stage
from tests.conformance.seeded import fill_, seeded_input
from tests.recipes.drawn_faces import write_pack
from tests.recipes.tiny_first_generation import linear_vae, smooth_code
from tests.tiny_model import UNET, tiny_vae


@pytest.fixture(scope="module")
def codec() -> LatentCodec:
    return LatentCodec(linear_vae(smooth_code()))


def test_the_first_channels_are_the_latents_of_half_the_size(codec: LatentCodec):
    base, bias = enlarged_basis(linear_patches(codec.vae, codec.factor), codec.scale, codec.shift)
    images = torch.tanh(seeded_input("faces", (6, 3, 128, 128)))
    weight, offset = residual_basis(images, base, 8, codec.scale)
    autoencoder = PatchAutoencoder(latent_channels=len(base) + 8)
    set_linear(autoencoder, torch.cat([base, weight]), torch.cat([bias, offset]))
    latents = autoencoder.encode(images).latent_dist.mean
    assert torch.allclose(latents[:, : len(base)], codec.encode(F.avg_pool2d(images, 2)), atol=1e-4)
    # What the new channels tell is not in the old ones.
    assert (weight @ base.T).abs().max() < 1e-4 * weight.norm() * base.norm()


def test_a_linear_encoder_is_one_convolution(codec: LatentCodec):
    pixels = torch.tanh(seeded_input("pixels", (2, 3, 64, 48)))
    patches = linear_patches(codec.vae, codec.factor)
    assert patches.weight.shape == (16, 3, 8, 8)
    expected = codec.vae.encode(pixels).latent_dist.mean
    assert torch.allclose(patches(pixels), expected, atol=2e-3) and expected.std() > 0.3


def test_a_learned_encoder_is_no_convolution():
    vae = tiny_vae()
    with pytest.raises(UserError, match="not linear"):
        linear_patches(vae, 2 ** (len(vae.config.block_out_channels) - 1))


def test_more_channels_keep_more(codec: LatentCodec):
    base, bias = enlarged_basis(linear_patches(codec.vae, codec.factor), codec.scale, codec.shift)
    images = torch.tanh(F.interpolate(seeded_input("faces", (6, 3, 32, 32)), scale_factor=4, mode="bicubic"))
    errors = []
    for channels in (4, 32):
        weight, offset = residual_basis(images, base, channels, codec.scale)
        autoencoder = PatchAutoencoder(latent_channels=len(base) + channels)
        set_linear(autoencoder, torch.cat([base, weight]), torch.cat([bias, offset]))
        errors.append(F.mse_loss(autoencoder(images), images))
    assert errors[1] < errors[0]


def test_an_inflated_unet_computes_the_same_in_the_old_channels():
    config = UNetConfig.from_dict(UNET)
    old, new = config.out_channels, config.out_channels + 5
    small = UNet3DConditionModel(config)
    nn.init.normal_(small.conv_out.weight, std=0.1)
    large = inflate(small.state_dict(), config, new)
    parts = [seeded_input(name, (1, new, 3, 8, 8)) for name in ("noisy", "masked", "reference")]
    mask = torch.ones(1, 1, 3, 8, 8)
    tokens = seeded_input("tokens", (1, 3, 4, config.cross_attention_dim))
    few = torch.cat([parts[0][:, :old], mask, parts[1][:, :old], parts[2][:, :old]], 1)
    with torch.no_grad():
        expected = small(few, 999, tokens).sample
        found = large(torch.cat([parts[0], mask, *parts[1:]], 1), 999, tokens).sample
    assert torch.allclose(found[:, :old], expected + torch.tensor(-6.0).sigmoid() * parts[2][:, :old], atol=1e-5)
    assert torch.allclose(found[:, old:], torch.tensor(2.0).sigmoid() * parts[2][:, old:], atol=1e-5)


def test_a_pack_reads_back_equal(tmp_path: Path):
    rng = np.random.default_rng(0)
    smooth = np.linspace(0, 255, 32)[:, None, None] * np.ones((32, 32, 3))
    faces = [(smooth * share).astype(np.uint8) for share in (0.5, 1.0, 0.25)]
    wave = rng.uniform(-1, 1, 2 * 640).astype(np.float32)
    writer = PackWriter()
    writer.add("still", "anna", [encode_face(faces[0])], np.array([np.nan]), None)
    writer.add("clip", "ben", [encode_face(face) for face in faces[1:]], np.array([0.1, 0.2]), wave)
    writer.write(tmp_path / "pack.safetensors", 32)
    pack = Pack(tmp_path / "pack.safetensors")
    assert [asdict(clip) for clip in pack.clips] == [asdict(clip) for clip in writer.clips]
    assert np.abs(pack.face(1).astype(int) - faces[1]).max() <= 4
    assert np.abs(pack.faces([2, 0])[0, 0].numpy().astype(int) - faces[2][..., 0]).max() <= 4
    assert np.allclose(pack.wave(pack.clips[1]), wave, atol=1e-4)
    assert pack.states(pack.clips[1]).shape == (4, 5, 384)
    assert [person for person, _ in pack.by_person()] == ["anna", "ben"]


def test_a_compact_pack_has_the_same_faces(tmp_path: Path):
    write_pack(tmp_path / "pack.safetensors")
    pack = Pack(tmp_path / "pack.safetensors")
    assert compact(pack, tmp_path / "small.safetensors") > 35
    small = Pack(tmp_path / "small.safetensors")
    assert small.clips == pack.clips and np.array_equal(small.openings, pack.openings)
    assert np.array_equal(small.wave(small.clips[0]), pack.wave(pack.clips[0]))
    assert np.abs(small.face(45).astype(int) - pack.face(45)).mean() < 3
    with pytest.raises(UserError, match="pack it again"):
        decode_video(small.tensors["video"].numpy(), len(pack.openings) + 1, pack.resolution)


def train(path: Path, steps: int) -> nn.Module:
    """A toy stage: 6 steps in all, however many runs they take."""
    torch.manual_seed(0)
    layer = nn.Linear(3, 1)
    stage = Stage(path, 3600.0, {"layer": layer}, {"layer": torch.optim.AdamW(layer.parameters(), 0.1)}, ("layer",))
    for step in stage.steps(steps):
        data = torch.randn(8, 3, generator=torch.Generator().manual_seed(step))
        stage.elapsed = 0.0  # the learning rate follows the clock; here it must not
        stage.update("layer", layer(data).square().mean())
        stage.average()
    return layer


def test_an_interrupted_stage_resumes_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("recipes.embedded.training.cosine_with_warmup", lambda progress: 1.0)
    whole = train(tmp_path / "whole.pt", 6)
    train(tmp_path / "parts.pt", 4)
    parts = train(tmp_path / "parts.pt", 2)
    assert torch.equal(whole.weight, parts.weight)
    averages = [torch.load(tmp_path / f"{name}.pt", weights_only=True)["averages"] for name in ("whole", "parts")]
    assert torch.equal(averages[0]["layer"]["weight"], averages[1]["layer"]["weight"])


def test_a_folded_unet_ignores_noise_and_timestep():
    config = inflated_config(UNetConfig.from_dict(UNET), 6)
    unet = fill_(UNet3DConditionModel(config))
    sample = seeded_input("sample", (1, 19, 3, 8, 8))
    sample[:, :6] = 0
    tokens = seeded_input("tokens", (1, 3, 4, config.cross_attention_dim))
    other = torch.cat([seeded_input("noise", (1, 6, 3, 8, 8)), sample[:, 6:]], 1)
    with torch.no_grad():
        expected = unet(sample, LAST_TIMESTEP, tokens).sample
        fold_one_step(unet)
        assert torch.allclose(unet(other, 499, tokens).sample, expected, atol=1e-5)
