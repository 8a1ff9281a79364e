"""SyncNet's training clips, and the pairs it is judged by: each window with its own sound and with another one."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from latentsync.data.clips import Clip, examine_clips, read_fileslist
from latentsync.data.encoded_clips import ClipEncoder
from latentsync.data.sound import MelReader, SoundReader, WhisperReader
from latentsync.data.syncnet_dataset import MIN_SHIFT, SyncNetDataset
from latentsync.data.windows import draw_shifted
from latentsync.faces.mask import load_mask
from latentsync.models.vae import LatentCodec
from latentsync.training.clip_cache import cache_key, encode_clips, latent_cache_dir
from latentsync.utils.errors import UserError
from latentsync.utils.registry import project_path
from latentsync.utils.syncnet_config import SyncNetFileConfig
from latentsync.whisper.audio2feature import Audio2Feature


class JudgedPairs(SyncNetDataset):
    """Items of the contrastive mode with `other_samples` besides: sound of the same clip at least 6 frames off."""

    def __init__(self, clips: Sequence[Clip], sound: SoundReader, num_frames: int, seed: int, **options) -> None:
        super().__init__(clips, sound, num_frames, seed, **options)
        self.contrastive = True

    def make_item(self, clip: Clip, key: int, rng: np.random.Generator) -> dict:
        item = super().make_item(clip, key, rng)
        track = self.sound.open(clip)
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
        vae_path, whisper_path: of the weights, where they are needed (latents; Whisper states).
    """

    def __init__(
        self, config: SyncNetFileConfig, codec: LatentCodec | None, vae_path: Path | None, whisper_path: Path | None
    ) -> None:
        self.config, self.codec = config, codec
        self.vae_path, self.whisper_path = vae_path, whisper_path
        self._audio = self._load_audio()

    def train(self) -> SyncNetDataset:
        """What is trained on. Raises UserError for a list or clips that are not fit."""
        data = self.config.data
        if not data.train_fileslist:
            raise UserError(
                "data.train_fileslist is empty; write a list of clips with `python -m tools.write_fileslist`"
            )
        return SyncNetDataset(
            self._clips(data.train_fileslist, data.train_data_dir, data.varied_copies),
            self._sound(),
            data.run_frames or data.num_frames,
            self.config.run.seed,
            contrastive=self.config.run.contrastive,
            other_clip_negatives=data.other_clip_negatives,
            augmentation=data.augment,
            **self._look(),
        )

    def validation(self) -> JudgedPairs | None:
        """What is judged, never varied; None without `data.val_fileslist`."""
        data = self.config.data
        if not data.val_fileslist:
            return None
        clips = self._clips(data.val_fileslist, data.val_data_dir)
        return JudgedPairs(clips, self._sound(), data.num_frames, self.config.run.seed, **self._look())

    def _look(self) -> dict:
        """Pixels that become latents in the step are halved after that."""
        data = self.config.data
        encodes_later = data.latent_space and not data.cache_latents
        return {"resolution": data.resolution, "use_lower_half": data.lower_half and not encodes_later}

    def _clips(self, fileslist: str, folder: str, copies: int = 0) -> list[Clip]:
        data = self.config.data
        clips = read_fileslist(project_path(fileslist), folder or None)
        if not data.cache_latents:
            return clips
        mask = load_mask(data.resolution)
        key = cache_key(self.vae_path, self.whisper_path, mask)
        fit = examine_clips(
            clips, min_frames=data.num_frames + MIN_SHIFT, fps=data.video_fps, resolution=data.resolution
        )
        encoder = ClipEncoder(self.codec, self._audio, mask, latent_cache_dir(data), key, data.video_fps)
        return encode_clips(encoder, fit, copies)

    def _sound(self) -> SoundReader:
        data = self.config.data
        if data.audio_features == "mel":
            return MelReader(data.audio_mel_cache_dir, data.video_fps)
        return WhisperReader(None if data.cache_latents else self._audio, data.video_fps)

    def _load_audio(self) -> Audio2Feature | None:
        """On the CPU: worker processes use it."""
        data = self.config.data
        if data.audio_features == "mel" and not data.cache_latents:
            return None
        states = data.audio_embeds_cache_dir or Path(data.train_output_dir) / "audio_embeds"
        return Audio2Feature(self.whisper_path, "cpu", states, data.num_frames)
