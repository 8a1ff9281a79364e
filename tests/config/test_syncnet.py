"""SyncNet config files: values of the shipped ones, and errors with file and line."""

from pathlib import Path

import pytest

from latentsync.config.syncnet import SyncNetFileConfig, load_syncnet_config
from latentsync.models.syncnet_config import StableSyncNetConfig
from latentsync.models.syncnets import SYNCNET_SCHEMAS
from latentsync.models.wav2lip_syncnet import Wav2LipSyncNetConfig
from latentsync.utils.errors import UserError

CONFIGS = Path(__file__).parents[2] / "configs" / "syncnet"
RECIPE = Path(__file__).parents[2] / "recipes/embedded/first_generation/configs"
RECIPE_NAME = "recipes.embedded.first_generation"
BASE = f"base: {CONFIGS / 'syncnet_16_pixel.yaml'}\n"
WHISPER_MODEL = """model:
  audio_encoder: {in_channels: 1920, block_out_channels: [32, 32, 32, 64, 128],
                  downsample_factors: [[1, 2], [1, 2], [1, 2], [1, 2], [1, 2]]}
  visual_encoder: {in_channels: 256, block_out_channels: [32, 32, 64, 128], downsample_factors: [[1, 2], 2, 2, 2]}
"""


def load(path: Path) -> SyncNetFileConfig[StableSyncNetConfig]:
    return load_syncnet_config(path, StableSyncNetConfig)


def written(folder: Path, text: str) -> Path:
    path = folder / "own.yaml"
    path.write_text(text)
    return path


def test_published_configs():
    pixel, attention, latent, long = (
        load(CONFIGS / f"syncnet_{name}.yaml") for name in ("16_pixel", "16_pixel_attn", "16_latent", "25_pixel")
    )
    for config in (pixel, attention, latent, long):
        assert (config.data.batch_size, config.optimizer.lr, config.run.validation_steps) == (256, 1e-5, 2500)
        assert not config.run.contrastive and config.data.audio_features == "mel"
    assert pixel.data.visual_shape(48) == (48, 128, 256) and pixel.data.audio_shape(1) == (1, 80, 52)
    assert latent.data.visual_shape(64) == (64, 32, 32) and latent.data.latent_space and not latent.data.lower_half
    assert long.data.visual_shape(75) == (75, 128, 256) and long.data.audio_shape(1) == (1, 80, 80)
    assert pixel.data == attention.data and sum(attention.model.visual_encoder.attn_blocks) == 2
    assert [config.model.embedding_width for config in (pixel, latent)] == [2048, 1024]


def test_every_shipped_config_loads():
    for path in sorted([*CONFIGS.glob("*.yaml"), *RECIPE.glob("syncnet*.yaml")]):
        load_syncnet_config(path, *SYNCNET_SCHEMAS)


def test_architecture_is_named_in_the_file(tmp_path):
    path = CONFIGS / "wav2lip_syncnet.yaml"
    config = load_syncnet_config(path, *SYNCNET_SCHEMAS)
    assert config.model == Wav2LipSyncNetConfig() and config.data.audio_shape(1) == (1, 80, 16)
    with pytest.raises(
        UserError, match=r"line 3: model.architecture: 'wav2lip_syncnet' is not one of 'stable_syncnet'$"
    ):
        load(path)
    with pytest.raises(
        UserError, match="'lipnet' is not one of 'stable_syncnet', 'framewise_syncnet', 'wav2lip_syncnet'"
    ):
        load_syncnet_config(written(tmp_path, "model: {architecture: lipnet}\n"), *SYNCNET_SCHEMAS)
    with pytest.raises(UserError, match="own.yaml, line 2: model: wav2lip_syncnet takes .* 15x128x256; got 15x64x128"):
        load_syncnet_config(
            written(tmp_path, f"base: {path}\nmodel: {{}}\ndata: {{resolution: 128}}\n"), *SYNCNET_SCHEMAS
        )
    with pytest.raises(UserError, match="model: expected a group of keys, got int 3"):
        load(written(tmp_path, "model: 3\n"))


