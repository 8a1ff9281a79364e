"""Loading the networks of the losses: those that a config needs, and the remedy for missing ones."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from latentsync.checkpoints.loading import save_checkpoint
from latentsync.config.unet import UNetFileConfig
from latentsync.models.lora import save_lora
from latentsync.training.losses import LossNetworks
from latentsync.training.unet_setup import build_unet, load_export, load_loss_networks
from latentsync.utils.errors import UserError
from recipes.embedded.first_generation.losses import TrunkEmbedding
from recipes.embedded.first_generation.recipe import Recipe
from tests.tiny_model import RESOLUTION
from tests.training.tiny_unet import AUDIO, FRAMES, LAYERS, VISUAL, tiny_config, tiny_syncnet


def load(config: UNetFileConfig) -> LossNetworks:
    return load_loss_networks(config, LAYERS)


def with_syncnet(folder: Path, config: UNetFileConfig, latent: bool = False, weights: bool = True, **data):
    """`config` with a SyncNet config of its own, and the weights it names."""
    path = folder / "syncnet.yaml"
    sections = {
        "model": {"audio_encoder": AUDIO["mel"], "visual_encoder": VISUAL[latent]},
        "data": {"num_frames": FRAMES, "resolution": RESOLUTION, "latent_space": latent, "lower_half": not latent},
        "ckpt": {"inference_ckpt_path": str(folder / "syncnet.pt")},
    }
    path.write_text(yaml.safe_dump(sections))
    if weights:
        save_checkpoint(folder / "syncnet.pt", tiny_syncnet(latent).state_dict())
    return replace(config, data=replace(config.data, syncnet_config_path=str(path), **data))


def test_stage1_loads_nothing(tmp_path):
    assert load(tiny_config(tmp_path)) == LossNetworks()


def test_the_requested_model_is_loaded(tmp_path):
    run = {"trepa_loss_weight": 0, "perceptual_random_trunk": True}
    config = tiny_config(tmp_path, pixel_space_supervise=True, **run)
    networks = load(config)
    recipe = Recipe(adversarial_loss_weight=1.0, identity_loss_weight=1.0, identity_embedding="appearance")
    extra = recipe.extra_losses(config, networks, torch.ones(1, 1, 1, 8, 8))
    assert networks.lpips and set(extra.discriminator_losses) == {"discriminator"}
    assert isinstance(extra.terms["identity"].loss.compare.embedder, TrunkEmbedding)
    assert networks.trepa is None and not networks.sync and not networks.needs_mel


def test_an_export_is_loaded_for_inference(tmp_path):
    """The whole network, or the initial weights with the adapter merged."""
    pytest.importorskip("peft")
    config = tiny_config(tmp_path)
    whole = build_unet(config).state_dict()
    save_checkpoint(tmp_path / "unet-1.pt", whole, 1)
    loaded = load_export(config, tmp_path / "unet-1.pt")
    assert not loaded.training and all(torch.equal(whole[name], value) for name, value in loaded.state_dict().items())
    config = tiny_config(tmp_path, lora_rank=2, lora_alpha=4.0, lora_target=("to_q",))
    config = replace(config, ckpt=replace(config.ckpt, resume_ckpt_path=str(tmp_path / "unet-1.pt")))
    adapted = build_unet(config)
    state = adapted.state_dict()
    (first, *_) = [name.removesuffix(".lora_B.default.weight") for name in state if ".lora_B." in name]
    state[f"{first}.lora_B.default.weight"].fill_(1.0)
    save_lora(adapted, tmp_path / "unet-2.safetensors", state=state)
    added = 2 * state[f"{first}.lora_A.default.weight"].sum(0)  # alpha / rank times ones (O, 2) @ A
    found = load_export(config, tmp_path / "unet-2.pt").state_dict()[f"{first}.weight"]
    torch.testing.assert_close(found - whole[f"{first}.weight"], added.expand_as(found), atol=1e-6, rtol=0)


@pytest.mark.parametrize("latent", [False, True])
def test_a_syncnet_is_loaded_with_its_input_settings(tmp_path, latent):
    run = {"pixel_space_supervise": not latent, "perceptual_loss_weight": 0, "trepa_loss_weight": 0}
    networks = load(with_syncnet(tmp_path, tiny_config(tmp_path, use_syncnet=True, **run), latent))
    (sync,) = networks.sync
    assert sync.latent_space == latent and sync.channels == (4 if latent else 3)
    assert networks.needs_mel and not any(p.requires_grad for p in sync.parameters())


def test_syncnets_of_several_windows_take_the_same_audio(tmp_path):
    config = with_syncnet(tmp_path, tiny_config(tmp_path, use_syncnet=True), latent=True)
    path = config.data.syncnet_config_path
    several = replace(config, data=replace(config.data, more_syncnet_config_paths=(path,)))
    assert [sync.num_frames for sync in load(several).sync] == [FRAMES, FRAMES]
    other = yaml.safe_load(Path(path).read_text())
    other["data"]["audio_features"] = "whisper"
    other["model"]["audio_encoder"] = AUDIO["whisper"]
    other["ckpt"]["inference_ckpt_path"] = str(tmp_path / "other.pt")
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(other))
    save_checkpoint(tmp_path / "other.pt", tiny_syncnet(True, "whisper").state_dict())
    mixed = replace(config, data=replace(config.data, more_syncnet_config_paths=(str(tmp_path / "other.yaml"),)))
    with pytest.raises(UserError, match="other.yaml: takes whisper, but .* takes mel"):
        load(mixed)


# Keys of `run`, and what the message names.
MISSING = [
    ({"perceptual_loss_weight": 1, "trepa_loss_weight": 0}, "run.perceptual_loss_weight"),
    ({"perceptual_loss_weight": 0, "trepa_loss_weight": 1}, "run.trepa_loss_weight"),
]


@pytest.mark.parametrize(("run", "key"), MISSING)
def test_missing_weights_name_the_key_that_turns_the_loss_off(tmp_path, run, key):
    run = {"perceptual_loss_weight": 0, "trepa_loss_weight": 0, "pixel_space_supervise": True, **run}
    config = tiny_config(tmp_path, **run)
    names = ("perceptual_ckpt_path", "trepa_ckpt_path")
    nowhere = {name: str(tmp_path / "none.pt") for name in names}
    with pytest.raises(UserError, match=f"none.pt.*{key}"):
        load(replace(config, ckpt=replace(config.ckpt, **nowhere)))


def test_a_missing_face_recognition_network_names_the_key_that_turns_the_loss_off(tmp_path):
    config = tiny_config(tmp_path, pixel_space_supervise=True)
    config = replace(config, ckpt=replace(config.ckpt, identity_ckpt_path=str(tmp_path / "none.pt")))
    with pytest.raises(UserError, match="none.pt.*recipe.identity_loss_weight"):
        Recipe(identity_loss_weight=1.0).extra_losses(config, LossNetworks(), torch.ones(1, 1, 1, 8, 8))


def test_syncnet_that_cannot_be_used(tmp_path):
    latents = tiny_config(tmp_path, use_syncnet=True)
    with pytest.raises(UserError, match="data.syncnet_config_path is empty.*run.use_syncnet"):
        load(replace(latents, data=replace(latents.data, syncnet_config_path="")))
    with pytest.raises(UserError, match="syncnet.pt.*run.use_syncnet"):
        load(with_syncnet(tmp_path, latents, latent=True, weights=False))
    with pytest.raises(UserError, match="use_syncnet needs decoded frames.*pixel_space_supervise"):
        load(with_syncnet(tmp_path, latents))
    with pytest.raises(UserError, match="data.num_frames is 2, .* needs 4"):
        load(with_syncnet(tmp_path, latents, latent=True, num_frames=2))
