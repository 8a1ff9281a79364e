"""The UNet's task: every loss, what is frozen, samples that do not depend on their batch, stage 1 to stage 2."""

from dataclasses import replace

import pytest
import torch

from latentsync.checkpoints.loading import load_checkpoint
from latentsync.data.sampler import collate
from latentsync.loading import load_scheduler
from latentsync.models.patchgan import PatchDiscriminator
from latentsync.models.unet import UNet3DConditionModel
from latentsync.training.loop import run_training
from latentsync.training.losses import Estimate, LossNetworks
from latentsync.training.task import Share
from latentsync.training.unet_setup import FrozenComponents, build_dataset, build_unet
from latentsync.training.unet_task import UNetTask
from latentsync.utils.errors import UserError
from recipes.embedded.first_generation import recipe as recipe_module
from recipes.embedded.first_generation.losses import MotionLoss
from recipes.embedded.first_generation.recipe import Recipe
from tests.conformance.seeded import fill_
from tests.tiny_model import PROJECT_ROOT
from tests.training.tiny_unet import (
    TinyPerceptual,
    Watched,
    fixed_batch,
    frozen_components,
    short_sync,
    tiny_config,
    tiny_sync,
    tiny_trepa,
    write_clips,
)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def parts(tiny_files) -> FrozenComponents:
    return frozen_components(tiny_files)


def make_task(folder, parts, networks=None, dataset=None, recipe=None, **run) -> UNetTask:
    config = replace(tiny_config(folder, **run), recipe=recipe and Recipe(**recipe))
    return UNetTask(config, parts, networks or LossNetworks(), lambda: dataset)


def grad_step(task: UNetTask, batch: dict) -> dict[str, torch.Tensor]:
    losses = task.step(task.model, batch, 0)
    task.model.zero_grad()
    losses["loss"].backward()
    return losses


PIXELS = {"pixel_space_supervise": True, "enable_gradient_checkpointing": True}
OPTIONAL = {
    "adversarial_loss_weight": 0.1,
    "flow_loss_weight": 0.2,
    "identity_loss_weight": 0.3,
    "multi_scale_sync_loss_weight": 0.4,
}


@pytest.mark.parametrize("region", ["whole", "lower_half", "mouth"])
def test_every_loss_at_once(tmp_path, parts, region, monkeypatch):
    networks = LossNetworks(TinyPerceptual(), tiny_trepa(tmp_path), [tiny_sync()])
    monkeypatch.setattr(recipe_module, "build_discriminator", lambda config: PatchDiscriminator(8, halvings=1))
    run = {
        **PIXELS,
        "use_syncnet": True,
        "decode_region": region,
        "audio_dropout": 0.0,
    }
    recipe = {**OPTIONAL, "weigh_mouth": True, "identity_embedding": "appearance"}
    task = make_task(tmp_path, parts, networks, recipe=recipe, **run)
    losses = grad_step(task, fixed_batch())
    weights = {
        "recon": 1,
        "perceptual": 0.1,
        "trepa": 10,
        "sync": 0.05,
        "multi_scale_sync": 0.4,
        "adversarial": 0.1,
        "flow": 0.2,
        "identity": 0.3,
    }
    assert set(losses) == {"loss", *weights, "discriminator_loss", "mouth_mse"}
    assert losses["loss"].item() == pytest.approx(
        sum(weights[name] * losses[name].item() for name in weights), rel=1e-4
    )
    assert all(torch.isfinite(value) for value in losses.values())
    assert all(parameter.grad is None for parameter in parts.codec.parameters())
    assert losses["discriminator_loss"].requires_grad and set(task.discriminators) == {"discriminator"}
    losses["discriminator_loss"].backward()


