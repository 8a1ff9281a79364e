"""The distillation at tiny size: samples, the student's own trajectory, training, resuming, and the result in use."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from latentsync.checkpoints.loading import load_state_dict
from latentsync.config.unet import load_unet_config
from latentsync.data.sampler import SampleId, collate
from latentsync.loading import ModelPaths, load_pipeline
from latentsync.models.unet import UNet3DConditionModel
from latentsync.models.unet_config import UNetConfig
from latentsync.pipelines import presets
from latentsync.pipelines.denoise import denoise_latents
from latentsync.training.losses import LossNetworks
from latentsync.utils.errors import UserError
from recipes.distill import teacher, train
from recipes.distill.samples import TeacherSamples, sample_paths
from recipes.distill.task import DistillTask
from tests.tiny_model import PROJECT_ROOT, RESOLUTION, UNET, TinyFiles
from tests.training.tiny_unet import FRAMES, TinyPerceptual, frozen_components, tiny_sync, write_clips

pytestmark = pytest.mark.usefixtures("one_thread", "no_charts")

STEPS, HELD_OUT, SAMPLES = 2, 2, 6
CONFIGS = sorted((PROJECT_ROOT / "recipes" / "distill" / "configs").glob("*.yaml"))


def write_config(folder: Path, unet: Path, **run) -> Path:
    """A config of the tiny model; `run` in its section of that name."""
    sections = {
        "base": str(PROJECT_ROOT / "configs/unet/debug.yaml"),
        "model": UNET,
        "data": {
            "train_output_dir": str(folder / "out"),
            "train_fileslist": str(folder / "train.txt"),
            "resolution": RESOLUTION,
            "num_frames": FRAMES,
            "batch_size": 2,
            "num_workers": 0,
            "val_video_path": "",
        },
        "recipe": {
            "name": "recipes.distill",
            "samples_dir": str(folder / "samples"),
            "samples": SAMPLES,
            "held_out": HELD_OUT,
            "teacher_steps": 4,
            "teacher_guidance_scale": 2.0,
        },
        "ckpt": {"resume_ckpt_path": str(unet), "save_ckpt_steps": 12},
        "run": {
            "few_steps": True,
            "inference_steps": STEPS,
            "guidance_scale": 1.0,
            "pixel_space_supervise": False,
            "use_syncnet": False,
            "enable_gradient_checkpointing": False,
            "max_train_steps": 4,
            **run,
        },
        "optimizer": {"lr": 2e-3},
    }
    path = folder / "distill.yaml"
    path.write_text(yaml.safe_dump(sections))
    return path


def words(config: Path, files: TinyFiles) -> list[str]:
    places = {"vae_path": files.vae, "whisper_path": files.whisper, "scheduler_config_path": files.scheduler_config}
    return [f"--unet_config_path={config}", *(f"--{name}={path}" for name, path in places.items())]


@pytest.fixture(scope="module")
def made(tiny_files: TinyFiles, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with clips and the teacher's results."""
    folder = tmp_path_factory.mktemp("distill")
    write_clips(folder)
    assert teacher.main(words(write_config(folder, tiny_files.unet), tiny_files)) == 0
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return shutil.copytree(made, tmp_path / "distill", copy_function=shutil.copy2)


def make_task(folder: Path, files: TinyFiles, held_out: TeacherSamples | None = None, **run) -> DistillTask:
    config = load_unet_config(write_config(folder, files.unet, **run), UNetConfig)
    return DistillTask(config, frozen_components(files), LossNetworks(), held_out=held_out)


def read(folder: Path, count: int = 2) -> dict:
    """A batch of the first samples."""
    samples = TeacherSamples(sorted((folder / "samples").glob("*.safetensors")))
    return collate([samples[SampleId(index, index)] for index in range(count)])


def test_the_same_command_makes_missing_samples_again(folder: Path, tiny_files: TinyFiles):
    config = write_config(folder, tiny_files.unet)
    paths = sample_paths(load_unet_config(config, UNetConfig))
    assert len(paths) == SAMPLES and all(path.is_file() for path in paths)
    before = [load_file(path) for path in paths]
    assert not torch.equal(before[0]["noise"], before[1]["noise"])
    times = [path.stat().st_mtime_ns for path in paths]
    paths[3].unlink()
    with pytest.raises(UserError, match="1 of 6 samples are missing"):
        train.train(train.parse_options(words(config, tiny_files)))
    assert teacher.main(words(config, tiny_files)) == 0
    assert [path.stat().st_mtime_ns for path in paths[:3]] == times[:3]
    again = load_file(paths[3])
    assert again.keys() == before[3].keys()
    # It was made in a batch of two before, so that it is equal up to rounding.
    assert all((again[name].float() - before[3][name].float()).abs().max() < 0.02 for name in again)


