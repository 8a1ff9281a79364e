"""From a UNet config to the parts of its training: the network, the frozen networks of its losses, the dataset."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import torch
from diffusers import DDIMScheduler
from torch import nn

from latentsync.checkpoints.loading import load_checkpoint, load_into
from latentsync.checkpoints.registry import ResolvedModel, resolve
from latentsync.config.audio import syncnet_mel_config
from latentsync.config.syncnet import SyncNetFileConfig, load_syncnet_config
from latentsync.config.unet import UNetFileConfig
from latentsync.constants import WHISPER_ROWS_PER_FRAME
from latentsync.data.audio import MelReader
from latentsync.data.encoded_clips import ClipEncoder, cache_key, encode_once
from latentsync.data.file_lists import open_clips
from latentsync.data.unet_dataset import LatentClipDataset, UNetDataset
from latentsync.faces.mask import load_mask
from latentsync.loading import load_scheduler
from latentsync.models.lora import add_lora, load_lora
from latentsync.models.syncnets import SYNCNET_SCHEMAS, SyncNetConfig, make_syncnet
from latentsync.models.unet import UNet3DConditionModel
from latentsync.models.vae import LatentCodec
from latentsync.pretrained.perceptual import LPIPS
from latentsync.training.losses import LossNetworks
from latentsync.training.recipe import recipe_of
from latentsync.training.sync_losses import SyncSupervision
from latentsync.trepa.loss import CHECKPOINT as TREPA_CHECKPOINT
from latentsync.trepa.loss import TINY as TREPA_TINY
from latentsync.trepa.loss import TREPALoss
from latentsync.utils.errors import UserError
from latentsync.utils.paths import project_path
from latentsync.whisper.audio2feature import Audio2Feature

logger = logging.getLogger(__name__)
WITHOUT_SYNC = "set run.use_syncnet to false to train without this loss"


@dataclass(frozen=True)
class FrozenComponents:
    """The components of the model that are not trained."""

    codec: LatentCodec
    audio: Audio2Feature
    scheduler: DDIMScheduler


def load_frozen_components(
    config: UNetFileConfig, config_path: Path, own: Mapping[str, Path | None]
) -> tuple[FrozenComponents, ResolvedModel]:
    """The components of `ckpt.base_model` and their files; `own`: files that replace some, see `registry.resolve`.

    Raises:
        UserError: a file is missing or does not fit.
    """
    given = {name: path for name, path in own.items() if path} | {"unet": config_path}  # not read: the UNet is trained
    files = resolve(config.ckpt.base_model, own=given)
    audio = Audio2Feature(files.whisper, "cpu", None, config.data.num_frames, config.data.audio_feat_length)
    components = FrozenComponents(LatentCodec.from_pretrained(files.vae), audio, load_scheduler(files.scheduler_config))
    return components, files


def check_start(config: UNetFileConfig) -> None:
    """Raise UserError for a run that would train a part of a network with random weights."""
    run = config.run
    if not config.ckpt.resume_ckpt_path and (run.trainable_modules or run.lora_rank):
        raise UserError(
            "ckpt.resume_ckpt_path is empty, and run.trainable_modules or lora_rank train a part of the network: name"
            " the weights to start from, such as the result of stage 1; checkpoints/latentsync_unet.pt is the finished"
            " release, to be fine-tuned"
        )


def build_unet(config: UNetFileConfig) -> UNet3DConditionModel:
    """The network of a run: fresh from the seed or from `ckpt.resume_ckpt_path`; untrained parameters are frozen.

    Raises:
        UserError: the checkpoint does not fit (see `UNet3DConditionModel.from_pretrained`), `trainable_modules` names
            no parameter, or the settings contradict each other.
    """
    run, resume = config.run, config.ckpt.resume_ckpt_path
    torch.manual_seed(run.seed)
    unet, step = UNet3DConditionModel.from_pretrained(config.model, project_path(resume) if resume else "")
    if resume:
        logger.info("initial weights: %s, step %d", project_path(resume), step)
    else:
        recipe_of(config).initialize(unet)
    if run.lora_rank:
        add_lora(unet, run.lora_rank, run.lora_alpha, run.lora_target)
    else:
        choose_trainable(unet, run.trainable_modules)
    unet.enable_gradient_checkpointing(run.enable_gradient_checkpointing)
    return unet.train()


def load_export(config: UNetFileConfig, export: Path) -> UNet3DConditionModel:
    """The network of an export of a run, for inference, on the CPU; an adapter is merged into the initial weights.

    Raises:
        UserError: a file is missing or damaged.
    """
    lora = bool(config.run.lora_rank)
    weights = project_path(config.ckpt.resume_ckpt_path) if lora else export
    unet, _ = UNet3DConditionModel.from_pretrained(config.model, weights)
    if lora:
        load_lora(unet, export.with_suffix(".safetensors"))
    return unet.eval().requires_grad_(False)


def choose_trainable(unet: nn.Module, modules: tuple[str, ...]) -> None:
    """Freeze every parameter with none of `modules` in its name; empty trains all.

    Raises:
        UserError: one of them is in no parameter's name.
    """
    names = [name for name, _ in unet.named_parameters()]
    for module in modules:
        if not any(module in name for name in names):
            raise UserError(
                f"run.trainable_modules: no parameter of this UNet has {module!r} in its name; remove it from the list,"
                " or check model.use_motion_module"
            )
    for name, parameter in unet.named_parameters():
        parameter.requires_grad_(not modules or any(module in name for module in modules))


def load_loss_networks(config: UNetFileConfig, num_layers: int) -> LossNetworks:
    """Load the frozen networks of the losses in `config.run`, on the CPU.

    Args:
        num_layers: Whisper states per row, see `SyncSupervision`.

    Raises:
        UserError: weights are missing or damaged; the message names the key that turns the loss off.
    """
    run = config.run
    networks = LossNetworks()
    if run.pixel_space_supervise and run.perceptual_loss_weight:
        networks.lpips = load_lpips(config)
    if run.pixel_space_supervise and run.trepa_loss_weight:
        networks.trepa = load_trepa(config)
    if run.use_syncnet:
        networks.sync = load_syncnets(config, num_layers)
    return networks


def load_lpips(config: UNetFileConfig) -> LPIPS:
    """LPIPS as the config asks for it. Raises UserError."""
    path = project_path(config.ckpt.perceptual_ckpt_path) if config.ckpt.perceptual_ckpt_path else None
    return LPIPS(path, random_trunk=config.run.perceptual_random_trunk, seed=config.run.seed)


def load_trepa(config: UNetFileConfig) -> TREPALoss:
    """TREPA as the config asks for it. Raises UserError."""
    if config.run.trepa_random_network:
        return TREPALoss("cpu", None, with_cp=False, config=TREPA_TINY, seed=config.run.seed)
    path = project_path(config.ckpt.trepa_ckpt_path) if config.ckpt.trepa_ckpt_path else TREPA_CHECKPOINT
    return TREPALoss("cpu", path, with_cp=config.run.enable_gradient_checkpointing)


def load_syncnets(config: UNetFileConfig, num_layers: int) -> list[SyncSupervision]:
    """The SyncNets that `data.syncnet_config_path` and `more_syncnet_config_paths` describe, with their weights.

    Raises:
        UserError: there is no config, no weights, or a SyncNet needs an input that this run does not make.
    """
    data = config.data
    if not data.syncnet_config_path:
        raise UserError(f"data.syncnet_config_path is empty: name the config of a trained SyncNet, or {WITHOUT_SYNC}")
    paths = (data.syncnet_config_path, *data.more_syncnet_config_paths)
    nets = [load_sync_supervision(config, project_path(path), num_layers) for path in paths]
    for path, net in zip(paths, nets, strict=True):
        if net.batch_key != nets[0].batch_key:
            raise UserError(
                f"{path}: takes {net.audio_features}, but {paths[0]} takes {nets[0].audio_features}; name SyncNets of "
                "one kind of data.audio_features"
            )
    return nets


def load_sync_supervision(config: UNetFileConfig, path: Path, num_layers: int) -> SyncSupervision:
    """The SyncNet of a config, with the weights it names. Raises UserError, see `load_syncnets`."""
    syncnet: SyncNetFileConfig[SyncNetConfig] = load_syncnet_config(path, *SYNCNET_SCHEMAS)
    _check_fit(config, path, syncnet)
    weights = syncnet.ckpt.inference_ckpt_path
    if not weights or not project_path(weights).is_file():
        raise UserError(
            f"{path}: ckpt.inference_ckpt_path {weights!r} is no file: the sync loss needs a trained SyncNet; "
            f"{WITHOUT_SYNC}"
        )
    net = load_into(lambda: make_syncnet(syncnet.model), load_checkpoint(project_path(weights)), exact=True)
    data = syncnet.data
    mel_columns = syncnet_mel_config().columns_per_second / Fraction(data.video_fps)
    return SyncSupervision(
        net,
        num_frames=data.num_frames,
        channels=syncnet.model.visual_encoder.in_channels // data.num_frames,
        latent_space=data.latent_space,
        lower_half=data.lower_half,
        resolution=data.resolution,
        audio_features=data.audio_features,
        num_layers=num_layers,
        columns_per_frame=Fraction(WHISPER_ROWS_PER_FRAME) if data.audio_features == "whisper" else mel_columns,
        audio_feat_length=config.data.audio_feat_length,
    )


def _check_fit(config: UNetFileConfig, path: Path, syncnet: SyncNetFileConfig) -> None:
    frames, wanted = config.data.num_frames, syncnet.data.num_frames
    if frames < wanted:
        raise UserError(
            f"data.num_frames is {frames}, the SyncNet {path} needs {wanted}; raise num_frames, or {WITHOUT_SYNC}"
        )
    if not syncnet.data.latent_space and not config.run.pixel_space_supervise:
        raise UserError(
            f"use_syncnet needs decoded frames, because the SyncNet {path} takes pixels; set "
            "pixel_space_supervise to true as well, or name a SyncNet config with latent_space: true"
        )


def build_dataset(
    config: UNetFileConfig, codec: LatentCodec, vae_path: Path, whisper_path: Path, with_mel: bool
) -> UNetDataset | LatentClipDataset:
    """The dataset of a config: pixels, or with `run.cache_latents` latents (and pixels where losses need them).

    Args:
        codec: encodes the clips that are not in the cache yet; on this process's GPU where there is one.
        vae_path, whisper_path: weights of the autoencoder and the audio encoder; they are part of the cache's names.
        with_mel: whether the sync loss needs the SyncNet mel.

    Raises:
        UserError: the file list or its clips cannot be used, see `open_clips`, `UNetDataset`, `ClipEncoder`.
    """
    data, run, recipe = config.data, config.run, recipe_of(config)
    if not data.train_fileslist:
        raise UserError("data.train_fileslist is empty; write a list of clips with `python -m tools.write_fileslist`")
    if config.model.whole_condition and not data.pairs_dir:
        raise UserError(
            "model.whole_condition needs altered frames as condition; make twins of the clips with "
            "`python -m tools.make_pairs`, and set data.pairs_dir"
        )
    clips = open_clips(data, data.train_fileslist, data.train_data_dir)
    mask = load_mask(data.resolution, data.mask_image_path or None)
    # An encoder of its own on the CPU, because worker processes use it.
    audio = Audio2Feature(whisper_path, "cpu", data.audio_embeds_cache, data.num_frames, data.audio_feat_length)
    if not run.cache_latents:
        return UNetDataset(
            clips,
            audio,
            mask,
            run.seed,
            fps=data.video_fps,
            mel_cache_dir=data.audio_mel_cache_dir,
            augmentation=data.augment,
            whisper_on_device=data.whisper_on_device,
            pairs=project_path(data.pairs_dir) if data.pairs_dir else None,
        )
    key = cache_key(vae_path, whisper_path, mask)
    encoder = ClipEncoder(codec, audio, mask, data.latent_cache, key, data.video_fps)
    encoded = encode_once(
        encoder, clips, lambda some: recipe.encoding_jobs(encoder, some, with_mel), repr((recipe, with_mel))
    )
    return LatentClipDataset(
        encoded,
        data.audio_feat_length,
        data.num_frames,
        run.seed,
        fps=data.video_fps,
        mels=MelReader(data.audio_mel_cache_dir, data.video_fps) if with_mel else None,
        with_pixels=run.pixel_space_supervise,
        draw_window=recipe.draw_window(config, encoded, audio),
    )
