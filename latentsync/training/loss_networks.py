"""The frozen networks that losses look through, loaded as a config asks for them."""

from dataclasses import dataclass

import torch
from torch import nn

from latentsync.models.patchgan import PatchDiscriminator
from latentsync.models.perceptual import LPIPS
from latentsync.models.syncnets import SYNCNET_SCHEMAS, make_syncnet
from latentsync.training.decode_region import region_box
from latentsync.training.extra_losses import TrunkEmbedding
from latentsync.training.sync_supervision import SyncSupervision
from latentsync.trepa.loss import CHECKPOINT as TREPA_CHECKPOINT
from latentsync.trepa.loss import TREPALoss
from latentsync.utils.checkpoints import load_checkpoint, load_into
from latentsync.utils.config import UNetFileConfig
from latentsync.utils.errors import UserError
from latentsync.utils.registry import project_path
from latentsync.utils.syncnet_config import SyncNetFileConfig, load_syncnet_config

WITHOUT_SYNC = "set run.use_syncnet to false to train without this loss"


@dataclass
class LossNetworks:
    """What the losses of a run look through; None where the run does not ask for it."""

    lpips: nn.Module | None = None
    trepa: nn.Module | None = None
    sync: SyncSupervision | None = None
    discriminator: PatchDiscriminator | None = None
    embedder: nn.Module | None = None

    @property
    def needs_mel(self) -> bool:
        """Whether batches must carry the SyncNet mel."""
        return self.sync is not None and self.sync.batch_key == "mel"


def load_loss_networks(config: UNetFileConfig, num_layers: int) -> LossNetworks:
    """Load what `config.run` asks for, on the CPU.

    Args:
        num_layers: Whisper states of a row, as `SyncSupervision` takes it.

    Raises:
        UserError: weights are missing or damaged; the message names the key that turns the loss off.
    """
    run, ckpt = config.run, config.ckpt
    networks = LossNetworks()
    by_appearance = run.identity_loss_weight and run.identity_embedding == "appearance"
    if run.pixel_space_supervise and (run.perceptual_loss_weight or by_appearance):
        path = project_path(ckpt.perceptual_ckpt_path) if ckpt.perceptual_ckpt_path else None
        lpips = LPIPS(path, random_trunk=run.perceptual_random_trunk, seed=run.seed)
        networks.lpips = lpips if run.perceptual_loss_weight else None
        networks.embedder = TrunkEmbedding(lpips) if by_appearance else None
    if run.identity_loss_weight and run.identity_embedding == "face":
        networks.embedder = load_face_embedder(ckpt.identity_ckpt_path)
    if run.pixel_space_supervise and run.trepa_loss_weight:
        path = project_path(ckpt.trepa_ckpt_path) if ckpt.trepa_ckpt_path else TREPA_CHECKPOINT
        networks.trepa = TREPALoss("cpu", path, with_cp=run.enable_gradient_checkpointing)
    if run.use_syncnet:
        networks.sync = load_sync_supervision(config, num_layers)
    if run.adversarial_loss_weight:
        networks.discriminator = build_discriminator(config)
    return networks


def load_face_embedder(path: str) -> nn.Module:
    """InsightFace's recognition network; an empty path is its place under checkpoints/."""
    # Here, because onnx takes a while to import and few runs need it.
    from latentsync.models.face_embedding import RECOGNITION, FaceEmbedder

    found = project_path(path) if path else RECOGNITION
    if not found.is_file():
        raise UserError(
            f"{found}: the face recognition network of the identity loss is not there; fetch buffalo_l with"
            " insightface, set run.identity_embedding to appearance, or run.identity_loss_weight to 0"
        )
    return FaceEmbedder.from_pretrained(found)


def build_discriminator(config: UNetFileConfig) -> PatchDiscriminator:
    """Fresh from the seed, for mouths at the config's resolution."""
    top, bottom, left, right = region_box("mouth", config.data.resolution)
    torch.manual_seed(config.run.seed)
    return PatchDiscriminator.for_images(bottom - top, right - left)


def load_sync_supervision(config: UNetFileConfig, num_layers: int) -> SyncSupervision:
    """The SyncNet that `data.syncnet_config_path` describes, with the weights it names.

    Raises:
        UserError: there is no config, no weights, or it looks at something that this run does not make.
    """
    if not config.data.syncnet_config_path:
        raise UserError(f"data.syncnet_config_path is empty: name the config of a trained SyncNet, or {WITHOUT_SYNC}")
    path = project_path(config.data.syncnet_config_path)
    syncnet = load_syncnet_config(path, *SYNCNET_SCHEMAS)
    _check_fit(config, syncnet)
    weights = syncnet.ckpt.inference_ckpt_path
    if not weights or not project_path(weights).is_file():
        raise UserError(
            f"{path}: ckpt.inference_ckpt_path {weights!r} is no file: the sync loss needs a trained SyncNet; "
            f"{WITHOUT_SYNC}"
        )
    net = load_into(lambda: make_syncnet(syncnet.model), load_checkpoint(project_path(weights)), exact=True)
    return SyncSupervision(
        net,
        num_frames=syncnet.data.num_frames,
        channels=syncnet.model.visual_encoder.in_channels // syncnet.data.num_frames,
        latent_space=syncnet.data.latent_space,
        lower_half=syncnet.data.lower_half,
        resolution=syncnet.data.resolution,
        audio_features=syncnet.data.audio_features,
        num_layers=num_layers,
        audio_feat_length=config.data.audio_feat_length,
    )


def _check_fit(config: UNetFileConfig, syncnet: SyncNetFileConfig) -> None:
    frames, wanted = config.data.num_frames, syncnet.data.num_frames
    if frames < wanted:
        raise UserError(
            f"data.num_frames is {frames}, the SyncNet of data.syncnet_config_path looks at {wanted}; raise num_frames,"
            f" or {WITHOUT_SYNC}"
        )
    if not syncnet.data.latent_space and not config.run.pixel_space_supervise:
        raise UserError(
            "use_syncnet needs decoded frames, for the SyncNet of data.syncnet_config_path looks at pixels; set "
            "pixel_space_supervise to true as well, or name a SyncNet config with latent_space: true"
        )
