"""The recipe's changes to training, see `latentsync.training.recipe`."""

from collections.abc import Sequence
from contextlib import closing
from typing import Literal

import torch
from diffusers import DDIMScheduler
from torch import Tensor, nn

from latentsync.checkpoints.registry import require_file
from latentsync.config.schema import require, require_not_negative, section
from latentsync.config.syncnet import SyncNetFileConfig
from latentsync.config.unet import UNetFileConfig
from latentsync.constants import FPS
from latentsync.data.clips import Clip
from latentsync.data.encoded_clips import ClipEncoder, EncodedClip, EncodingJob
from latentsync.data.unet_dataset import DrawWindow
from latentsync.training import recipe
from latentsync.training.adversarial import FramesLoss, add_adversarial, build_discriminator
from latentsync.training.losses import ExtraLosses, LossNetworks, SyncLoss, Term, mouth_weights
from latentsync.training.unet_setup import load_lpips
from latentsync.utils.errors import UserError
from latentsync.utils.paths import project_path
from latentsync.whisper.audio2feature import Audio2Feature
from recipes.embedded.first_generation.augmented_copies import encoding_jobs
from recipes.embedded.first_generation.losses import (
    FlowConsistencyLoss,
    IdentityLoss,
    MotionLoss,
    TrunkEmbedding,
)
from recipes.embedded.first_generation.reference_start import start_from_reference
from recipes.embedded.first_generation.silence import MouthOpenings, SilentWindows

VISITED_SHARE = 0.75  # of the timesteps drawn from those that sampling visits
SYNC_SCALES = (1, 2, 4)  # pixels of detail that multi-scale sync keeps
FRAMES_LOSSES = ("adversarial_loss_weight", "flow_loss_weight", "identity_loss_weight")