@pytest.mark.parametrize("name", ["perceptual", "trepa", "sync", "flow"])
def test_each_loss_on_frames_reaches_the_unet(tmp_path, parts, name):
    networks = {
        "perceptual": lambda: LossNetworks(lpips=TinyPerceptual()),
        "trepa": lambda: LossNetworks(trepa=tiny_trepa(tmp_path)),
        "sync": lambda: LossNetworks(sync=[tiny_sync(features="whisper")]),
        "flow": LossNetworks,
    }[name]()
    run = {**PIXELS, "use_syncnet": name == "sync", "audio_dropout": 0.0}
    task = make_task(tmp_path, parts, networks, recipe={"flow_loss_weight": float(name == "flow")}, **run)
    losses = task.step(task.model, fixed_batch(), 0)
    losses[name].backward()
    assert task.model.conv_out.weight.grad.abs().sum() > 0


def test_large_frozen_networks_have_weights_of_bfloat16(tmp_path, tiny_files):
    """Autoencoder, VideoMAE and VGG16's convolutions; not the SyncNet. The losses stay close to those of float32."""

    def step(dtype: torch.dtype) -> tuple[LossNetworks, FrozenComponents, dict[str, torch.Tensor]]:
        frozen = frozen_components(tiny_files)
        networks = LossNetworks(TinyPerceptual(), tiny_trepa(tmp_path), [tiny_sync()])
        task = make_task(tmp_path, frozen, networks, **PIXELS, use_syncnet=True, audio_dropout=0.0)
        fill_(task.model)
        task.place(torch.device("cpu"), dtype)
        return networks, frozen, grad_step(task, fixed_batch())

    networks, frozen, coarse = step(torch.bfloat16)
    for module in (frozen.codec, networks.trepa, networks.lpips):
        assert {parameter.dtype for parameter in module.parameters()} == {torch.bfloat16}
    assert {parameter.dtype for parameter in networks.sync[0].syncnet.parameters()} == {torch.float32}
    _, _, exact = step(torch.float32)
    for name in ("recon", "perceptual", "trepa", "sync"):
        assert coarse[name].item() == pytest.approx(exact[name].item(), rel=0.05), name


def test_motion_loss_sees_a_still_mouth():
    real = torch.randn(1, 4, 5, 8, 8)
    still = real.mean(2, keepdim=True).expand_as(real)
    moving = 0.7 * real + 0.3 * still
    loss = MotionLoss()
    values = [loss(Estimate(real, real, made, real_latents=real)).item() for made in (real, moving, still, still + 3)]
    assert values[0] == 0 and 0 < values[1] < values[2]
    assert values[3] == pytest.approx(values[2], rel=1e-4)  # a constant error is none of motion


def test_motion_loss_needs_no_decoder(tmp_path, parts, monkeypatch):
    monkeypatch.setattr(parts.codec, "decode", lambda latents: pytest.fail("decoded"))
    task = make_task(tmp_path, parts, recipe={"motion_loss_weight": 2.0})
    losses = grad_step(task, fixed_batch(pixels=False))
    assert losses["loss"].item() == pytest.approx(losses["recon"].item() + 2 * losses["motion"].item(), rel=1e-4)


def test_some_frames_are_decoded_each_sample_by_its_key(tmp_path, parts, monkeypatch):
    decoded = []
    decode = parts.codec.decode
    monkeypatch.setattr(parts.codec, "decode", lambda latents: decoded.append(len(latents)) or decode(latents))
    run = {"pixel_space_supervise": True, "trepa_loss_weight": 0.0, "decode_frames": 2}
    task = make_task(tmp_path, parts, LossNetworks(lpips=TinyPerceptual()), **run)
    grad_step(task, fixed_batch(keys=(0, 1, 5)))
    assert sum(decoded) == 3 * 2
    assert task._decoded_frames(4, torch.tensor([0, 1, 5])).tolist() == [[0, 2], [1, 3], [1, 3]]
    with pytest.raises(UserError, match="decode_frames leaves gaps"):
        make_task(tmp_path, parts, **run | {"trepa_loss_weight": 1.0})


