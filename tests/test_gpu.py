"""Tests that need a CUDA device: half precision, the loss scaler, networks and batches on one device, resuming.

`python -m pytest -m gpu`.
"""

import json
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from latentsync.faces.chunks import split_chunks
from latentsync.loading import ModelPaths, load_pipeline
from latentsync.models.patchgan import PatchDiscriminator
from latentsync.models.unet import UNet3DConditionModel
from latentsync.pipelines.crossfade import CrossFade
from latentsync.pipelines.denoise import denoise_latents
from latentsync.pipelines.memory import MAX_CHUNKS
from latentsync.training.loop import run_training
from latentsync.training.losses import LossNetworks
from latentsync.training.unet_setup import build_dataset
from latentsync.training.unet_task import UNetTask
from latentsync.whisper.audio2feature import Audio2Feature
from recipes.embedded.first_generation import recipe as recipe_module
from recipes.embedded.first_generation.recipe import Recipe
from tests.conformance.seeded import fill_, seeded_input
from tests.models.test_unet import CONFORMANCE, FULL_SIZE
from tests.pipelines.test_denoise import case, run, tokens  # noqa: F401  (fixtures)
from tests.training.test_loop import assert_equal_runs, rows
from tests.training.tiny_run import TinyTask, run_config
from tests.training.tiny_unet import (
    TinyPerceptual,
    fixed_batch,
    frozen_components,
    tiny_config,
    tiny_sync,
    tiny_trepa,
    write_clips,
)

pytestmark = pytest.mark.gpu
CUDA = torch.device("cuda")


@pytest.fixture(autouse=True)
def exact():
    """Runs of the trainer switch TF32 on."""
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("latentsync.training.report._open_tensorboard", lambda folder, step: None)
    monkeypatch.setattr("latentsync.training.report.Report.draw_chart", lambda report: None)


def distance(found: Tensor, expected: Tensor) -> float:
    """Root of the mean square error over that of what is expected."""
    found, expected = found.detach().float().cpu(), expected.detach().float().cpu()
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("name", FULL_SIZE)
def test_unet_gives_the_published_figures(name):
    with np.load(CONFORMANCE / f"{name}.npz") as stored:
        meta, expected = json.loads(str(stored["meta"])), torch.from_numpy(stored["out"])
    unet = fill_(UNet3DConditionModel.from_config(meta["config"]), meta["seed"]).eval().to(CUDA)
    sample, audio = (seeded_input(key, tuple(meta[key]), meta["seed"]).to(CUDA) for key in ("sample", "audio"))
    timesteps = torch.tensor(meta["timestep"], device=CUDA)
    with torch.no_grad():
        assert (unet(sample, timesteps, audio).sample.cpu() - expected).abs().max() < 1e-3
        for dtype, limit in ((torch.float16, 0.01), (torch.bfloat16, 0.05)):
            halved = deepcopy(unet).to(dtype)
            assert 0 < distance(halved(sample.to(dtype), timesteps, audio.to(dtype)).sample, expected) < limit


def test_denoising_gives_the_published_faces(case, tokens):  # noqa: F811
    there = {**case, "codec": deepcopy(case["codec"]).to(CUDA), "unet": deepcopy(case["unet"]).to(CUDA)}
    faces = run(there, case["pixels"][None, :16], tokens[None, :16])[0]
    assert (faces.cpu() - case["expected"][:16]).abs().max() < 0.02


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
@pytest.mark.parametrize("cached, in_turn", [(False, False), (True, False), (False, True)])
def test_a_compiled_unet_equals_the_uncompiled_one(case, cached, in_turn, mode):  # noqa: F811
    unet = deepcopy(case["unet"]).to(CUDA, memory_format=torch.channels_last)
    if cached:
        unet.enable_deepcache()
    latents = seeded_input("latents", (1, 4, 2, 8, 8), 0).to(CUDA)
    audio = seeded_input("audio", (1, 2, 30, 32), 0).to(CUDA)
    inputs = (case["scheduler"], case["noise"], torch.ones(1, 1, 1, 8, 8, device=CUDA), latents, latents, audio)
    expected = denoise_latents(unet, *inputs, 4, 1.5)
    unet.compile(mode=mode)
    for _ in range(2):  # graphs are recorded first
        assert distance(denoise_latents(unet, *inputs, 4, 1.5, guidance_in_turn=in_turn), expected) < 1e-3


@pytest.mark.parametrize("solver", ["ddim", "dpm++"])
def test_nothing_waits_for_the_device(tiny_files, solver):
    """PyTorch itself raises where the host would wait. The first chunk may: it chooses kernels."""
    pipeline = load_pipeline(ModelPaths(**vars(tiny_files)), "cuda", match_color=True)
    faces, audio = torch.randint(255, (1, 4, 64, 64, 3), dtype=torch.uint8), torch.zeros(1, 4, 30, 32)
    settings = pipeline._prepare(None, num_frames=4, inference_steps=4, guidance_scale=1.5, solver=solver)
    fade, pending = CrossFade(), []
    try:
        for chunk in split_chunks(8, 4, 2):
            pending.append(pipeline.begin(faces, audio, None, settings, fade.of([chunk])))
            torch.cuda.set_sync_debug_mode("error")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert [made.wait().shape[1] for made in pending] == [2, 2, 4]


def test_faces_in_8_bits_are_close(tiny_files):
    pytest.importorskip("torchao")
    given = np.full((2, 64, 64, 3), 90, np.uint8), torch.zeros(2, 30, 32)
    paths = ModelPaths(**vars(tiny_files))
    expected, found = (
        load_pipeline(paths, "cuda", quantize=quantize).speak(*given, inference_steps=1, guidance_scale=1.0)
        for quantize in (False, True)
    )
    assert 0 < (found - expected).abs().mean() < 10