@section
class Recipe(recipe.Recipe):
    """Options of the recipe; all off by default.

    augmented_copies: copies of each cached clip to train on, see `augmented_copies`.
    silent_share: share of the samples of cached clips that show a closed mouth in silence, see `SilentWindows`.
    start_from_reference: begin with a UNet that copies the reference frame (models that predict the clean sample).
    train_sampled_timesteps: train mostly at the timesteps that sampling in run.inference_steps visits.
    weigh_mouth: in the reconstruction loss, weight the lips up, and pixels that inference does not replace down.
    motion_loss_weight: of the error of the change between the latents of neighboring frames.
    multi_scale_sync_loss_weight: of the sync loss on blurred frames, too.
    identity_embedding: face is a face recognition network, appearance the network of LPIPS.
    """

    augmented_copies: int = 0
    silent_share: float = 0.0
    start_from_reference: bool = False
    train_sampled_timesteps: bool = False
    weigh_mouth: bool = False
    motion_loss_weight: float = 0.0
    adversarial_loss_weight: float = 0.0
    flow_loss_weight: float = 0.0
    multi_scale_sync_loss_weight: float = 0.0
    identity_loss_weight: float = 0.0
    identity_embedding: Literal["face", "appearance"] = "face"

    def __post_init__(self) -> None:
        require_not_negative(self, "augmented_copies", "motion_loss_weight", "multi_scale_sync_loss_weight")
        require_not_negative(self, *FRAMES_LOSSES)
        require(0 <= self.silent_share <= 1, f"silent_share must be between 0 and 1, got {self.silent_share:g}")

    def check_unet_config(self, config: UNetFileConfig) -> None:
        run = config.run
        for name in ("augmented_copies", "silent_share"):
            require(
                run.cache_latents or not getattr(self, name),
                f"recipe.{name} needs run.cache_latents; set it to true, or {name} to 0",
            )
        require(
            not self.silent_share or config.data.video_fps == FPS,
            f"recipe.silent_share needs clips at {FPS} frames/s (data.video_fps)",
        )
        for name in FRAMES_LOSSES:
            require(
                run.pixel_space_supervise or not getattr(self, name),
                f"recipe.{name} needs decoded frames; set run.pixel_space_supervise to true as well",
            )
        require(
            not (run.decode_frames and self.flow_loss_weight),
            "run.decode_frames leaves gaps that the flow loss cannot compare across; set it, or flow_loss_weight, to 0",
        )
        require(
            run.use_syncnet or not self.multi_scale_sync_loss_weight,
            "recipe.multi_scale_sync_loss_weight needs a SyncNet; set run.use_syncnet to true as well",
        )

    def check_syncnet_config(self, config: SyncNetFileConfig) -> None:
        require(
            not self.augmented_copies or (config.data.cache_latents and config.data.audio_features == "whisper"),
            "recipe.augmented_copies needs cached latents and Whisper states; set data.cache_latents to true and"
            " data.audio_features to whisper, or use data.augment",
        )

    def initialize(self, unet: nn.Module) -> None:
        if self.start_from_reference:
            start_from_reference(unet)

    def timestep_sampler(self, scheduler: DDIMScheduler, inference_steps: int) -> recipe.TimestepSampler | None:
        if not self.train_sampled_timesteps:
            return super().timestep_sampler(scheduler, inference_steps)
        total, visited = scheduler.config.num_train_timesteps, visited_timesteps(scheduler, inference_steps)
        return lambda generators: torch.stack([_draw_timestep(total, visited, each) for each in generators])

    def recon_weights(self, mask: Tensor) -> Tensor | None:
        return mouth_weights(mask) if self.weigh_mouth else None

    def extra_losses(self, config: UNetFileConfig, networks: LossNetworks, mask: Tensor) -> ExtraLosses:
        extra = ExtraLosses()
        if self.motion_loss_weight:
            extra.terms["motion"] = Term(self.motion_loss_weight, MotionLoss(self.recon_weights(mask)))
        if networks.sync and self.multi_scale_sync_loss_weight:
            loss = SyncLoss(networks.sync, SYNC_SCALES)
            extra.terms["multi_scale_sync"] = Term(self.multi_scale_sync_loss_weight, loss)
        if self.adversarial_loss_weight:
            add_adversarial(extra, build_discriminator(config), self.adversarial_loss_weight)
        if self.flow_loss_weight:
            extra.terms["flow"] = Term(self.flow_loss_weight, FramesLoss(FlowConsistencyLoss()))
        if self.identity_loss_weight:
            loss = FramesLoss(IdentityLoss(self._embedder(config, networks)))
            extra.terms["identity"] = Term(self.identity_loss_weight, loss)
        return extra

    def _embedder(self, config: UNetFileConfig, networks: LossNetworks) -> nn.Module:
        if self.identity_embedding == "face":
            return load_face_embedder(config.ckpt.identity_ckpt_path)
        return TrunkEmbedding(networks.lpips if networks.lpips is not None else load_lpips(config))

    def encoding_jobs(self, encoder: ClipEncoder, clips: Sequence[Clip], with_mel: bool) -> list[EncodingJob]:
        if with_mel and self.augmented_copies:
            raise UserError(
                "recipe.augmented_copies: the SyncNet of this config takes the mel, of which there are no copies; set "
                "it to 0, or take a SyncNet with audio_features: whisper"
            )
        return encoding_jobs(encoder, clips, self.augmented_copies)

    def draw_window(
        self, config: UNetFileConfig, clips: Sequence[EncodedClip], audio: Audio2Feature
    ) -> DrawWindow | None:
        data = config.data
        if not self.silent_share:
            return None
        with closing(MouthOpenings(data.latent_cache, data.video_fps)) as openings:
            return SilentWindows(clips, audio, data.num_frames, data.audio_feat_length, self.silent_share, openings)


def visited_timesteps(scheduler: DDIMScheduler, num_inference_steps: int) -> Tensor:
    """(num_inference_steps,) timesteps that sampling visits; `scheduler` is not changed."""
    own = DDIMScheduler.from_config(scheduler.config)
    own.set_timesteps(num_inference_steps)
    return own.timesteps.cpu()


def _draw_timestep(total: int, visited: Tensor, generator: torch.Generator) -> Tensor:
    """Three of four from `visited`: a small model that samples in few steps need not learn the ones between them."""
    uniform = torch.randint(0, total, (), generator=generator)
    chosen = visited[torch.randint(0, len(visited), (), generator=generator)]
    return torch.where(torch.rand((), generator=generator) < VISITED_SHARE, chosen, uniform)


def load_face_embedder(path: str) -> nn.Module:
    """InsightFace's recognition network; an empty path is its place under checkpoints/. Raises UserError."""
    # Imported here because onnx is slow to import and few runs need it.
    from latentsync.pretrained.face_embedding import RECOGNITION, FaceEmbedder

    found = project_path(path) if path else RECOGNITION
    require_file(
        found,
        "face_recognition",
        "set recipe.identity_embedding to appearance, or recipe.identity_loss_weight to 0 to train without this loss",
    )
    return FaceEmbedder.from_pretrained(found)
