"""From a SyncNet config to the parts of its training: datasets, and the frozen networks they need."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from latentsync.checkpoints.registry import ResolvedModel, resolve
from latentsync.config.syncnet import SyncNetFileConfig
from latentsync.data.audio import AudioReader, MelReader, WhisperReader
from latentsync.data.clip_dataset import draw_shifted
from latentsync.data.clips import Clip, examine_clips
from latentsync.data.encoded_clips import ClipEncoder, EncodingJob, cache_key, encode_once
from latentsync.data.file_lists import open_clips
from latentsync.data.syncnet_dataset import MIN_SHIFT, SyncNetDataset
from latentsync.data.table import Table
from latentsync.faces.mask import load_mask
from latentsync.models.syncnets import SyncNetConfig
from latentsync.models.vae import LatentCodec
from latentsync.training.recipe import recipe_of
from latentsync.utils.errors import UserError
from latentsync.whisper.audio2feature import Audio2Feature


class ValidationPairs(SyncNetDataset):
    """Items of the contrastive mode with `other_samples`, audio of the same clip at least 6 frames off."""

    def __init__(self, clips: Sequence[Clip], audio: AudioReader, num_frames: int, seed: int, **options: Any) -> None:
        super().__init__(clips, audio, num_frames, seed, **options)
        self.contrastive = True

    def make_item(self, clip: Clip, key: int, rng: np.random.Generator) -> dict:
        item = super().make_item(clip, key, rng)
        track = self.audio.open(clip)
        total = min(clip.num_frames, track.num_frames)
        if total < self.num_frames + MIN_SHIFT:
            raise UserError(f"{clip.path}: {total} frames have no window {MIN_SHIFT} frames off; process it again")
        other = draw_shifted(total, self.num_frames, item["start_idx"], MIN_SHIFT, rng)
        return {**item, "other_samples": track.window(other, self.num_frames)}


class SyncNetData:
    """Builds the datasets of a config.

    Args:
        config: a whole SyncNet config.
        codec: encodes clips to be cached, for data.cache_latents; else None.
        vae_path, whisper_path: weights, where they are needed (latents; Whisper states).
    """

    def __init__(
        self, config: SyncNetFileConfig, codec: LatentCodec | None, vae_path: Path | None, whisper_path: Path | None
    ) -> None:
        self.config, self.codec = config, codec
        self.vae_path, self.whisper_path = vae_path, whisper_path
        self._encoder = self._load_audio_encoder()

    def train(self) -> SyncNetDataset:
        """The training dataset. Raises UserError for a list or clips that cannot be used."""
        data = self.config.data
        if not data.train_fileslist:
            raise UserError(
                "data.train_fileslist is empty; write a list of clips with `python -m tools.write_fileslist`"
            )
        return SyncNetDataset(
            self._clips(data.train_fileslist, data.train_data_dir, copies=True),
            self._audio(),
            data.run_frames or data.num_frames,
            self.config.run.seed,
            contrastive=self.config.run.contrastive,
            other_clip_negatives=data.other_clip_negatives,
            augmentation=data.augment,
            **self._options(),
        )

    def validation(self) -> ValidationPairs | None:
        """The validation dataset, never augmented; None without `data.val_fileslist`."""
        data = self.config.data
        if not data.val_fileslist:
            return None
        clips = self._clips(data.val_fileslist, data.val_data_dir)
        return ValidationPairs(clips, self._audio(), data.num_frames, self.config.run.seed, **self._options())

    def _options(self) -> dict:
        """Frames that are encoded in the step are halved after that."""
        data = self.config.data
        encodes_later = data.latent_space and not data.cache_latents
        return {"resolution": data.resolution, "use_lower_half": data.lower_half and not encodes_later}

    def _clips(self, fileslist: str, folder: str, copies: bool = False) -> Sequence[Clip]:
        data = self.config.data
        clips = open_clips(data, fileslist, folder)
        if not data.cache_latents:
            return clips
        assert self.vae_path and self.whisper_path and self.codec and self._encoder  # see `find_model_files`
        mask = load_mask(data.resolution)
        key = cache_key(self.vae_path, self.whisper_path, mask)
        usable = examine_clips(
            clips, min_frames=data.num_frames + MIN_SHIFT, fps=data.video_fps, resolution=data.resolution
        )
        encoder = ClipEncoder(self.codec, self._encoder, mask, data.latent_cache, key, data.video_fps)
        with_mel, recipe = data.audio_features == "mel", recipe_of(self.config)

        def make_jobs(some: Sequence[Clip]) -> list[EncodingJob]:
            return recipe.encoding_jobs(encoder, some, with_mel) if copies else encoder.jobs(some)

        assert isinstance(usable, Table)  # as `clips` is
        identity = repr((data.num_frames, copies and recipe, with_mel))
        return encode_once(encoder, usable, make_jobs, identity)

    def _audio(self) -> AudioReader:
        data = self.config.data
        if data.audio_features == "mel":
            return MelReader(data.audio_mel_cache_dir, data.video_fps)
        return WhisperReader(None if data.cache_latents else self._encoder, data.video_fps)

    def _load_audio_encoder(self) -> Audio2Feature | None:
        """On the CPU, because worker processes use it."""
        data = self.config.data
        if data.audio_features == "mel" and not data.cache_latents:
            return None
        assert self.whisper_path  # see `find_model_files`
        return Audio2Feature(self.whisper_path, "cpu", data.audio_embeds_cache, data.num_frames)


def find_model_files(
    config: SyncNetFileConfig[SyncNetConfig],
    config_path: Path,
    vae_path: Path | None = None,
    whisper_path: Path | None = None,
) -> ResolvedModel | None:
    """Files of the autoencoder and the audio encoder: the given ones, otherwise those of `ckpt.base_model`; None when
    the SyncNet takes pixels and mel.

    Raises:
        UserError: a file is missing; the message says how to get it.
    """
    if not config.data.latent_space and config.data.audio_features == "mel":
        return None
    given = {"vae": vae_path, "whisper": whisper_path, "unet": config_path}  # the UNet is not read
    return resolve(config.ckpt.base_model, own={name: path for name, path in given.items() if path})


def open_data(
    config: SyncNetFileConfig[SyncNetConfig], files: ResolvedModel | None
) -> tuple[SyncNetData, LatentCodec | None]:
    """The datasets of a config, and the autoencoder if it takes latents."""
    codec = LatentCodec.from_pretrained(files.vae) if files is not None and config.data.latent_space else None
    vae, whisper = (files.vae, files.whisper) if files is not None else (None, None)
    return SyncNetData(config, codec, vae, whisper), codec
