"""Denoising loop: generates faces from aligned faces and audio tokens.

Legend: B chunks, F frames per chunk, C latent channels, R resolution in pixels, h side of the latents, S tokens per
frame, D width. As in LatentSync, the UNet has 3 C + 1 input channels, and the unconditional branch of classifier-free
guidance uses zero audio embeddings.
"""

from collections.abc import Callable
from contextlib import nullcontext
from inspect import signature

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from latentsync.faces.mask import resize_mask_to_latents
from latentsync.models.unet import UNet3DConditionModel
from latentsync.models.vae import LatentCodec
from latentsync.pipelines.transfer import SideStream, upload
from latentsync.utils.light_diffusers import SchedulerMixin

DECODED_MARGIN = 1  # latent cells decoded around those with a pixel to regenerate, where the decoder is local
StepCallback = Callable[[int, int, Tensor], Tensor | None]


def unet_input(noisy: Tensor, mask: Tensor, masked: Tensor, reference: Tensor) -> Tensor:
    """Concatenate the inputs of the UNet to (B, 3 C + 1, F, h, h). `mask` is (1, 1, 1, h, h), 1 = keep."""
    batch, _, frames, height, width = noisy.shape
    return torch.cat([noisy, mask.expand(batch, 1, frames, height, width), masked, reference], dim=1)


def encode_frames(codec: LatentCodec, pixels: Tensor, still: bool | None = None) -> Tensor:
    """(B, F, 3, R, R) in [-1, 1] -> (B, C, F, h, h). Identical frames are encoded only once.

    `still`: whether the frames of each chunk are identical; None compares them, and the host waits for the device.
    """
    batch, frames = pixels.shape[:2]
    if frames > 1 and (are_still(pixels) if still is None else still):
        return encode_frames(codec, pixels[:, :1]).expand(-1, -1, frames, -1, -1)
    return rearrange(codec.encode(rearrange(pixels, "b f c h w -> (b f) c h w")), "(b f) c h w -> b c f h w", b=batch)


def are_still(pixels: Tensor) -> bool:
    """Whether all frames of each chunk (B, F, ...) are identical."""
    return torch.equal(pixels, pixels[:, :1].expand_as(pixels))


def decode_frames(codec: LatentCodec, latents: Tensor) -> Tensor:
    """(B, C, F, h, h) -> (B, F, 3, R, R)."""
    batch = latents.shape[0]
    return rearrange(codec.decode(rearrange(latents, "b c f h w -> (b f) c h w")), "(b f) c h w -> b f c h w", b=batch)


def shared_noise(codec: LatentCodec, resolution: int, generator: torch.Generator | None = None) -> Tensor:
    """Sample noise (1, C, 1, h, h) to share between all frames of all chunks, for temporal consistency.

    Sampled on the device of the generator (default: CPU), so that a seed gives the same noise on every device.
    """
    size = resolution // codec.factor
    device = generator.device if generator is not None else torch.device("cpu")
    return torch.randn(1, codec.channels, 1, size, size, generator=generator, device=device).to(codec.device)


def guidance_steps(steps: int, share: float) -> range:
    """The steps that use guidance: the given share of all, in the middle of the schedule, at least one.

    At the beginning and at the end guidance changes little and costs as much (Kynkäänniemi et al. 2024, "Applying
    Guidance in a Limited Interval Improves Sample and Distribution Quality in Diffusion Models").
    """
    count = max(1, round(share * steps))
    first = (steps - count) // 2
    return range(first, first + count)


@torch.no_grad()
def denoise_latents(
    unet: UNet3DConditionModel,
    scheduler: SchedulerMixin,
    noise: Tensor,
    mask: Tensor,
    masked: Tensor,
    reference: Tensor,
    audio: Tensor,
    num_inference_steps: int,
    guidance_scale: float,
    eta: float = 0.0,
    generator: torch.Generator | None = None,
    on_step: StepCallback | None = None,
    guidance_share: float = 1.0,
    guidance_in_turn: bool = False,
) -> Tensor:
    """Denoise a batch of chunks and return latents (B, C, F, h, h).

    noise (1, C, 1, h, h); mask (1, 1, 1, h, h); masked, reference (B, C, F, h, h); audio (B, F, S, D).
    Classifier-free guidance (`u + s (c - u)`, a forward pass of a doubled batch) is used for `guidance_scale` > 1;
    `guidance_in_turn` runs its halves one after the other, in half the memory (not with DeepCache, which keeps features
    of one pass). `eta` is used by DDIM only. `on_step(step, timestep, latents)` may return modified latents.
    """
    # Timesteps and coefficients stay on the CPU, where reading them does not wait for the device.
    scheduler.set_timesteps(num_inference_steps)
    timesteps = scheduler.timesteps.cpu()
    on_device = upload(timesteps, masked.device)
    noise_options = {"eta": eta} if "eta" in signature(scheduler.step).parameters else {}
    latents = noise.to(masked).expand_as(masked) * scheduler.init_noise_sigma
    unet.reset_deepcache()
    guided_steps = guidance_steps(len(timesteps), guidance_share) if guidance_scale > 1 else range(0)
    audio = audio.to(unet.dtype)
    silence = torch.zeros_like(audio)
    passes = (
        [(1, silence), (1, audio)]
        if guidance_in_turn and not unet.uses_deepcache
        else [(2, torch.cat([silence, audio]))]
    )
    mask = mask.to(latents)
    for index, timestep in enumerate(timesteps):
        sample = unet_input(scheduler.scale_model_input(latents, timestep), mask, masked, reference)
        sample = sample.to(unet.dtype)
        if index in guided_steps:
            parts = [unet(torch.cat([sample] * copies), on_device[index], tokens).sample for copies, tokens in passes]
            unconditional, conditional = torch.cat(parts).chunk(2)
            prediction = unconditional + guidance_scale * (conditional - unconditional)
        else:
            prediction = unet(sample, on_device[index], audio).sample
        prediction = prediction.to(latents.dtype)
        latents = scheduler.step(prediction, timestep, latents, generator=generator, **noise_options).prev_sample
        if on_step is not None:
            changed = on_step(index, int(timestep), latents)
            latents = latents if changed is None else changed
    return latents