def test_samples_of_other_settings_are_refused(folder: Path, tiny_files: TinyFiles):
    config = write_config(folder, tiny_files.unet, seed=5)
    with pytest.raises(UserError, match="was made with seed 1247"):
        teacher.run(train.parse_options(words(config, tiny_files)))


def test_the_student_is_trained_on_its_own_trajectory(folder: Path, tiny_files: TinyFiles):
    task = make_task(folder, tiny_files, inference_steps=4)
    batch = read(folder)
    _, masked, reference = task._latents(batch)
    seen = [batch["noise"].expand_as(masked)]
    denoise_latents(
        *(task.model, task.scheduler, batch["noise"], task.mask, masked, reference, batch["audio"], 4, 1.0),
        on_step=lambda index, timestep, latents: seen.append(latents),
    )
    assert task.scheduler.timesteps.tolist() == [999, 749, 499, 249]
    for stages in ([0, 0], [2, 1], [3, 0]):
        reached = task._student_latents(task.model, batch, torch.tensor(stages))
        for row, stage in enumerate(stages):
            torch.testing.assert_close(reached[row], seen[stage][row])


def test_a_student_equal_to_the_teacher_has_no_loss(folder: Path, tiny_files: TinyFiles):
    task = make_task(folder, tiny_files, inference_steps=1)
    batch = read(folder)
    _, masked, reference = task._latents(batch)
    inputs = (batch["noise"], task.mask, masked, reference, batch["audio"])
    own = denoise_latents(task.model, task.scheduler, *inputs, 1, 1.0)
    losses = task.step(task.model, {**batch, "latents": own.transpose(1, 2)}, 0)
    assert losses["recon"] < 1e-6 * task.step(task.model, batch, 0)["recon"]


def test_every_loss_reaches_the_student(folder: Path, tiny_files: TinyFiles, monkeypatch: pytest.MonkeyPatch):
    from latentsync.models.patchgan import PatchDiscriminator
    from recipes.distill import recipe

    monkeypatch.setattr(recipe, "build_discriminator", lambda config: PatchDiscriminator(8, halvings=1))
    run = {"pixel_space_supervise": True, "use_syncnet": True, "decode_region": "mouth", "trepa_loss_weight": 0}
    config = load_unet_config(write_config(folder, tiny_files.unet, **run), UNetConfig)
    config = replace(config, recipe=replace(config.recipe, adversarial_loss_weight=0.1))
    networks = LossNetworks(TinyPerceptual(), None, [tiny_sync()])
    task = DistillTask(config, frozen_components(tiny_files), networks)
    losses = task.step(task.model, read(folder), 0)
    assert set(losses) == {"loss", "recon", "perceptual", "sync", "adversarial", "discriminator_loss", "mouth_mse"}
    for name in ("recon", "perceptual", "sync", "adversarial"):
        [gradient] = torch.autograd.grad(losses[name], task.model.conv_out.weight, retain_graph=True)
        assert gradient.abs().sum() > 0


@pytest.mark.parametrize("rank", [0, 8])
def test_training_approaches_the_teacher_and_resumes_exactly(folder: Path, tiny_files: TinyFiles, rank: int):
    lora = {"lora_rank": rank, "lora_alpha": 8.0, "lora_target": ["to_q", "to_k", "to_v", "to_out.0", "ff"]}
    run = {"max_train_steps": 24, **lora}
    config = write_config(folder, tiny_files.unet, **run)
    paths = sample_paths(load_unet_config(config, UNetConfig))
    task = make_task(folder, tiny_files, held_out=TeacherSamples(paths[:HELD_OUT]), **run)
    before = sum(task.teacher_distance(task.model.eval(), index) for index in range(HELD_OUT)) / HELD_OUT
    whole = train.train(train.parse_options(words(config, tiny_files)))
    rows = (folder / "out" / "validation.csv").read_text().splitlines()
    column = rows[0].split(",").index("teacher_distance")
    after = float(rows[-1].split(",")[column])
    # 0.65 to 0.75 over 5 seeds, 0.86 to 0.93 with an adapter of so few steps; 1 without learning.
    assert after < (0.97 if rank else 0.9) * before

    shutil.move(folder / "out", folder / "whole")
    for steps in (7, 24):
        config = write_config(folder, tiny_files.unet, **{**run, "max_train_steps": steps})
        resumed = train.train(train.parse_options(words(config, tiny_files)))
    expected, found = (load_state_dict(path) for path in (folder / "whole" / "checkpoints" / whole.name, resumed))
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def speak(pipeline, **options) -> torch.Tensor:
    faces = np.random.default_rng(0).integers(0, 255, (FRAMES, RESOLUTION, RESOLUTION, 3), np.uint8)
    tokens = torch.randn(FRAMES, 30, 32, generator=torch.Generator().manual_seed(0))
    return pipeline.speak(faces, tokens, num_frames=FRAMES, **options)


