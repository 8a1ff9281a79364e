"""The extension point of the trainers: a recipe changes training without a flag in the core's configs.

A config names it in a section of its own, with the recipe's options:

    recipe:
      name: recipes.embedded.first_generation
      augmented_copies: 8

`name` is a module under `recipes/` with a class `Recipe`, a subclass of the one here, decorated with `@section`. Its
fields are the options, checked as those of any other section.
"""

from collections.abc import Callable, Sequence

import torch
from diffusers import DDIMScheduler
from torch import Tensor, nn

from latentsync.config.schema import section
from latentsync.config.sections import TrainingConfig
from latentsync.config.syncnet import SyncNetFileConfig
from latentsync.config.unet import UNetFileConfig
from latentsync.data.clips import Clip
from latentsync.data.encoded_clips import ClipEncoder, EncodedClip, EncodingJob
from latentsync.data.unet_dataset import DrawWindow
from latentsync.training.losses import ExtraLosses, LossNetworks
from latentsync.whisper.audio2feature import Audio2Feature

TimestepSampler = Callable[[Sequence[torch.Generator]], Tensor]


def last_timestep_sampler(scheduler: DDIMScheduler) -> TimestepSampler:
    """The timestep of a model that predicts the clean sample from noise in one step."""
    last = scheduler.config.num_train_timesteps - 1
    return lambda generators: torch.full((len(generators),), last)


@section
class Recipe:
    """Training as published; subclasses override parts of it."""

    def check_unet_config(self, config: UNetFileConfig) -> None:
        """Raise UserError for options that do not fit the rest of a UNet config."""

    def check_syncnet_config(self, config: SyncNetFileConfig) -> None:
        """Raise UserError for options that do not fit the rest of a SyncNet config."""

    def initialize(self, unet: nn.Module) -> None:
        """Change the initial weights of a UNet that starts from no checkpoint."""

    def timestep_sampler(self, scheduler: DDIMScheduler, inference_steps: int) -> TimestepSampler | None:
        """Draws the timesteps of a batch, (B,), one from each generator; None for uniform over the schedule."""
        return None

    def recon_weights(self, mask: Tensor) -> Tensor | None:
        """Weights of the reconstruction loss for a latent mask (1, 1, 1, h, h), 1 = keep; see `ReconstructionLoss`."""
        return None

    def extra_losses(self, config: UNetFileConfig, networks: LossNetworks, mask: Tensor) -> ExtraLosses:
        """Losses beyond those of `build_losses`, and discriminators."""
        return ExtraLosses()

    def encoding_jobs(self, encoder: ClipEncoder, clips: Sequence[Clip], with_mel: bool) -> list[EncodingJob]:
        """Jobs that encode clips, or copies of them, into the cache. `with_mel`: training uses the mel of the files."""
        return encoder.jobs(clips)

    def draw_window(
        self, config: UNetFileConfig, clips: Sequence[EncodedClip], audio: Audio2Feature
    ) -> DrawWindow | None:
        """A function that replaces some windows of `LatentClipDataset`; None for no replacement."""
        return None


def recipe_of(config: TrainingConfig) -> Recipe:
    """The recipe of a config; the published training if it names none."""
    return config.recipe or Recipe()