def test_sync_on_latents_decodes_no_pixels(tmp_path, parts, monkeypatch):
    monkeypatch.setattr(parts.codec, "decode", lambda latents: pytest.fail("decoded"))
    networks = LossNetworks(sync=[tiny_sync(latent=True)])
    task = make_task(tmp_path, parts, networks, use_syncnet=True, audio_dropout=0.0)
    batch = fixed_batch(pixels=False)
    del batch["gt_pixel_values"]
    losses = grad_step(task, batch)
    assert losses["sync"] > 0 and task.model.conv_out.weight.grad.abs().sum() > 0


def test_several_windows_of_the_sync_loss(tmp_path, parts):
    """SyncNets of 4 and of 2 frames: the loss is the mean of theirs, whatever the number of windows."""
    nets = [tiny_sync(latent=True, features="whisper"), short_sync()]
    settings = {"use_syncnet": True, "audio_dropout": 0.0}
    alone = []
    for some in (nets[:1], nets[1:], nets):
        task = make_task(tmp_path, parts, LossNetworks(sync=some), **settings)
        alone.append(grad_step(task, fixed_batch(pixels=False))["sync"].item())
        assert task.model.conv_out.weight.grad.abs().sum() > 0
    assert alone[0] != alone[1] and alone[2] == pytest.approx((alone[0] + alone[1]) / 2, rel=1e-4)


def test_stage1_needs_neither_decoder_nor_frames(tmp_path, parts, monkeypatch):
    monkeypatch.setattr(parts.codec, "decode", lambda latents: pytest.fail("decoded"))
    task = make_task(tmp_path, parts)
    assert set(grad_step(task, fixed_batch(pixels=False))) == {"loss", "recon", "mouth_mse"}
    plain = task.step(task.model, fixed_batch(), 0)
    assert plain["recon"] == plain["loss"]


def test_a_batch_of_two_is_the_mean_of_two_batches_of_one(tmp_path, parts):
    """So two processes train as one with a double batch; dropout of audio and of noise levels is drawn per sample."""
    networks = LossNetworks(lpips=TinyPerceptual(), sync=[tiny_sync()])
    task = make_task(
        tmp_path, parts, networks, **PIXELS, use_syncnet=True, audio_dropout=0.5, sync_max_timestep=600, seed=5
    )
    keys = (0, 1, 2)
    whole = grad_step(task, fixed_batch(keys=keys))
    whole_gradient = task.model.conv_out.weight.grad.clone()
    singles = []
    gradient = torch.zeros_like(whole_gradient)
    for key in keys:
        singles.append(grad_step(task, fixed_batch(keys=(key,))))
        gradient += task.model.conv_out.weight.grad / len(keys)
    for name, value in whole.items():
        assert value.item() == pytest.approx(sum(s[name].item() for s in singles) / len(keys), rel=1e-3, abs=1e-6)
    assert torch.allclose(whole_gradient, gradient, rtol=1e-3, atol=1e-5)
    assert any(s["perceptual"] == 0 for s in singles) and any(s["perceptual"] > 0 for s in singles)


def test_losses_are_zero_above_sync_max_timestep(tmp_path, parts, monkeypatch):
    monkeypatch.setattr(recipe_module, "build_discriminator", lambda config: PatchDiscriminator(8, halvings=1))
    recipe = {"adversarial_loss_weight": 1.0}
    task = make_task(tmp_path, parts, LossNetworks(TinyPerceptual()), recipe=recipe, **PIXELS, sync_max_timestep=0)
    losses = grad_step(task, fixed_batch())
    assert losses["perceptual"] == 0 and losses["adversarial"] == 0 and losses["recon"] > 0
    torch.autograd.grad(losses["discriminator_loss"], list(task.discriminators["discriminator"].parameters()))


