"""Pixels and latents: scale, shift, posterior mean, and loading a folder strictly."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file

from latentsync.models.vae import LatentCodec
from latentsync.utils.errors import UserError
from tests.conformance.seeded import fill_, seeded_input
from tests.tiny_model import VAE, tiny_vae

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_vae().save_pretrained(tmp_path)
    return tmp_path


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_scale_and_shift_are_applied_here_and_undone():
    plain = LatentCodec(fill_(AutoencoderKL(**{**VAE, "scaling_factor": 1.0})))
    codec = LatentCodec(fill_(AutoencoderKL(**VAE, shift_factor=0.5)))
    pixels = torch.tanh(seeded_input("pixels", (2, 3, 64, 64)))
    assert torch.allclose(codec.encode(pixels), (plain.encode(pixels) - 0.5) * 0.2, atol=1e-5)
    latents = seeded_input("latents", (2, 4, 8, 8))
    assert torch.allclose(codec.decode(latents), plain.decode(latents / 0.2 + 0.5), atol=1e-4)


def test_encoding_takes_the_mean_of_the_posterior():
    codec = LatentCodec(tiny_vae())
    pixels = torch.tanh(seeded_input("pixels", (1, 3, 64, 64)))
    assert torch.equal(codec.encode(pixels), codec.encode(pixels))
    assert torch.equal(codec.encode(pixels), codec.vae.encode(pixels).latent_dist.mode() * 0.2)


def test_sizes_and_frozen_weights():
    codec = LatentCodec(tiny_vae())
    assert (codec.channels, codec.factor) == (4, 8)
    assert codec.encode(torch.zeros(1, 3, 64, 128)).shape == (1, 4, 8, 16)
    assert not any(parameter.requires_grad for parameter in codec.parameters())


def test_gradients_pass_to_the_latents():
    latents = torch.zeros(1, 4, 8, 8, requires_grad=True)
    LatentCodec(tiny_vae()).decode(latents).sum().backward()
    assert latents.grad.abs().max() > 0


def decoded_bytes_kept(codec: LatentCodec, latents: torch.Tensor) -> tuple[int, torch.Tensor, torch.Tensor]:
    """What a decode keeps for its gradient, the images, and the gradient of their squares."""
    latents, kept = latents.clone().requires_grad_(), []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.nbytes) or x, lambda x: x):
        images = codec.decode(latents)
    images.square().mean().backward()
    return sum(kept), images.detach(), latents.grad


def test_gradient_checkpointing_keeps_little_and_changes_nothing(monkeypatch):
    codec, latents = LatentCodec(fill_(tiny_vae())), seeded_input("latents", (3, 4, 8, 8))
    kept, images, gradient = decoded_bytes_kept(codec, latents)
    codec.enable_gradient_checkpointing()
    monkeypatch.setattr("latentsync.models.vae.CHECKPOINTED_PIXELS", 2 * 64 * 64)
    sizes = []
    codec.vae.decoder.conv_in.register_forward_hook(lambda _, given, __: sizes.append(len(given[0])))
    kept_now, images_now, gradient_now = decoded_bytes_kept(codec, latents)
    assert sizes == [2, 1, 1, 2]  # the pieces, then each once more
    assert kept_now < kept / 50
    torch.testing.assert_close(images_now, images)
    torch.testing.assert_close(gradient_now, gradient)
    with torch.no_grad():
        torch.testing.assert_close(codec.decode(latents), images)
    assert sizes[4:] == [3]


def decoded_images(codec: LatentCodec) -> list[tuple[int, ...]]:
    """Shapes of the latents that the decoder is given at once."""
    shapes: list[tuple[int, ...]] = []
    codec.vae.decoder.conv_in.register_forward_hook(lambda _, given, __: shapes.append(tuple(given[0].shape)))
    return shapes


@pytest.mark.parametrize("cells, count", [(8, 2), (64, 1)])  # 64 and 512 pixels
def test_low_memory_gives_the_same(cells, count):
    codec, latents = LatentCodec(tiny_vae()), seeded_input("latents", (2, 4, cells, cells))[:count]
    pixels = codec.decode(latents)
    encoded, shapes = codec.encode(pixels), decoded_images(codec)
    with codec.low_memory():
        torch.testing.assert_close(codec.decode(latents), pixels, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(codec.encode(pixels), encoded, atol=1e-4, rtol=1e-4)
    assert shapes == count * [(1, 4, cells, cells)]


def test_larger_images_are_decoded_in_tiles(monkeypatch):
    """Each is normalized by itself, so only the size is the same."""
    monkeypatch.setattr("latentsync.models.vae.MAX_UNTILED", 64)
    codec = LatentCodec(tiny_vae())
    shapes = decoded_images(codec)
    codec.enable_tiling()
    assert codec.decode(seeded_input("latents", (1, 4, 16, 16))).shape == (1, 3, 128, 128)
    assert len(shapes) > 1 and max(shapes) == (1, 4, 8, 8)


def test_a_saved_folder_loads_again(folder, capfd):
    codec = LatentCodec.from_pretrained(folder)
    expected = tiny_vae().state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in codec.vae.state_dict().items())
    assert codec.scale == 0.2 and codec.dtype == torch.float32
    assert LatentCodec.from_pretrained(folder, torch.float16).dtype == torch.float16
    assert capfd.readouterr().err == ""


def test_names_of_old_files(folder):
    """sd-vae-ft-mse calls the layers of its attention query, key, value and proj_attn."""
    state = load_file(folder / WEIGHTS)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = {re.sub(r"to_(q|k|v|out\.0)", lambda match: old[match[0]], name): state[name] for name in state}
    assert "encoder.mid_block.attentions.0.proj_attn.weight" in renamed
    save_file(renamed, folder / WEIGHTS)
    loaded = LatentCodec.from_pretrained(folder).vae.state_dict()
    assert loaded.keys() == state.keys() and all(torch.equal(loaded[name], state[name]) for name in state)


def test_torch_files_load_too(folder):
    torch.save(load_file(folder / WEIGHTS), folder / "diffusion_pytorch_model.bin")
    (folder / WEIGHTS).unlink()
    assert LatentCodec.from_pretrained(folder).channels == 4


def without(folder: Path, name: str) -> None:
    (folder / name).unlink()


def fewer_tensors(folder: Path) -> None:
    save_file(dict(list(load_file(folder / WEIGHTS).items())[3:]), folder / WEIGHTS)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: without(folder, "config.json"), "no autoencoder here"),
        (lambda folder: without(folder, WEIGHTS), f"{WEIGHTS}: no such checkpoint"),
        (lambda folder: (folder / WEIGHTS).write_bytes(b""), "is empty"),
        (lambda folder: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-9]), "truncated or damaged"),
        (fewer_tensors, r"does not fit the config.json beside it \(3 missing"),
        (lambda folder: edit_config(folder, layers_per_block=2), "does not fit the config.json beside it"),
        (lambda folder: edit_config(folder, latent_channels=8), "of another shape"),
        (lambda folder: edit_config(folder, color="blue"), "unknown keys color"),
        (lambda folder: edit_config(folder, norm_num_groups="x"), "AutoencoderKL cannot be built"),
        (lambda folder: edit_config(folder, down_block_types=["Foo"] * 4), "AutoencoderKL cannot be built"),
        (lambda folder: edit_config(folder, _class_name="UNet2DModel"), "the config of UNet2DModel"),
        (lambda folder: edit_config(folder, layers_per_block=10**8), "layers_per_block is 100000000; at most 64"),
        (lambda folder: edit_config(folder, norm_num_groups=2**63), "a whole number of 64 bits"),
        (lambda folder: edit_config(folder, block_out_channels=[32] * 1000), "block_out_channels has 1000 entries"),
        (lambda folder: edit_config(folder, block_out_channels=[32, 2**40]), "block_out_channels is 1099511627776"),
        (lambda folder: (folder / "config.json").write_text('{"a":' * 3000 + "1" + "}" * 3000), "nested too deeply"),
        (lambda folder: (folder / "config.json").write_text('{"a": ' + "9" * 5000 + "}"), "is not a JSON file"),
        (lambda folder: (folder / "config.json").write_text("{"), "is not a JSON file"),
        (lambda folder: (folder / "config.json").write_text("[]"), "is not a config of keys"),
        (lambda folder: (folder / "config.json").write_text('"runwayml/sd"'), "is not a config of keys"),
    ],
)
def test_folders_that_are_not_right(folder, capfd, spoil: Callable[[Path], None], message):
    spoil(folder)
    with pytest.raises(UserError, match=message):
        LatentCodec.from_pretrained(folder)
    assert capfd.readouterr().err == ""
