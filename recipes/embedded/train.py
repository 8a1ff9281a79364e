"""Train the embedded model: `python -m recipes.embedded.train --data DIR --first DIR --output DIR --trunk FILE`.

Each stage runs for a budget of wall time and resumes where it was interrupted, so the same command continues. Stages:

autoencoder  the decoder, on crops of faces
teacher      results of the 128 px model with other audio, to learn from
syncnet      the SyncNet that trains the UNet
distill      the UNet: the 128 px model's guided four steps in one, and real clips
refine       UNet and decoder together, with silence; losses on the decoded mouth
export       the files that inference loads, in OUTPUT/model
"""

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from latentsync.checkpoints.loading import load_checkpoint
from latentsync.config.unet import load_unet_config
from latentsync.models.framewise_syncnet import FramewiseSyncNet
from latentsync.models.patch_autoencoder import PatchAutoencoder
from latentsync.models.unet import UNet3DConditionModel
from latentsync.models.unet_config import UNetConfig
from latentsync.models.vae import LatentCodec
from latentsync.utils.commands import command
from latentsync.utils.errors import UserError
from recipes.embedded import autoencoder, sheets, syncnet, teacher
from recipes.embedded.denoiser import DenoiserSettings, DenoiserTraining, OneStep
from recipes.embedded.export import export
from recipes.embedded.inflate import inflate, inflated_config
from recipes.embedded.pack import Pack
from recipes.embedded.perceptual import PerceptualDistance
from recipes.embedded.samples import SampleMaker
from recipes.embedded.teacher import Voices
from recipes.embedded.training import Machine

logger = logging.getLogger("train")

FIRST_GENERATION = Path("output/embedded/model")
CHANNELS = 96
TEACHER_CHUNKS = 160
QUICK_MINUTES, QUICK_CHUNKS = 0.01, 1
MINUTES = {
    "autoencoder": 5.0,
    "teacher": 30.0,
    "syncnet": 7.0,
    "distill": 9.0,
    "refine": 190.0,
    "export": 0.0,
}
DENOISER = {
    "distill": DenoiserSettings({"teacher": 0.7, "real": 0.15, "retrieved": 0.15}, lr=3e-4, seed=31),
    "refine": DenoiserSettings(
        {"teacher": 0.28, "real": 0.38, "retrieved": 0.22, "silent": 0.12},
        lr=3e-4,
        decoder_lr=5e-4,
        teacher_weight=1.2,
        latent_weight=0.15,
        exact_weight=1.0,
        decay=0.99,
        seed=33,
        discriminator_lr=4e-4,
        sync_weight=1.5,
        pixel_weight=1.0,
        perceptual_weight=0.8,
        adversarial_weight=0.08,
        temporal_weight=1.0,
    ),
}