@torch.no_grad()
def regenerate_faces(
    unet: UNet3DConditionModel,
    codec: LatentCodec,
    scheduler: SchedulerMixin,
    pixels: Tensor,
    audio: Tensor,
    mask: Tensor,
    noise: Tensor,
    num_inference_steps: int,
    guidance_scale: float,
    eta: float = 0.0,
    generator: torch.Generator | None = None,
    on_step: StepCallback | None = None,
    reference: Tensor | None = None,
    guidance_share: float = 1.0,
    still: bool | None = None,
    decoding: SideStream | None = None,
    join: Callable[[Tensor], Tensor] | None = None,
    guidance_in_turn: bool = False,
) -> Tensor:
    """Lip-sync aligned faces (B, F, 3, R, R) in [-1, 1] to audio tokens (B, F, S, D); returns faces of the same shape.

    `mask` (1, 1, R, R): 0 = regenerate; all other pixels are returned unchanged. A UNet with `whole_condition`
    also sees the masked pixels.
    `reference` (B, F, 3, R, R): reference frames for the identity; by default the unmasked frames themselves.
    `still`: see `encode_frames`. `decoding`: stream of the decoder, on which the result is; by default the main stream.
    `join(latents)`: joins the latents with those of other chunks; may drop the last frames, which are not decoded then.
    """
    pixels = pixels.to(codec.device, codec.dtype)
    cells = masked_cells(mask, codec.factor) if codec.is_local else None  # before the mask is on the device
    mask = upload(mask, codec.device).to(pixels)
    if reference is None:
        reference_latents = encode_frames(codec, pixels, still)
    else:
        reference_latents = encode_frames(codec, reference.to(pixels))
    masked = encode_frames(codec, pixels if unet.config.whole_condition else pixels * mask, still)
    latents = denoise_latents(
        unet,
        scheduler,
        noise,
        resize_mask_to_latents(mask, (reference_latents.shape[-2], reference_latents.shape[-1])).unsqueeze(2),
        masked,
        reference_latents,
        upload(audio, codec.device).to(codec.dtype),
        num_inference_steps,
        guidance_scale,
        eta,
        generator,
        on_step,
        guidance_share,
        guidance_in_turn,
    )
    if join is not None:
        latents = join(latents)
        pixels = pixels[:, : latents.shape[2]]
    with decoding.after(latents, pixels, mask) if decoding is not None else nullcontext():
        return _decode_masked(codec, latents, pixels, mask, cells)


def _decode_masked(
    codec: LatentCodec, latents: Tensor, pixels: Tensor, mask: Tensor, cells: tuple[slice, slice] | None
) -> Tensor:
    """Decode latents (B, C, F, h, h), or only their `cells`, and keep the pixels (B, F, 3, R, R) where `mask` is 1."""
    if cells is None:
        return torch.lerp(decode_frames(codec, latents), pixels, mask)
    rows, columns = cells
    height, width = (slice(codec.factor * side.start, codec.factor * side.stop) for side in (rows, columns))
    part = (..., height, width)
    faces = pixels.clone()
    faces[part] = torch.lerp(decode_frames(codec, latents[..., rows, columns]), pixels[part], mask[part])
    return faces


def masked_cells(mask: Tensor, factor: int) -> tuple[slice, slice]:
    """Rows and columns of the latent cells to decode: those with a pixel to regenerate, and one around them.

    mask (1, 1, R, R), 1 = keep; `factor` pixels a cell.
    """
    cells = F.max_pool2d(1 - mask.float(), factor)[0, 0] > 0
    sides = []
    for axis in (1, 0):
        found = cells.any(axis).nonzero()
        first, last = int(found.min()) - DECODED_MARGIN, int(found.max()) + DECODED_MARGIN
        sides.append(slice(max(first, 0), min(last + 1, cells.shape[1 - axis])))
    return sides[0], sides[1]
