"""UNet config files: values of the shipped ones, and errors with file and line."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from latentsync.config.audio import load_audio_config
from latentsync.config.unet import UNetFileConfig, load_unet_config
from latentsync.models.unet import UNet3DConditionModel
from latentsync.models.unet_config import UNetConfig
from latentsync.training.unet_setup import choose_trainable
from latentsync.utils.errors import UserError

CONFIGS = Path(__file__).parents[2] / "configs"
RECIPE = Path(__file__).parents[2] / "recipes/embedded/first_generation/configs"


def load(name: str) -> UNetFileConfig[UNetConfig]:
    return load_unet_config(CONFIGS / "unet" / f"{name}.yaml", UNetConfig)


def test_published_configs():
    stage1, stage2, efficient = load("stage1"), load("stage2"), load("stage2_efficient")
    assert stage1.run.trainable_modules == () and not stage1.model.use_motion_module
    assert not stage1.run.pixel_space_supervise and not stage1.run.use_syncnet
    assert stage2.run.trainable_modules == ("motion_modules.", "attentions.") and stage2.model.use_motion_module
    assert (stage2.run.trepa_loss_weight, stage2.run.perceptual_loss_weight, stage2.run.sync_loss_weight) == (
        10,
        0.1,
        0.05,
    )
    assert efficient.run.trainable_modules == ("motion_modules.", "attn2.") and efficient.run.trepa_loss_weight == 0
    assert efficient.model.motion_module_decoder_only
    for name in ("stage1", "stage2"):
        small, large = load(name), load(f"{name}_512")
        assert (small.data.resolution, large.data.resolution) == (256, 512)
        assert (small.model.sample_size * 8, large.model.sample_size * 8) == (256, 512)
        assert (small.run, small.optimizer) == (large.run, large.optimizer)
    for config in (stage1, stage2, efficient):
        assert config.optimizer.lr == 1e-5 and config.ckpt.save_ckpt_steps == 10000 and config.run.seed == 1247
        assert config.data.num_frames == 16 and config.data.audio_feat_length == (2, 2)


def test_debug_config_is_tiny():
    config = load("debug")
    assert config.model.block_out_channels == (16, 32) and config.model.use_motion_module


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONFIGS / "unet").glob("*.yaml")))
def test_every_shipped_unet_config_loads_and_builds(name):
    config = load(name)
    with torch.device("meta"):
        unet = UNet3DConditionModel(config.model)
    choose_trainable(unet, config.run.trainable_modules)
    assert any(parameter.requires_grad for parameter in unet.parameters())


def test_recipe_of_the_embedded_model():
    first, config = (load_unet_config(RECIPE / f"unet_stage{stage}.yaml", UNetConfig) for stage in (1, 4))
    assert config.run.cache_latents and config.recipe.weigh_mouth and config.recipe.silent_share == 0.35
    assert (first.run.ema_decay, config.run.ema_decay) == (0.995, 0.99)
    assert config.data.balance_people
    assert (first.data.batch_size, config.data.batch_size) == (12, 8)
    assert first.recipe.augmented_copies == config.recipe.augmented_copies == 8
    assert first.recipe.start_from_reference and not config.recipe.start_from_reference
    assert config.optimizer.adamw["betas"] == (0.9, 0.99)
    assert (config.data.resolution, config.run.inference_steps, config.run.one_step) == (128, 4, False)
    shipped = load("embedded")
    changed = {"in_channels": 289, "out_channels": 96, "reference_gate": True}
    assert shipped.model == replace(config.model, **changed) and shipped.recipe is None
    assert (shipped.data.resolution, shipped.run.inference_steps, shipped.run.one_step) == (256, 1, True)
    plain = load("stage1")
    assert plain.recipe is None and not (plain.run.cache_latents or plain.run.ema_decay)
    assert plain.run.audio_dropout == 0.1


def test_audio_and_scheduler_configs():
    audio = load_audio_config(CONFIGS / "audio.yaml")
    assert (audio.whisper.n_fft, audio.whisper.hop_size) == (400, 160)
    assert (audio.syncnet.n_fft, audio.syncnet.hop_size, audio.syncnet.fmax) == (800, 200, 7600)
    scheduler = json.loads((CONFIGS / "scheduler_config.json").read_text())
    assert (scheduler["beta_start"], scheduler["beta_end"], scheduler["steps_offset"]) == (0.00085, 0.012, 1)
    assert scheduler["set_alpha_to_one"] is False and scheduler["prediction_type"] == "epsilon"


def test_small_model_of_another_shape(tmp_path):
    (tmp_path / "embedded.yaml").write_text(
        "data: {resolution: 128, num_frames: 8}\n"
        "model:\n"
        "  sample_size: 16\n  in_channels: 25\n  out_channels: 8\n  block_out_channels: [64, 128, 192]\n"
        "  down_block_types: [DownBlock3D, CrossAttnDownBlock3D, CrossAttnDownBlock3D]\n"
        "  up_block_types: [CrossAttnUpBlock3D, CrossAttnUpBlock3D, UpBlock3D]\n"
    )
    config = load_unet_config(tmp_path / "embedded.yaml", UNetConfig)
    assert config.model.in_channels == 8 + 1 + 8 + 8 and config.data.batch_size == 1


def test_base_is_relative_and_lists_are_replaced(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "base.yaml").write_text("run: {seed: 1, trainable_modules: [a., b.]}\nmodel: {in_channels: 13}\n")
    (tmp_path / "sub" / "own.yaml").write_text("base: ../base.yaml\nrun:\n  trainable_modules: [c.]\n")
    config = load_unet_config(tmp_path / "sub" / "own.yaml", UNetConfig)
    assert config.run.seed == 1 and config.run.trainable_modules == ("c.",) and config.model.in_channels == 13


# The file's text, and what the message says.
REFUSED = [
    ("model: {}\nrun: {validation_device: cpu, validation_steps: 5}\n", "between checkpoints there is none"),
    ("model: {}\ndata:\n  batch_sze: 2\n", r"own.yaml, line 3: data.batch_sze: unknown key; did you mean 'batch_size'"),
    ("model: {}\ntraining: {}\n", r"own.yaml, line 2: training: unknown key"),
    (
        "model:\n\n  in_channels: many\n",
        r"own.yaml, line 3: model.in_channels: expected a whole number, got str 'many'",
    ),
    ("model:\n  norm_num_groups: 30\n", r"own.yaml, line 1: model: block_out_channels 320 is not divisible by"),
    (
        "model:\n  block_out_channels:\n  - 1\n  - x\n",
        r"line 2: model.block_out_channels\[1\]: expected a whole number",
    ),
    (
        "model: {}\nrecipe: {name: recipes.embedded.first_generation, flow_loss_weight: 1}\n",
        "recipe.flow_loss_weight needs decoded frames; set run.pixel_space_supervise",
    ),
    (
        "model: {}\nrecipe: {name: recipes.embedded.first_generation, multi_scale_sync_loss_weight: 1}\n",
        "needs a SyncNet; set run.use_syncnet to true",
    ),
    ("model: {}\nrecipe: {name: os}\n", "line 2: recipe.name: 'os' is not the name of a recipe"),
    ("model: {}\nrecipe: {name: recipes.gone}\n", "line 2: recipe.name: there is no recipe 'recipes.gone'"),
    ("model: {}\nrecipe: {silent_share: 1}\n", "line 2: recipe: expected a group of keys with the name"),
    (
        "model: {}\nrecipe:\n  name: recipes.embedded.first_generation\n  silent_shar: 1\n",
        "line 4: recipe.silent_shar: unknown key; did you mean 'silent_share'",
    ),
    ("model: {}\nrun: {recon_loss_weight: 0}\n", "recon_loss_weight must be above 0"),
    ("model: {}\nrun: {perceptual_loss_weight: -1}\n", "perceptual_loss_weight must be at least 0"),
    ("model: {}\nrun: {audio_dropout: 1}\n", "audio_dropout must be at least 0 and below 1"),
    ("model: {}\nrun: {ema_decay: 1}\n", "ema_decay must be at least 0"),
    ("model: {}\nrun: {stop_after_minutes: -1}\n", "stop_after_minutes must be at least 0"),
    ("model: {}\nrun: {decode_region: teeth}\n", "'teeth' is not one of 'whole', 'lower_half', 'mouth'"),
    ("model: {}\nrun: {mixed_precision: fp8}\n", "'fp8' is not one of 'auto', 'bf16', 'fp16'"),
    ("model: {}\nrun: {lora_rank: 4, trainable_modules: [attn2.]}\n", "set trainable_modules to"),
    ("model: {}\nrun: {gradient_accumulation_steps: 0}\n", "gradient_accumulation_steps must be above 0"),
    ("model: {}\noptimizer: {adam_beta2: 1}\n", "adam_beta2 must be at least 0 and below 1"),
    (
        "model: {}\nrecipe: {name: recipes.embedded.first_generation, augmented_copies: 1}\n",
        "recipe.augmented_copies needs run.cache_latents",
    ),
    ("model: {}\nrun: {cache_latents: true}\ndata: {augment: {flip: 0.5}}\n", "data.augment has no effect"),
    ("model: {}\nrun: {guidance_scale: 0.5}\n", "guidance_scale must be at least 1"),
    ("model: {}\nrun: {max_train_epochs: 0}\n", "max_train_epochs must be above 0, or -1"),
    ("model: {}\nrun: {recon_loss_weight: -1}\n", "recon_loss_weight must be at least 0"),
    ("model: {}\ndata: {resolution: 250}\n", "resolution 250 is not a multiple of 8; use 256 or 512"),
    ("model: {}\ndata: {audio_sample_rate: 44100}\n", "audio_sample_rate must be 16000"),
    ("model: {}\ndata: {audio_feat_length: [2]}\n", r"audio_feat_length \[2\] is not \[before, after\]"),
    ("model: {}\ndata: {num_frames: 0}\n", "num_frames must be above 0, got 0"),
    ("model: {use_motion_module: true}\ndata: {num_frames: 32}\n", "data.num_frames 32 exceeds the 24"),
    ("model: {}\noptimizer: {lr_scheduler: magic}\n", "'magic' is not one of 'constant'"),
    ("model: {}\noptimizer: {lr_warmup_steps: 5}\n", "use constant_with_warmup"),
    ("model: {}\nckpt: {save_ckpt_steps: 0}\n", "save_ckpt_steps must be above 0"),
    ("data: {}\n", "missing section model"),
    ("model: 3\n", "line 1: model: expected a group of keys, got int 3"),
    ("model: {}\ndata:\n  video_fps: ${nowhere}\n", "own.yaml: .*nowhere"),
    ("model: {}\nrun: [1\n", "own.yaml, line 3: is not valid YAML"),
    ("model: {}\nmodel: {}\n", "own.yaml, line 2: is not valid YAML .*duplicate"),
    ("- 1\n- 2\n", "holds a list"),
    ("42\n", "is not a config of keys and values"),
    ("hello\n", "missing section model"),
    ("base: own.yaml\n", "a file cannot be its own base"),
    ("base: [1]\n", "base must be the path of a YAML file"),
    ("base: gone.yaml\n", "gone.yaml: no such config file"),
    ("", "own.yaml: missing section model"),
    ("model: " + "[" * 3000 + "]" * 3000, "own.yaml: is nested too deeply"),
    ("model: " + "{a: " * 3000 + "1" + "}" * 3000, "own.yaml: is nested too deeply"),
    ("run: {seed: " + "9" * 5000 + "}\n", "own.yaml: Exceeds the limit"),
    ("run: {seed: 0x" + "F" * 5000 + "}\n", "own.yaml: holds a whole number of 20000 bits"),
    ("0x" + "F" * 500 + ": 1\n", "own.yaml: holds a whole number of 2000 bits"),
]


@pytest.mark.parametrize(("text", "message"), REFUSED)
def test_refused(tmp_path, text, message):
    path = tmp_path / "own.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        load_unet_config(path, UNetConfig)
    assert "\n" not in str(caught.value)


def test_mistake_in_the_base_names_the_base(tmp_path):
    (tmp_path / "base.yaml").write_text("model: {}\nrun:\n  seed: soon\n")
    (tmp_path / "own.yaml").write_text("base: base.yaml\nrun: {inference_steps: 5}\n")
    with pytest.raises(UserError, match=r"base.yaml, line 3: run.seed: expected a whole number"):
        load_unet_config(tmp_path / "own.yaml", UNetConfig)


def test_unreadable_files(tmp_path):
    with pytest.raises(UserError, match="is a directory"):
        load_unet_config(tmp_path, UNetConfig)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x80" * 9)
    with pytest.raises(UserError, match="binary.yaml"):
        load_unet_config(tmp_path / "binary.yaml", UNetConfig)
    text = (CONFIGS / "audio.yaml").read_text()
    (tmp_path / "audio.yaml").write_text(text.replace("fmax: 7600", "fmax: 9000"))
    with pytest.raises(UserError, match="audio.yaml, line 9: syncnet: fmin 55.0 and fmax 9000.0"):
        load_audio_config(tmp_path / "audio.yaml")


def test_a_file_that_aliases_blow_up_is_refused(tmp_path):
    lines = ["a0: &a0 {x: 1, y: 2}"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 30)]
    (tmp_path / "bomb.yaml").write_text("\n".join(lines))
    with pytest.raises(UserError, match="behind aliases"):
        load_unet_config(tmp_path / "bomb.yaml", UNetConfig)
    (tmp_path / "loop.yaml").write_text("a: &a [*a]\n")
    with pytest.raises(UserError):
        load_unet_config(tmp_path / "loop.yaml", UNetConfig)