class Recipe:
    """Where everything is, and the stages.

    Args:
        data: folder written by `prepare`.
        first: the model of `first_generation`, unet.safetensors and vae/.
        output: checkpoints, results and contact sheets.
        trunk: weights of the perceptual distance.
        start: a model of `export` that the first stage of the UNet starts from, in place of the first generation.
        chunks: results of the first generation to learn from.
        machine: what to run on.
    """

    def __init__(
        self,
        data: Path,
        first: Path,
        output: Path,
        trunk: Path,
        start: Path | None = None,
        chunks: int = TEACHER_CHUNKS,
        machine: Machine | None = None,
    ) -> None:
        self.data, self.first, self.output, self.trunk = data, first, output, trunk
        self.start, self.chunks, self.machine = start, chunks, machine or Machine()
        self.pack = Pack(data / "train.safetensors")

    def run(self, stage: str, seconds: float) -> None:
        """Run a stage, or the rest of it."""
        if stage in DENOISER:
            self._denoise(stage, seconds)
        else:
            stages: dict[str, Callable[[float], object]] = {
                "autoencoder": self._autoencoder,
                "teacher": self._teacher,
                "syncnet": self._syncnet,
                "export": lambda _: export(self.load_model(), self.output / "model"),
            }
            stages[stage](seconds)

    @cached_property
    def voices(self) -> Voices:
        return Voices(self.pack, self.data / "voices.safetensors")

    def _autoencoder(self, seconds: float) -> None:
        settings = autoencoder.AutoencoderSettings(channels=CHANNELS)
        autoencoder.train(self.pack, self.first / "vae", self.trunk, self.output, seconds, settings, self.machine)

    def _teacher(self, seconds: float) -> None:
        folder = self.output / "teacher"
        teacher.make_chunks(self.pack, self.voices, self.first, folder, self.chunks, self.machine.device)

    def _syncnet(self, seconds: float) -> FramewiseSyncNet:
        settings = syncnet.SyncNetSettings()
        path = self.output / "syncnet.pt"
        return syncnet.train(self.pack, self.load_autoencoder(), path, seconds, settings, self.machine)

    def _denoise(self, name: str, seconds: float) -> None:
        model = self.load_model(before=name)
        samples = SampleMaker(self.pack, self.voices, self.output / "teacher")
        sync_net = self._load_syncnet() if DENOISER[name].sync_weight else None
        perceptual = PerceptualDistance(self.trunk)
        path = self.output / f"{name}.pt"
        DenoiserTraining(model, samples, sync_net, perceptual, path, seconds, DENOISER[name], self.machine).run()
        sheets.draw(model.cpu().eval(), Pack(self.data / "held_out.safetensors"), self.voices, self.output / name)

    def _load_syncnet(self) -> nn.Module | None:
        network = FramewiseSyncNet(syncnet.SyncNetSettings().network)
        network.load_state_dict(self._averages("syncnet")["syncnet"])
        return network.eval().requires_grad_(False)

    def _averages(self, stage: str) -> dict[str, dict[str, Tensor]]:
        """Averaged networks of a stage, by name."""
        path = self.output / f"{stage}.pt"
        if not path.is_file():
            raise UserError(f"{path}: no such file; run the stage {stage} first")
        return torch.load(path, map_location="cpu", weights_only=True)["averages"]

    def load_autoencoder(self) -> PatchAutoencoder:
        """The trained one, or as far as its training is; else that of `start`."""
        if self.start is not None and not (self.output / "autoencoder.pt").is_file():
            network = LatentCodec.from_pretrained(self.start / "vae").vae
        else:
            network = PatchAutoencoder(latent_channels=CHANNELS)
            network.load_state_dict(self._averages("autoencoder")["autoencoder"])
        return network.to(memory_format=torch.channels_last).eval()

    def load_model(self, before: str | None = None) -> OneStep:
        """The results of the last stage that has any, of those before one."""
        names = list(DENOISER)[: None if before is None else list(DENOISER).index(before)]
        found = [name for name in names if (self.output / f"{name}.pt").is_file()]
        network = self.load_autoencoder()
        if not found:
            unet = self._first_unet()
        else:
            unet = UNet3DConditionModel(self._config)
            unet.load_state_dict(self._averages(found[-1])["unet"])
        for name in found:  # not every stage trains the decoder
            if "autoencoder" in (averages := self._averages(name)):
                network.load_state_dict(averages["autoencoder"])
        logger.info("starting from %s", found[-1] if found else self.start or self.first)
        return OneStep(unet.to(memory_format=torch.channels_last), network)

    def _first_unet(self) -> UNet3DConditionModel:
        """The UNet that the first stage starts from."""
        state = load_checkpoint((self.start or self.first) / "unet.safetensors").state_dict
        if self.start is None:
            return inflate(state, load_unet_config(teacher.CONFIG, UNetConfig).model, CHANNELS)
        unet = UNet3DConditionModel(self._config)
        unet.load_state_dict(state)
        return unet

    @property
    def _config(self) -> UNetConfig:
        return inflated_config(load_unet_config(teacher.CONFIG, UNetConfig).model, CHANNELS)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder written by recipes.embedded.prepare")
    parser.add_argument(
        "--first", type=Path, default=FIRST_GENERATION, help="the first generation's model (default: %(default)s)"
    )
    parser.add_argument(
        "--start", type=Path, help="exported model to start the UNet from, in place of the first generation's"
    )
    parser.add_argument("--output", type=Path, required=True, help="folder for checkpoints and results")
    parser.add_argument("--trunk", type=Path, required=True, help="weights of torchvision's mobilenet_v2 (.pth)")
    stages = list(MINUTES)
    parser.add_argument("--stages", nargs="+", choices=stages, default=stages, help="default: %(default)s")
    parser.add_argument("--minutes", type=float, help="budget of each stage, instead of its own")
    parser.add_argument("--quick", action="store_true", help="a step or two of each stage, to try the recipe")
    parser.add_argument("--device", default="cpu", help="device to train on (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=1, help="threads that draw samples (default: %(default)s)")
    parser.add_argument("--batch_scale", type=int, default=1, help="factor on the batch sizes (default: %(default)s)")
    return parser.parse_args(argv)


@command
def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    chunks = QUICK_CHUNKS if args.quick else TEACHER_CHUNKS
    machine = Machine(torch.device(args.device), args.workers, args.batch_scale)
    recipe = Recipe(args.data, args.first, args.output, args.trunk, args.start, chunks, machine)
    for stage in args.stages:
        minutes = QUICK_MINUTES if args.quick else args.minutes or MINUTES[stage]
        logger.info("stage %s: %g minutes", stage, minutes)
        recipe.run(stage, 60 * minutes)
    return 0


if __name__ == "__main__":
    sys.exit(main())
