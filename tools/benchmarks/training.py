"""Speed and memory of training the full-size UNet on a GPU, with the real trainer on synthetic clips.

All networks have random weights, which affect neither time nor memory. Clips are read and decoded from disk as in any
training, so that the time spent waiting for data is realistic.
"""

import gc
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from diffusers import AutoencoderKL

from latentsync.checkpoints.loading import save_checkpoint
from latentsync.checkpoints.registry import SCHEDULER_CONFIG, resolve
from latentsync.config.syncnet import load_syncnet_config
from latentsync.config.unet import UNetFileConfig, load_unet_config
from latentsync.loading import load_scheduler
from latentsync.media.audio import load_audio
from latentsync.models.syncnets import SYNCNET_SCHEMAS, make_syncnet
from latentsync.models.unet_config import UNetConfig
from latentsync.models.vae import LatentCodec
from latentsync.pretrained.videomae import VideoMAE
from latentsync.training.distributed import make_accelerator, release
from latentsync.training.loop import Trainer
from latentsync.training.stopping import StopRequest
from latentsync.training.task import Task
from latentsync.training.unet_setup import FrozenComponents, build_dataset, load_loss_networks
from latentsync.training.unet_task import UNetTask
from latentsync.trepa.loss import VIT_G
from latentsync.utils.paths import PROJECT_ROOT
from latentsync.whisper.audio2feature import Audio2Feature
from preprocess.write import write_faces
from tools.benchmarks.full_size import VAE_LAYOUT
from tools.benchmarks.inputs import FPS, PORTRAIT, SAMPLE_RATE, SPEECH
from tools.benchmarks.report import Figure, Journal

# Of configs/unet/.
CONFIGS = ("stage2", "stage2_512", "stage2_efficient", "fine_tune_lora", "stage1", "stage1_512")
WARM_UP, STEPS = 4, 10
CLIPS, CLIP_SECONDS = 4, 4


class TimedTrainer(Trainer):
    """Runs `WARM_UP` + `STEPS` steps and logs a row after each part; saves no checkpoint."""

    def _log_and_save(self) -> None:
        if self.progress.step in (WARM_UP, WARM_UP + STEPS):
            self.report.write_row(self.progress.step)


def measure(folder: Path, names: Sequence[str] = CONFIGS, journal: Journal | None = None) -> list[Figure]:
    """Steps per second, peak memory and time spent waiting for data, for each config of `configs/unet/`."""
    if not torch.cuda.is_available():
        return [Figure("training", "full-size UNet", None, "", None, "no CUDA device")]
    journal = journal or Journal()
    return [figure for name in names for figure in journal.measure(name, partial(_measure, folder, name))]


def _measure(folder: Path, name: str) -> list[Figure]:
    weights = folder / "videomae.pt"
    if not weights.is_file():
        save_checkpoint(weights, VideoMAE(VIT_G).state_dict())
    config = make_config(folder / name, weights, name)
    what = f"{name}.yaml"
    gc.collect()  # the components of the previous run are in reference cycles
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    try:
        timings = time_run(make_task(config), config)
        return as_figures(what, config, timings, torch.cuda.max_memory_allocated())
    except torch.OutOfMemoryError:
        return [Figure("training", what, None, "", None, "the GPU has too little memory")]


def as_figures(what: str, config: UNetFileConfig, timings: Mapping[str, float], peak: int) -> list[Figure]:
    data = config.data
    side = data.resolution
    note = f"batch of {data.batch_size} x {data.num_frames} frames of {side} px, random weights, {STEPS} steps"
    return [
        Figure("training", f"{what}, speed", timings["steps_per_second"], "steps/s", None, note),
        Figure("training", f"{what}, peak GPU memory", peak / 2**30, "GiB", None, "allocated by torch"),
        Figure(
            "training",
            f"{what}, time spent waiting for data",
            100 * timings["data_wait"],
            "%",
            None,
            f"{data.num_workers} worker processes",
        ),
    ]


def time_run(task: Task, config: UNetFileConfig) -> dict[str, float]:
    """Values logged for the steps after the warm-up: losses, `steps_per_second`, `data_wait`."""
    config = replace(config, run=replace(config.run, max_train_steps=WARM_UP + STEPS, max_train_epochs=-1))
    accelerator = make_accelerator(config.run)
    try:
        with StopRequest(0.0) as stop:
            trainer = TimedTrainer(task, config, accelerator)
            trainer.run(stop)
        assert trainer.report.train is not None
        return trainer.report.train.rows[-1]
    finally:
        release(accelerator)


def make_config(folder: Path, trepa_weights: Path, name: str) -> UNetFileConfig[UNetConfig]:
    """configs/unet/`name`.yaml with clips, a random SyncNet and the output in `folder`."""
    folder.mkdir()
    config = load_unet_config(PROJECT_ROOT / "configs" / "unet" / f"{name}.yaml", UNetConfig)
    sync = PROJECT_ROOT / config.data.syncnet_config_path
    save_checkpoint(folder / "syncnet.pt", make_syncnet(load_syncnet_config(sync, *SYNCNET_SCHEMAS).model).state_dict())
    own = folder / "syncnet.yaml"
    own.write_text(f"base: {sync}\nckpt:\n  inference_ckpt_path: {folder / 'syncnet.pt'}\n", encoding="utf-8")
    data = replace(
        config.data,
        syncnet_config_path=str(own),
        train_output_dir=str(folder / "output"),
        train_fileslist=str(write_clips(folder, config.data.resolution)),
        audio_mel_cache_dir=str(folder / "mel"),
    )
    ckpt = replace(config.ckpt, resume_ckpt_path="", trepa_ckpt_path=str(trepa_weights))
    return replace(config, data=data, ckpt=ckpt, run=replace(config.run, perceptual_random_trunk=True))


def write_clips(folder: Path, resolution: int) -> Path:
    """Write clips of the demo's portrait and speech in the format of data processing; returns their file list."""
    image = cv2.cvtColor(cv2.imread(str(PORTRAIT), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    face = cv2.resize(image, (resolution, resolution), interpolation=cv2.INTER_AREA).astype(np.float32)
    wave = np.resize(load_audio(SPEECH, SAMPLE_RATE), CLIP_SECONDS * SAMPLE_RATE)
    names = [f"clip{index}.mp4" for index in range(CLIPS)]
    for index, name in enumerate(names):
        rng = np.random.default_rng(index)
        grain = rng.normal(0, 3, (CLIP_SECONDS * int(FPS), resolution, resolution, 1))
        write_faces(folder / name, (face + grain).clip(0, 255).astype(np.uint8), wave)
    listed = folder / "clips.txt"
    listed.write_text("".join(f"{name}\tsomeone\n" for name in names), encoding="utf-8")
    return listed


def make_task(config: UNetFileConfig[UNetConfig]) -> UNetTask:
    """The training task of scripts/train_unet.py; the networks are random, of full size but for the embedded model."""
    embedded = resolve("embedded")
    whisper = embedded.whisper
    if config.ckpt.base_model == embedded.name:
        codec, schedule = LatentCodec.from_pretrained(embedded.vae), embedded.scheduler_config
    else:
        codec, schedule = LatentCodec(AutoencoderKL(**VAE_LAYOUT)), SCHEDULER_CONFIG
    audio = Audio2Feature(whisper, "cpu", None, config.data.num_frames, config.data.audio_feat_length)
    components = FrozenComponents(codec, audio, load_scheduler(schedule))
    networks = load_loss_networks(config, audio.num_layers)
    return UNetTask(
        config, components, networks, lambda: build_dataset(config, codec, Path(), whisper, networks.needs_mel)
    )
