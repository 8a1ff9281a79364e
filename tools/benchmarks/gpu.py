"""Speed of the full-size UNet on a GPU, with random weights, which do not affect it."""

import time

import torch

from latentsync.config.unet import load_unet_config
from latentsync.models.unet import UNet3DConditionModel
from latentsync.models.unet_config import UNetConfig
from latentsync.utils.paths import PROJECT_ROOT
from tools.benchmarks.report import Figure

LATENT_SIDES = {256: 32, 512: 64}
STEPS = 20
REPEATS = 5


def measure() -> list[Figure]:
    """Time of a guided step on 16 frames, and frames per second at 20 steps."""
    if not torch.cuda.is_available():
        return [Figure("gpu", "full-size UNet", None, "", None, "no CUDA device")]
    config = load_unet_config(PROJECT_ROOT / "configs" / "unet" / "stage2.yaml", UNetConfig)
    with torch.device("meta"):
        unet = UNet3DConditionModel(config.model)
    unet = unet.half().to_empty(device="cuda").eval()
    for parameter in unet.parameters():
        parameter.data.normal_(0, 0.02)
    for buffer in unet.buffers():
        buffer.zero_()
    frames = config.data.num_frames
    figures = []
    for resolution, side in LATENT_SIDES.items():
        seconds = _step_seconds(unet, frames, side)
        note = f"float16, random weights, {frames} frames with guidance, {STEPS} steps"
        figures += [
            Figure("gpu", f"one step, {resolution} px", 1000 * seconds / frames, "ms/frame", None, note),
            Figure("gpu", f"denoising, {resolution} px", frames / (STEPS * seconds), "frames/s", None, note),
        ]
    return figures


@torch.no_grad()
def _step_seconds(unet: UNet3DConditionModel, frames: int, side: int) -> float:
    sample = torch.randn(2, unet.config.in_channels, frames, side, side, device="cuda", dtype=torch.float16)
    tokens = torch.randn(2, frames, 50, unet.config.cross_attention_dim, device="cuda", dtype=torch.float16)
    timestep = torch.tensor(500, device="cuda")
    for _ in range(2):
        unet(sample, timestep, tokens)
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(REPEATS):
        unet(sample, timestep, tokens)
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / REPEATS