def test_training_lowers_the_loss(tmp_path, parts):
    torch.manual_seed(0)
    networks = LossNetworks(lpips=TinyPerceptual())
    task = make_task(tmp_path, parts, networks, pixel_space_supervise=True, decode_region="mouth")
    optimizer, batch, history = torch.optim.AdamW(task.model.parameters(), lr=1e-2), fixed_batch(keys=(0,)), []
    for _ in range(60):
        history.append(grad_step(task, batch)["loss"].item())
        optimizer.step()
    # 0.08 to 0.42 over 4 seeds, 1 and 2 threads and several instruction sets; 1 where nothing is learned.
    assert min(history[-20:]) < 0.6 * history[0]


def test_modules_to_train(tmp_path):
    config = tiny_config(tmp_path, trainable_modules=("motion_modules.", "attn2."))
    trained = {name for name, parameter in build_unet(config).named_parameters() if parameter.requires_grad}
    assert trained and all("motion_modules." in name or "attn2." in name for name in trained)
    with pytest.raises(UserError, match="trainable_modules: no parameter of this UNet has 'atn2.'"):
        build_unet(tiny_config(tmp_path, trainable_modules=("motion_modules.", "atn2.")))


def test_only_the_adapter_is_trained_and_exported(tmp_path, parts):
    pytest.importorskip("peft")
    task = make_task(tmp_path, parts, lora_rank=2)
    trained = [name for name, parameter in task.model.named_parameters() if parameter.requires_grad]
    assert trained and all("lora_" in name for name in trained)
    grad_step(task, fixed_batch(pixels=False))
    task.export(task.model.state_dict(), 3, tmp_path / "unet-3.pt")
    saved = load_checkpoint(tmp_path / "unet-3.safetensors")
    assert saved.global_step == 3 and all(".lora_" in name for name in saved.state_dict)


def test_copier_starts_from_the_reference(tmp_path, parts):
    assert build_unet(tiny_config(tmp_path)).conv_out.weight.abs().sum() == 0
    copier = load_scheduler(PROJECT_ROOT / "checkpoints" / "embedded" / "scheduler_config.json")
    config = replace(tiny_config(tmp_path), recipe=Recipe(start_from_reference=True))
    config = replace(config, model=replace(config.model, block_out_channels=(64, 64), norm_num_groups=4))
    task = UNetTask(config, replace(parts, scheduler=copier), LossNetworks(), lambda: None)
    assert task.model.conv_out.weight.abs().sum() > 0


def test_validation_makes_videos_each_process_its_share(tmp_path, parts, media, shared_detector, caplog):
    config = tiny_config(tmp_path, inference_steps=1, guidance_scale=1.0)
    videos = [Watched(media / "clip.mp4", media / "voice.wav", quality) for quality in (20.0, 30.0, -1.0)]
    task = UNetTask(config, parts, LossNetworks(), lambda: None, videos[:1])
    model = task.model.eval()
    assert task.validate(model, 7, tmp_path, Share()) == {"made": [1.0], "psnr_mouth": [20.0]}
    assert (tmp_path / "step_7.mp4").is_file()
    assert task.validate(model, 7, tmp_path, Share(1, 2)) == {"psnr_mouth": [20.0]}
    task = UNetTask(config, parts, LossNetworks(), lambda: None, videos)
    assert task.validate(model, 8, tmp_path, Share(1, 3)) == {"made": [1.0], "psnr_mouth": [30.0]}
    assert [path.name for path in tmp_path.glob("step_8_*")] == ["step_8_2.mp4"]
    assert task.validate(model, 8, tmp_path, Share(5, 6)) == {} and "step 8 failed: no face in view" in caplog.text
    quiet = UNetTask(tiny_config(tmp_path), parts, LossNetworks(), lambda: None)
    assert quiet.validate(quiet.model, 7, tmp_path, Share()) == {}