def test_whisper_against_latents(tmp_path):
    data = "data: {resolution: 128, latent_space: true, audio_features: whisper, cache_latents: true}\n"
    config = load(written(tmp_path, WHISPER_MODEL + data + "run: {contrastive: true, gradient_cache_chunk: 8}\n"))
    assert config.data.visual_shape(256) == (256, 8, 16) and config.data.audio_shape(1920) == (1920, 1, 32)


REFUSED = [
    ("data: {num_frames: 5}\n", r"in_channels 48 is not a multiple of data.num_frames 5"),
    ("data: {num_frames: 8}\n", r"model.visual_encoder: in_channels is 48, got an input of 24 channels, 128x256"),
    ("data: {lower_half: false}\n", r"model.visual_encoder: .* must end in a 1x1 map; .*256x256 -> 256x128"),
    ("data:\n  video_fps: 50\n", r"model.audio_encoder: .* must end in a 1x1 map; .*80x26"),
    ("data:\n  resolutoin: 256\n", r"own.yaml, line 3: data.resolutoin: unknown key; did you mean 'resolution'"),
    ("data: {resolution: 250}\n", "resolution 250 is not a multiple of 8"),
    ("data: {audio_sample_rate: 8000}\n", "audio_sample_rate must be 16000"),
    ("data: {other_clip_negatives: 2}\n", "other_clip_negatives must be between 0 and 1, got 2.0"),
    ("data: {cache_latents: true}\n", "cache_latents has no effect on pixels"),
    (
        "recipe: {name: recipes.embedded.first_generation, augmented_copies: 2}\n",
        "augmented_copies needs cached latents",
    ),
    (
        "recipe: {name: recipes.embedded.first_generation, augmented_copies: -1}\n",
        "augmented_copies must be at least 0",
    ),
    ("data: {audio_features: words}\n", "'words' is not one of 'mel', 'whisper'"),
    ("data: {audio_features: whisper, video_fps: 30}\n", "audio_features whisper needs video_fps 25"),
    ("data: {num_workers: -1}\n", "num_workers must be at least 0"),
    ("data: {batch_size: 0}\n", "batch_size must be above 0"),
    ("run: {validation_steps: 0}\n", "validation_steps must be above 0"),
    ("run: {ema_decay: 1}\n", "ema_decay must be at least 0"),
    ("run: {stop_after_minutes: -1}\n", "stop_after_minutes must be at least 0"),
    ("run: {gradient_cache_chunk: 8}\n", "gradient_cache_chunk is for contrastive training"),
    ("run: {gradient_cache_chunk: -1, contrastive: true}\n", "gradient_cache_chunk must be at least 0"),
    ("run: {contrastive: true}\ndata: {batch_size: 1}\n", "data.batch_size must be at least 2"),
    ("run: {contrastive: true}\ndata: {other_clip_negatives: 0.5}\n", "no effect with run.contrastive"),
    ("model: {visual_encoder: {attn_blocks: [1]}}\n", r"line 2: model.visual_encoder: attn_blocks \[1\]"),
    ("model: {visual_encoder: {block_out_channels: [64]}}\n", "downsample_factors has 8 entries"),
]


@pytest.mark.parametrize(("text", "message"), REFUSED)
def test_refused(tmp_path, text, message):
    with pytest.raises(UserError, match=message) as caught:
        load(written(tmp_path, BASE + text))
    assert "\n" not in str(caught.value) and ".yaml" in str(caught.value)


def test_encoders_of_different_width_are_refused_in_the_file(tmp_path):
    path = written(tmp_path, WHISPER_MODEL.replace("[32, 32, 64, 128]", "[32, 32, 64, 64]"))
    with pytest.raises(UserError, match="own.yaml, line 1: model: audio_encoder ends in 128 channels"):
        load(path)


def test_model_is_required(tmp_path):
    with pytest.raises(UserError, match="missing section model; copy one from configs/syncnet"):
        load(written(tmp_path, "data: {}\n"))
