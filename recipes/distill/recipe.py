"""Options of the distillation in a UNet config, see `latentsync.training.recipe`."""

from torch import Tensor

from latentsync.config.schema import require, require_not_negative, require_positive, section
from latentsync.config.unet import UNetFileConfig
from latentsync.training import recipe
from latentsync.training.adversarial import add_adversarial, build_discriminator
from latentsync.training.losses import ExtraLosses, LossNetworks, mouth_weights


@section
class Recipe(recipe.Recipe):
    """Options of the recipe.

    samples_dir: folder of the teacher's results. samples: number of them.
    held_out: number of these that are not trained on; validation compares them with the student's results.
    teacher_steps, teacher_guidance_scale: how the teacher is sampled, with DDIM.
    adversarial_loss_weight: of a PatchGAN that tells the student's mouths from the teacher's; needs decoded frames.
    """

    samples_dir: str = "data/distill"
    samples: int = 2000
    held_out: int = 16
    teacher_steps: int = 20
    teacher_guidance_scale: float = 1.5
    adversarial_loss_weight: float = 0.0

    def __post_init__(self) -> None:
        require_positive(self, "samples", "teacher_steps")
        require_not_negative(self, "held_out", "adversarial_loss_weight")
        require(
            self.held_out < self.samples, f"held_out {self.held_out} leaves none of {self.samples} samples to train"
        )
        require(self.teacher_guidance_scale >= 1, "teacher_guidance_scale must be at least 1 (1 = off)")

    def check_unet_config(self, config: UNetFileConfig) -> None:
        run = config.run
        require(run.few_steps, "the recipe distills to run.inference_steps; set run.few_steps to true")
        require(
            not run.validation_device,
            "run.validation_device: the distance to the teacher is computed in the training processes; leave it empty",
        )
        require(
            run.pixel_space_supervise or not self.adversarial_loss_weight,
            "recipe.adversarial_loss_weight needs decoded frames; set run.pixel_space_supervise to true as well",
        )

    def recon_weights(self, mask: Tensor) -> Tensor | None:
        return mouth_weights(mask)

    def extra_losses(self, config: UNetFileConfig, networks: LossNetworks, mask: Tensor) -> ExtraLosses:
        extra = ExtraLosses()
        if self.adversarial_loss_weight:
            add_adversarial(extra, build_discriminator(config), self.adversarial_loss_weight)
        return extra
