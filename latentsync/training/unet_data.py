"""The UNet's training clips: read as pixels, or encoded once into a cache."""

from contextlib import closing
from pathlib import Path

from latentsync.data.clips import read_fileslist
from latentsync.data.encoded_clips import ClipEncoder
from latentsync.data.latent_dataset import LatentClipDataset
from latentsync.data.mouth_openings import MouthOpenings
from latentsync.data.silent_runs import SilentRuns
from latentsync.data.sound import MelReader
from latentsync.data.unet_dataset import UNetDataset
from latentsync.faces.mask import load_mask
from latentsync.models.vae import LatentCodec
from latentsync.training.clip_cache import cache_key, encode_clips, latent_cache_dir
from latentsync.utils.config import UNetFileConfig
from latentsync.utils.errors import UserError
from latentsync.utils.registry import project_path
from latentsync.whisper.audio2feature import Audio2Feature


def build_dataset(
    config: UNetFileConfig, codec: LatentCodec, vae_path: Path, whisper_path: Path, with_mel: bool
) -> UNetDataset | LatentClipDataset:
    """What `config` asks for: pixels, or with `run.cache_latents` latents (and pixels where losses need them).

    Args:
        codec: encodes the clips that are not in the cache yet; on this process's GPU where there is one.
        vae_path, whisper_path: where its and the audio encoder's weights are; they are part of the cache's names.
        with_mel: whether the sync loss hears the SyncNet mel.

    Raises:
        UserError: the file list or its clips are not fit, see `read_fileslist`, `UNetDataset`, `ClipEncoder`.
    """
    data, run = config.data, config.run
    if not data.train_fileslist:
        raise UserError("data.train_fileslist is empty; write a list of clips with `python -m tools.write_fileslist`")
    clips = read_fileslist(project_path(data.train_fileslist), data.train_data_dir or None)
    mask = load_mask(data.resolution, data.mask_image_path or None)
    # Of its own and on the CPU: worker processes use it.
    states = data.audio_embeds_cache_dir or Path(data.train_output_dir) / "audio_embeds"
    audio = Audio2Feature(whisper_path, "cpu", states, data.num_frames, data.audio_feat_length)
    if not run.cache_latents:
        return UNetDataset(
            clips,
            audio,
            mask,
            run.seed,
            fps=data.video_fps,
            mel_cache_dir=data.audio_mel_cache_dir,
            augmentation=data.augment,
        )
    key = cache_key(vae_path, whisper_path, mask)
    encoder = ClipEncoder(codec, audio, mask, latent_cache_dir(data), key, data.video_fps)
    if with_mel and data.varied_copies:
        raise UserError(
            "data.varied_copies: the SyncNet of this config hears the mel, of which there are no copies; set it to 0, "
            "or take a SyncNet with audio_features: whisper"
        )
    encoded = encode_clips(encoder, clips, data.varied_copies)
    silent_runs = None
    if data.silent_share:
        with closing(MouthOpenings(latent_cache_dir(data), data.video_fps)) as openings:
            silent_runs = SilentRuns(
                encoded, audio, data.num_frames, data.audio_feat_length, data.silent_share, openings
            )
    return LatentClipDataset(
        encoded,
        data.audio_feat_length,
        data.num_frames,
        run.seed,
        fps=data.video_fps,
        mels=MelReader(data.audio_mel_cache_dir, data.video_fps) if with_mel else None,
        with_pixels=run.pixel_space_supervise,
        silent_runs=silent_runs,
    )
