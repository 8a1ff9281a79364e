"""A random model of every network the pipeline needs, small enough to run in milliseconds, in memory and as files."""

from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import yaml
from diffusers import AutoencoderKL
from whisper.model import ModelDimensions, Whisper

from latentsync.checkpoints.loading import save_checkpoint
from latentsync.models.unet import UNet3DConditionModel
from latentsync.models.unet_config import UNetConfig
from tests.conformance.seeded import fill_

PROJECT_ROOT = Path(__file__).resolve().parents[1]
SCHEDULER = PROJECT_ROOT / "configs" / "scheduler_config.json"
RESOLUTION = 64
UNET = {
    "sample_size": 8,
    "in_channels": 13,
    "out_channels": 4,
    "block_out_channels": [32, 32],
    "down_block_types": ["CrossAttnDownBlock3D", "DownBlock3D"],
    "up_block_types": ["UpBlock3D", "CrossAttnUpBlock3D"],
    "layers_per_block": 1,
    "attention_head_dim": 4,
    "cross_attention_dim": 32,
    "norm_num_groups": 8,
    "use_motion_module": True,
    "motion_module_resolutions": [1],
    "motion_module_kwargs": {"num_attention_heads": 4},
}
VAE = {
    "latent_channels": 4,
    "block_out_channels": [16] * 4,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "scaling_factor": 0.2,
}
WHISPER = ModelDimensions(80, 400, 32, 2, 1, 8, 8, 32, 2, 1)


@dataclass(frozen=True)
class TinyFiles:
    """Paths of the parts, as `ModelPaths` and the command line take them."""

    unet: Path
    unet_config: Path
    vae: Path
    whisper: Path
    scheduler_config: Path

    @property
    def options(self) -> list[str]:
        """The same as words of the command line; two steps, no guidance: what makes it fast."""
        return [
            f"--inference_ckpt_path={self.unet}",
            f"--unet_config_path={self.unet_config}",
            f"--vae_path={self.vae}",
            f"--whisper_path={self.whisper}",
            f"--scheduler_config_path={self.scheduler_config}",
            "--device=cpu",
            "--inference_steps=1",
            "--guidance_scale=1",
        ]


def tiny_vae() -> AutoencoderKL:
    return fill_(AutoencoderKL(**VAE))


def write_tiny_model(folder: Path) -> TinyFiles:
    """Write all parts; weights depend on nothing but the seed of `fill_`."""
    config = folder / "tiny.yaml"
    config.write_text(yaml.safe_dump({"model": UNET, "data": {"resolution": RESOLUTION}}))
    save_checkpoint(folder / "unet.pt", fill_(UNet3DConditionModel(UNetConfig.from_dict(UNET))).state_dict())
    tiny_vae().save_pretrained(folder / "vae")
    whisper = fill_(Whisper(WHISPER))
    torch.save({"dims": asdict(WHISPER), "model_state_dict": whisper.state_dict()}, folder / "whisper.pt")
    return TinyFiles(folder / "unet.pt", config, folder / "vae", folder / "whisper.pt", SCHEDULER)
