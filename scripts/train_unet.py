"""Train the UNet: `python -m scripts.train_unet --unet_config_path configs/unet/embedded.yaml`.

Stage 1: reconstruction in latent space from clips encoded once. Running the same command again goes on where the
last saved state stands.
"""

import argparse
import logging
import sys
import time
from collections import defaultdict
from pathlib import Path

import torch
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from safetensors.torch import save_file
from torch.utils.data import DataLoader, WeightedRandomSampler
from tqdm import tqdm

from latentsync.data.clips import read_fileslist
from latentsync.data.latent_dataset import ClipEncoder, LatentClipDataset, file_digest
from latentsync.faces.mask import load_mask, resize_mask_to_latents
from latentsync.loading import load_scheduler
from latentsync.models.unet import UNet3DConditionModel
from latentsync.models.unet_config import UNetConfig
from latentsync.models.vae import LatentCodec
from latentsync.training.reference_copy import start_from_reference
from latentsync.training.stage1 import TrainState, loss_weights, stage1_loss
from latentsync.utils.config import UNetFileConfig, load_unet_config
from latentsync.utils.errors import UserError
from latentsync.whisper.audio2feature import Audio2Feature

logger = logging.getLogger("train_unet")
EMA_DECAY = 0.995
PLENTY = 40  # clips of one person from which on a mirrored, recoloured copy of each is not added


def build_dataset(config: UNetFileConfig, codec: LatentCodec, audio: Audio2Feature, vae_path: Path, mask: torch.Tensor):
    """Encode all clips of the file list (or read them from the cache) and add recoloured copies of rare people."""
    clips = read_fileslist(config.data.train_fileslist, config.data.train_data_dir or None)
    key = file_digest(vae_path / "diffusion_pytorch_model.safetensors")
    encoder = ClipEncoder(codec, audio, mask, Path(config.data.train_output_dir) / "encoded", key)
    per_person = defaultdict(int)
    for clip in clips:
        per_person[clip.person] += 1
    encoded = []
    for index, clip in enumerate(tqdm(clips, desc="encoding clips")):
        rare = per_person[clip.person] < PLENTY
        variants = (0, index + 1) if rare else (index + 1 if index % 2 else 0,)
        encoded += [encoder.encode(clip, variant) for variant in variants]
    return LatentClipDataset(encoded, audio, config.data.num_frames, config.run.seed)


def make_state(config: UNetFileConfig) -> TrainState:
    torch.manual_seed(config.run.seed)
    unet = UNet3DConditionModel(config.model).train()
    if config.run.start_from_reference:
        start_from_reference(unet)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=config.optimizer.lr, betas=(0.9, 0.99), weight_decay=1e-2)
    ema = EMAModel(unet.parameters(), decay=EMA_DECAY, use_ema_warmup=True, inv_gamma=1.0, power=0.75)
    return TrainState(unet, ema, optimizer, torch.Generator().manual_seed(config.run.seed))


def endless(loader: DataLoader):
    while True:
        yield from loader


def train(config: UNetFileConfig, vae_path: Path, whisper_path: Path, scheduler_path: Path) -> Path:
    """Run to `max_train_steps`; returns where the exported weights are."""
    if config.run.pixel_space_supervise or config.model.use_motion_module:
        raise UserError("this trainer does stage 1 only: pixel_space_supervise and use_motion_module must be false")
    codec, scheduler = LatentCodec.from_pretrained(vae_path), load_scheduler(scheduler_path)
    audio = Audio2Feature(whisper_path, "cpu", None, config.data.num_frames, config.data.audio_feat_length)
    pixel_mask = load_mask(config.data.resolution, config.data.mask_image_path or None)
    dataset = build_dataset(config, codec, audio, vae_path, pixel_mask)
    sampler = WeightedRandomSampler(
        dataset.person_weights(), len(dataset), generator=torch.Generator().manual_seed(config.run.seed)
    )
    loader = DataLoader(dataset, config.data.batch_size, sampler=sampler, num_workers=0, drop_last=True)
    size = config.data.resolution // codec.factor
    mask = resize_mask_to_latents(pixel_mask, (size, size)).unsqueeze(2)
    weights = loss_weights(mask)
    state = make_state(config)
    output = Path(config.data.train_output_dir)
    saved = output / "state.pt"
    if saved.is_file():
        state.restore(saved)
        logger.info("going on from step %d", state.step)
    schedule = get_scheduler(
        config.optimizer.lr_scheduler,
        state.optimizer,
        num_warmup_steps=config.optimizer.lr_warmup_steps,
        num_training_steps=config.run.max_train_steps,
    ).lr_lambdas[0]
    logger.info("%.2f M parameters, %d clips", sum(p.numel() for p in state.unet.parameters()) / 1e6, len(dataset))
    alpha = config.run.mixed_noise_alpha if config.run.use_mixed_noise else 0.0
    few = config.run.inference_steps if config.run.train_sampled_timesteps else 0
    started, sums, count = time.monotonic(), defaultdict(float), 0
    for batch in endless(loader):
        if state.step >= config.run.max_train_steps:
            break
        losses = stage1_loss(state.unet, scheduler, batch, mask, weights, alpha, state.generator, few)
        losses["loss"].backward()
        torch.nn.utils.clip_grad_norm_(state.unet.parameters(), config.optimizer.max_grad_norm)
        for group in state.optimizer.param_groups:
            group["lr"] = config.optimizer.lr * schedule(state.step)
        state.optimizer.step()
        state.optimizer.zero_grad(set_to_none=True)
        state.ema.step(state.unet.parameters())
        state.step += 1
        count += 1
        for name, value in losses.items():
            sums[name] += value.item()
        if state.step % 50 == 0:
            means = "  ".join(f"{name} {value / count:.4f}" for name, value in sums.items())
            logger.info("step %d  %s  %.2f s/step", state.step, means, (time.monotonic() - started) / count)
            started, sums, count = time.monotonic(), defaultdict(float), 0
        if state.step % config.ckpt.save_ckpt_steps == 0:
            state.save(saved)
            export(state, output / "unet.safetensors")
    state.save(saved)
    return export(state, output / "unet.safetensors")


def export(state: TrainState, path: Path) -> Path:
    """Write the averaged weights as float16 safetensors, the step beside them as metadata."""
    state.ema.store(state.unet.parameters())
    state.ema.copy_to(state.unet.parameters())
    weights = {name: value.half().contiguous() for name, value in state.unet.state_dict().items()}
    state.ema.restore(state.unet.parameters())
    temporary = path.with_suffix(".tmp")
    save_file(weights, temporary, metadata={"global_step": str(state.step)})
    temporary.replace(path)
    return path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--unet_config_path", required=True, type=Path, help="configs/unet/*.yaml")
    parser.add_argument("--vae_path", type=Path, default=Path("checkpoints/embedded/vae"), help="diffusers VAE folder")
    parser.add_argument(
        "--whisper_path",
        type=Path,
        default=Path("checkpoints/embedded/whisper_tiny_en_encoder.safetensors"),
        help="Whisper encoder the UNet will listen to",
    )
    parser.add_argument(
        "--scheduler_config_path",
        type=Path,
        default=Path("checkpoints/embedded/scheduler_config.json"),
        help="noise schedule and prediction type",
    )
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    try:
        config = load_unet_config(args.unet_config_path, UNetConfig)
        path = train(config, args.vae_path, args.whisper_path, args.scheduler_config_path)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    logger.info("saved to %s", path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