def test_a_distilled_model_samples_in_its_steps(folder: Path, tiny_files: TinyFiles):
    config = write_config(folder, tiny_files.unet)
    path = train.train(train.parse_options(words(config, tiny_files)))
    files = {**vars(tiny_files), "unet": path, "unet_config": folder / "out" / "config.yaml"}
    pipeline = load_pipeline(ModelPaths(**files), "cpu")
    assert (pipeline.few_steps, pipeline.num_inference_steps, pipeline.guidance_scale) == (True, STEPS, 1.0)
    seen: list[int] = []
    faces = speak(pipeline, callback=lambda step, timestep, latents: seen.append(timestep))
    assert seen == [999, 499]
    for preset in presets.PRESETS:
        assert torch.equal(speak(pipeline, preset=preset), faces)
    assert torch.equal(speak(pipeline, inference_steps=8, guidance_scale=2.0, solver="dpm++"), faces)


def test_an_adapter_is_offered_by_a_preset(folder: Path, tiny_files: TinyFiles, monkeypatch: pytest.MonkeyPatch):
    lora = {"lora_rank": 4, "lora_alpha": 4.0, "lora_target": ["to_q", "ff"]}
    config = write_config(folder, tiny_files.unet, **lora)
    path = train.train(train.parse_options(words(config, tiny_files)))
    assert path.suffix == ".safetensors"
    plain = load_pipeline(ModelPaths(**vars(tiny_files)), "cpu")
    expected, own = speak(plain), (plain.num_inference_steps, plain.guidance_scale, plain.scheduler)

    monkeypatch.setattr(presets, "few_step_adapter", lambda model: path)
    for preset, few in (("best", False), ("realtime", True)):
        pipeline = load_pipeline(ModelPaths(**vars(tiny_files)), "cpu", preset=preset)
        assert pipeline.few_steps == few
    assert (pipeline.num_inference_steps, pipeline.guidance_scale) == (STEPS, 1.0)
    task = make_task(folder, tiny_files, **lora)
    task.model.load_state_dict(_named_as_trained(load_state_dict(path)), strict=False)
    sampled = _with_unet(pipeline, task.model.eval())
    torch.testing.assert_close(speak(pipeline), speak(sampled), atol=0.05, rtol=0)
    assert not torch.allclose(speak(pipeline), expected, atol=1)

    pipeline.unload_lora_weights()
    assert (pipeline.few_steps, pipeline.num_inference_steps, pipeline.guidance_scale) == (False, *own[:2])
    torch.testing.assert_close(speak(pipeline), expected)


def _named_as_trained(adapter: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.replace(".weight", ".default.weight"): tensor for name, tensor in adapter.items()}


def _with_unet(pipeline, unet: UNet3DConditionModel):
    other = type(pipeline)(
        *(pipeline.codec, pipeline.audio_encoder, unet, pipeline.scheduler, pipeline.resolution),
        num_inference_steps=pipeline.num_inference_steps,
        guidance_scale=pipeline.guidance_scale,
        few_steps=True,
    )
    return other


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configs(path: Path):
    config = load_unet_config(path, UNetConfig)
    assert config.run.few_steps and 1 <= config.run.inference_steps <= 4 and config.ckpt.resume_ckpt_path
    assert bool(config.run.lora_rank) == ("lora" in path.stem)


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"few_steps": False}, "set run.few_steps to true"),
        ({"guidance_scale": 1.5}, "few_steps needs guidance_scale 1"),
        ({"validation_device": "cpu"}, "run.validation_device: .*leave it empty"),
    ],
)
def test_settings_that_contradict_each_other(tmp_path: Path, tiny_files: TinyFiles, changed: dict, message: str):
    with pytest.raises(UserError, match=message):
        load_unet_config(write_config(tmp_path, tiny_files.unet, **changed), UNetConfig)