@pytest.mark.parametrize(
    ("cached", "copies", "window"), [(False, 0, (2, 2)), (True, 0, (2, 2)), (True, 1, (2, 2)), (False, 0, (4, 4))]
)
def test_datasets_feed_a_step(tmp_path, parts, tiny_files, cached, copies, window):
    write_clips(tmp_path)
    with_mel = not copies
    networks = LossNetworks(lpips=TinyPerceptual(), sync=[tiny_sync()] if with_mel else [])
    config = tiny_config(tmp_path, pixel_space_supervise=True, use_syncnet=with_mel, cache_latents=cached)
    config = replace(config, data=replace(config.data, balance_people=True, audio_feat_length=window))
    config = replace(config, recipe=Recipe(augmented_copies=copies))
    dataset = build_dataset(config, parts.codec, tiny_files.vae, tiny_files.whisper, with_mel=with_mel)
    task = UNetTask(config, parts, networks, lambda: dataset)
    assert len(task.sample_weights()) == len(dataset) == 2 * (1 + copies)
    batch = collate([dataset[0], dataset[1]])
    assert "error" not in batch and ("latents" in batch) == cached
    assert batch["audio"].shape[-2] % (2 * (sum(window) + 1)) == 0  # two rows a frame and layer
    losses = grad_step(task, batch)
    assert torch.isfinite(losses["loss"])


def test_augmented_copies_are_rejected_for_mel_input(tmp_path, parts, tiny_files):
    write_clips(tmp_path)
    config = tiny_config(tmp_path, cache_latents=True)
    config = replace(config, recipe=Recipe(augmented_copies=1))
    with pytest.raises(UserError, match="takes the mel, of which there are no copies"):
        build_dataset(config, parts.codec, tiny_files.vae, tiny_files.whisper, with_mel=True)


def test_runs_share_a_cache_of_latents(tmp_path, parts, tiny_files, monkeypatch):
    write_clips(tmp_path)
    config = tiny_config(tmp_path, cache_latents=True)
    own, shared = tmp_path / "run" / "encoded", tmp_path / "shared"
    config = replace(config, data=replace(config.data, latent_cache_dir=str(shared)))
    build_dataset(config, parts.codec, tiny_files.vae, tiny_files.whisper, with_mel=False)
    entries = sorted(shared.iterdir())
    assert len(entries) == 2 and not own.exists()
    monkeypatch.setattr(parts.codec, "encode", lambda pixels: pytest.fail("encoded again"))
    other = replace(config, data=replace(config.data, train_output_dir=str(tmp_path / "another run")))
    build_dataset(other, parts.codec, tiny_files.vae, tiny_files.whisper, with_mel=False)
    assert sorted(shared.iterdir()) == entries


def test_stage1_then_stage2(tmp_path, parts, tiny_files):
    """Two runs of the trainer; the second starts from what the first exported and adds motion modules."""
    write_clips(tmp_path)
    first = tiny_config(tmp_path, max_train_steps=2, ema_decay=0.5)
    first = replace(first, model=replace(first.model, use_motion_module=False))

    def train(config, networks):
        dataset = build_dataset(config, parts.codec, tiny_files.vae, tiny_files.whisper, networks.needs_mel)
        return run_training(UNetTask(config, parts, networks, lambda: dataset), config)

    exported = train(first, LossNetworks())
    second = tiny_config(
        tmp_path, **PIXELS, max_train_steps=1, trainable_modules=("motion_modules.",), use_syncnet=True
    )
    second = replace(
        second,
        ckpt=replace(second.ckpt, resume_ckpt_path=str(exported)),
        data=replace(second.data, train_output_dir=str(tmp_path / "out2")),
    )
    result = train(second, LossNetworks(lpips=TinyPerceptual(), sync=[tiny_sync()]))
    before, after = load_checkpoint(exported), load_checkpoint(result)
    assert (before.global_step, after.global_step) == (2, 1)
    assert all(torch.equal(tensor, after.state_dict[name]) for name, tensor in before.state_dict.items())
    assert any("motion_modules." in name for name in after.state_dict)
    UNet3DConditionModel.from_pretrained(second.model, result, exact=True)
