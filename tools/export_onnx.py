"""Export UNet and autoencoder to ONNX: `python -m tools.export_onnx --model latentsync-1.6 --output onnx/`.

Writes unet.onnx, encoder.onnx and decoder.onnx with static shapes, e.g. for TensorRT, and compares each of them with
PyTorch in ONNX Runtime on the CPU. Needs `pip install '.[onnx]'`.

unet     sample (B, C, F, h, w), timesteps (B,), encoder_hidden_states (B, F, S, D) -> prediction (B, C', F, h, w)
encoder  pixels (F, 3, H, W) in [-1, 1] -> latents (F, C', h, w), scaled
decoder  latents (F, C', h, w), scaled -> pixels (F, 3, H, W)
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from latentsync.loading import LipsyncPipeline, load_pipeline
from latentsync.models.unet import UNet3DConditionModel
from latentsync.models.vae import LatentCodec
from latentsync.options import AUTO
from latentsync.pipelines.face_generator import NUM_FRAMES
from latentsync.utils.commands import command
from latentsync.utils.errors import UserError

GUIDED = 2  # samples of a step with guidance: without and with audio


class Denoiser(nn.Module):
    """The UNet with a tensor as its output."""

    def __init__(self, unet: UNet3DConditionModel) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, sample: Tensor, timesteps: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        return self.unet(sample, timesteps, encoder_hidden_states).sample


class Encoder(nn.Module):
    """Pixels to scaled latents."""

    def __init__(self, codec: LatentCodec) -> None:
        super().__init__()
        self.codec = codec

    def forward(self, pixels: Tensor) -> Tensor:
        return (self.codec.vae.encode(pixels).latent_dist.mean - self.codec.shift) * self.codec.scale


class Decoder(nn.Module):
    """Scaled latents to pixels."""

    def __init__(self, codec: LatentCodec) -> None:
        super().__init__()
        self.codec = codec

    def forward(self, latents: Tensor) -> Tensor:
        return self.codec.vae.decode(latents / self.codec.scale + self.codec.shift).sample


@dataclass(frozen=True)
class Network:
    """A network to export, with inputs of its static shapes by name. output: name of its output."""

    module: nn.Module
    inputs: dict[str, Tensor]
    output: str


def networks(pipeline: LipsyncPipeline, frames: int, batch: int) -> dict[str, Network]:
    """The networks by name, for chunks of `frames` frames and `batch` samples of the UNet at once."""
    unet, codec, side = pipeline.unet.eval(), pipeline.codec, pipeline.resolution
    cells = side // codec.factor
    kind: dict[str, Any] = {"dtype": pipeline.dtype, "generator": torch.Generator().manual_seed(0)}
    sample = torch.randn(batch, unet.config.in_channels, frames, cells, cells, **kind)
    tokens = torch.randn(batch, frames, pipeline.audio_encoder.num_tokens, pipeline.audio_encoder.width, **kind)
    times = torch.full((batch,), 500, dtype=torch.int64)
    latents = torch.randn(frames, codec.channels, cells, cells, **kind)
    pixels = 2 * torch.rand(frames, 3, side, side, **kind) - 1
    inputs = {"sample": sample, "timesteps": times, "encoder_hidden_states": tokens}
    return {
        "unet": Network(Denoiser(unet), inputs, "prediction"),
        "encoder": Network(Encoder(codec), {"pixels": pixels}, "latents"),
        "decoder": Network(Decoder(codec), {"latents": latents}, "pixels"),
    }


@torch.no_grad()
def export(network: Network, path: Path) -> float:
    """Write a network and return its error in ONNX Runtime: the root mean square over that of PyTorch's output.

    Weights beyond 2 GB are in a second file beside it.
    """
    import onnxruntime

    names = list(network.inputs)
    torch.onnx.export(
        network.module,
        tuple(network.inputs.values()),
        path,
        input_names=names,
        output_names=[network.output],
        dynamo=True,
        verbose=False,
    )
    expected = network.module(*network.inputs.values()).float()
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    [found] = session.run(None, {name: value.numpy() for name, value in network.inputs.items()})
    return float((torch.from_numpy(found).float() - expected).norm() / expected.norm())


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", default=AUTO, help="name or folder of the model (default: the best present)")
    add("--output", type=Path, required=True, help="folder for the files")
    add("--frames", type=int, default=NUM_FRAMES, help="frames of a chunk (default: %(default)s)")
    add(
        "--batch",
        type=int,
        default=GUIDED,
        help="samples of the UNet: 2 per chunk with guidance (default: %(default)s)",
    )
    add("--dtype", choices=("float32", "float16"), default="float32", help="precision (default: %(default)s)")
    args = parser.parse_args(argv)
    try:
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401  # used by torch.onnx
    except ImportError as error:
        raise UserError("ONNX is not installed; run `pip install '.[onnx]'` in the project's folder") from error
    pipeline = load_pipeline(None if args.model == AUTO else args.model, "cpu", getattr(torch, args.dtype))
    args.output.mkdir(parents=True, exist_ok=True)
    for name, network in networks(pipeline, args.frames, args.batch).items():
        path = args.output / f"{name}.onnx"
        print(f"{path}: relative error in ONNX Runtime {export(network, path):.1e}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