@pytest.mark.parametrize("weights, most", [("host", 0.1), ("fp8", 10.0)])
@pytest.mark.parametrize("deepcache", [False, True])
def test_weights_in_less_memory(tiny_files, weights, most, deepcache):
    given = np.full((2, 64, 64, 3), 90, np.uint8), torch.zeros(2, 30, 32)
    options = {"inference_steps": 4, "guidance_scale": 1.5, "enable_deepcache": deepcache, "vram_efficient": True}
    faces, sizes = [], []
    for stored in ("full", weights):
        pipeline = load_pipeline(ModelPaths(**vars(tiny_files)), "cuda", weights=stored)
        pipeline.speak(*given, **options)  # the order of the layers is recorded first
        faces.append(pipeline.speak(*given, **options))
        sizes.append(sum(weight.nbytes for weight in pipeline.unet.parameters() if weight.is_cuda))
    assert (faces[0] - faces[1]).abs().mean() <= most
    assert sizes[1] < 0.7 * sizes[0]


def test_as_many_chunks_as_fit(tiny_files):
    pipeline = load_pipeline(ModelPaths(**vars(tiny_files)), "cuda")
    assert 1 <= pipeline._prepare(None, chunk_batch_size="auto").chunks_at_once <= MAX_CHUNKS
    assert all(0 < one < two for one, two in pipeline._chunk_memory.values())


def test_audio_features(tiny_files):
    wave = (0.3 * np.random.default_rng(0).standard_normal(32000)).clip(-1, 1).astype(np.float32)
    here, there = (Audio2Feature(tiny_files.whisper, device).wave2feat(wave) for device in ("cpu", CUDA))
    assert there.device.type == "cpu" and distance(there, here) < 1e-4


def with_every_loss(folder, files) -> UNetTask:
    networks = LossNetworks(TinyPerceptual(), tiny_trepa(folder), [tiny_sync()])
    run = {"pixel_space_supervise": True, "enable_gradient_checkpointing": True, "use_syncnet": True}
    recipe = Recipe(
        adversarial_loss_weight=0.1,
        flow_loss_weight=0.2,
        identity_loss_weight=0.3,
        identity_embedding="appearance",
        multi_scale_sync_loss_weight=0.4,
    )
    config = replace(tiny_config(folder, audio_dropout=0.0, **run), recipe=recipe)
    with pytest.MonkeyPatch.context() as patch:
        torch.manual_seed(0)
        patch.setattr(recipe_module, "build_discriminator", lambda config: PatchDiscriminator(8, halvings=1))
        return UNetTask(config, frozen_components(files), networks, lambda: None)


def losses_on(device: torch.device, dtype: torch.dtype, folder, files) -> dict[str, float]:
    task = with_every_loss(folder, files)
    task.place(device, dtype)
    model = task.model.to(device)
    batch = {name: value if name == "key" else value.to(device) for name, value in fixed_batch().items()}
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        losses = task.step(model, batch, 0)
    losses["loss"].backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)
    return {name: loss.item() for name, loss in losses.items()}


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-3), (torch.float16, 0.02), (torch.bfloat16, 0.1)], ids=str
)
def test_every_loss_equals_that_on_the_cpu(tmp_path, tiny_files, dtype, tolerance):
    expected = losses_on(torch.device("cpu"), torch.float32, tmp_path, tiny_files)
    found = losses_on(CUDA, dtype, tmp_path, tiny_files)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=tolerance, abs=tolerance / 10), name


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, precision):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run_training(TinyTask(dropout=0.2), run_config(whole, mixed_precision=precision))
    run_training(TinyTask(dropout=0.2), run_config(parts, mixed_precision=precision, max_train_steps=4))
    run_training(TinyTask(dropout=0.2), run_config(parts, mixed_precision=precision))
    assert_equal_runs(whole, parts)


def test_the_scaler_gives_way_when_a_gradient_overflows(tmp_path, caplog):
    class Steep(TinyTask):
        def step(self, model, batch, step):
            losses = super().step(model, batch, step)
            return {name: 1e4 * loss for name, loss in losses.items()}  # 65536 times that is more than half holds

    run_training(Steep(), run_config(tmp_path, mixed_precision="fp16"))
    assert "the gradient is not finite" in caplog.text
    assert len(rows(tmp_path)) == 6
    progress = json.loads((tmp_path / "checkpoints/step_00000006/progress.json").read_text())
    assert 0 < progress["scaler"]["scale"] < 65536


@pytest.mark.parametrize("options", [{"cache_latents": True}, {"compile": True}, {"mixed_precision": "fp16"}], ids=str)
def test_the_unet_is_trained(tmp_path, tiny_files, options):
    write_clips(tmp_path)
    config = tiny_config(tmp_path, max_train_steps=2, pixel_space_supervise=True, use_syncnet=True, **options)
    config = replace(
        config, run=replace(config.run, mixed_precision_training=True), data=replace(config.data, num_workers=2)
    )
    parts = frozen_components(tiny_files)
    networks = LossNetworks(lpips=TinyPerceptual(), sync=[tiny_sync()])
    make = lambda: build_dataset(config, parts.codec, tiny_files.vae, tiny_files.whisper, with_mel=True)  # noqa: E731
    task = UNetTask(config, parts, networks, make)
    before = deepcopy(task.model.state_dict())
    path = run_training(task, config)
    trained = torch.load(path, weights_only=True)["state_dict"]
    assert trained.keys() == before.keys()
    assert any(not torch.equal(trained[name].cpu(), before[name].cpu()) for name in before)
    assert all(tensor.isfinite().all() for tensor in trained.values())
