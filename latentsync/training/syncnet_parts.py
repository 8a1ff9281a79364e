"""Which frozen networks the data of a SyncNet config is made with."""

from pathlib import Path

from latentsync.models.syncnets import SyncNetConfig
from latentsync.models.unet_config import UNetConfig
from latentsync.models.vae import LatentCodec
from latentsync.training.syncnet_data import SyncNetData
from latentsync.utils.config import load_unet_config
from latentsync.utils.registry import DEFAULT_MODEL, PROJECT_ROOT, RELEASED_MODELS, ResolvedModel, entry, resolve
from latentsync.utils.syncnet_config import SyncNetFileConfig


def find_parts(
    config: SyncNetFileConfig[SyncNetConfig],
    config_path: Path,
    vae_path: Path | None = None,
    whisper_path: Path | None = None,
) -> ResolvedModel | None:
    """Files of the autoencoder and the audio encoder: those given, else of the registered model with as many latent
    channels; None when the SyncNet looks at pixels and hears a mel.

    Raises:
        UserError: a file is missing; says how to get it.
    """
    data = config.data
    if not data.latent_space and data.audio_features == "mel":
        return None
    embedded = load_unet_config(PROJECT_ROOT / entry(DEFAULT_MODEL).model.unet_config, UNetConfig)
    channels = config.model.visual_encoder.in_channels // data.num_frames
    is_small = not data.latent_space or channels == embedded.model.out_channels
    given = {"vae": vae_path, "whisper": whisper_path, "unet": config_path}  # no UNet is read
    name = DEFAULT_MODEL if is_small else RELEASED_MODELS[0]
    return resolve(name, own={part: path for part, path in given.items() if path})


def open_data(
    config: SyncNetFileConfig[SyncNetConfig], files: ResolvedModel | None
) -> tuple[SyncNetData, LatentCodec | None]:
    """The datasets of a config, and the autoencoder where it looks at latents."""
    codec = LatentCodec.from_pretrained(files.vae) if config.data.latent_space else None
    vae, whisper = (files.vae, files.whisper) if files is not None else (None, None)
    return SyncNetData(config, codec, vae, whisper), codec
