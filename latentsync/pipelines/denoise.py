"""From aligned faces and audio tokens to generated faces: tensors in, tensors out.

Letters: B chunks, F frames of a chunk, C latent channels, R resolution in pixels, h side of the latents, S tokens,
D width. The arithmetic is that of LatentSync: thirteen input channels, classifier-free guidance with zero audio as the
unconditional branch, DDIM.
"""

from collections.abc import Callable
from inspect import signature

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from latentsync.faces.mask import resize_mask_to_latents
from latentsync.models.unet import UNet3DConditionModel
from latentsync.models.vae import LatentCodec
from latentsync.utils.light_diffusers import SchedulerMixin

DECODED_MARGIN = 1  # latent cells decoded around those with a pixel to regenerate, where the decoder is local
StepCallback = Callable[[int, int, Tensor], Tensor | None]


def unet_input(noisy: Tensor, mask: Tensor, masked: Tensor, reference: Tensor) -> Tensor:
    """Stack the input channels of the UNet: (B, C + 1 + C + C, F, h, h). `mask` is (1, 1, 1, h, h), 1 = keep."""
    batch, _, frames, height, width = noisy.shape
    return torch.cat([noisy, mask.expand(batch, 1, frames, height, width), masked, reference], dim=1)


def encode_frames(codec: LatentCodec, pixels: Tensor) -> Tensor:
    """(B, F, 3, R, R) in [-1, 1] -> (B, C, F, h, h). Equal frames are encoded once."""
    batch, frames = pixels.shape[:2]
    if frames > 1 and torch.equal(pixels, pixels[:, :1].expand_as(pixels)):
        return encode_frames(codec, pixels[:, :1]).expand(-1, -1, frames, -1, -1)
    return rearrange(codec.encode(rearrange(pixels, "b f c h w -> (b f) c h w")), "(b f) c h w -> b c f h w", b=batch)


def decode_frames(codec: LatentCodec, latents: Tensor) -> Tensor:
    """(B, C, F, h, h) -> (B, F, 3, R, R)."""
    batch = latents.shape[0]
    return rearrange(codec.decode(rearrange(latents, "b c f h w -> (b f) c h w")), "(b f) c h w -> b f c h w", b=batch)


def shared_noise(codec: LatentCodec, resolution: int, generator: torch.Generator | None = None) -> Tensor:
    """One noise image (1, C, 1, h, h), repeated over all frames of all chunks, which keeps neighboring frames alike.

    Sampled on the generator's device (the CPU without one), so that a seed gives the same noise on every device.
    """
    size = resolution // codec.factor
    device = generator.device if generator is not None else torch.device("cpu")
    return torch.randn(1, codec.channels, 1, size, size, generator=generator, device=device).to(codec.device)


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
) -> Tensor:
    """Run the sampler over a batch of chunks.

    noise (1, C, 1, h, h); mask (1, 1, 1, h, h); masked, reference (B, C, F, h, h); audio (B, F, S, D).
    Guidance (`u + s (c - u)`, one forward of a doubled batch) only for `guidance_scale` > 1; `eta` only with DDIM.
    `on_step(step, timestep, latents)` may return other latents to continue with. Returns (B, C, F, h, h).
    """
    guided = guidance_scale > 1
    noise_options = {"eta": eta} if "eta" in signature(scheduler.step).parameters else {}
    latents = noise.to(masked).expand_as(masked) * scheduler.init_noise_sigma
    scheduler.set_timesteps(num_inference_steps, device=masked.device)
    unet.reset_deepcache()
    tokens = torch.cat([torch.zeros_like(audio), audio]) if guided else audio
    for index, timestep in enumerate(scheduler.timesteps):
        sample = unet_input(scheduler.scale_model_input(latents, timestep), mask.to(latents), masked, reference)
        prediction = unet(torch.cat([sample, sample]) if guided else sample, timestep, tokens).sample
        if guided:
            unconditional, conditional = prediction.chunk(2)
            prediction = unconditional + guidance_scale * (conditional - unconditional)
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
) -> Tensor:
    """Aligned faces (B, F, 3, R, R) in [-1, 1] and their audio (B, F, S, D) -> lip-synced faces of the same shape.

    `mask` (1, 1, R, R): pixels where it is 0 are regenerated, the others returned as given.
    `reference` (B, F, 3, R, R): frames that show how the person looks; by default the frames themselves, unmasked.
    """
    pixels = pixels.to(codec.device, codec.dtype)
    mask = mask.to(pixels)
    reference_latents = encode_frames(codec, pixels if reference is None else reference.to(pixels))
    masked = encode_frames(codec, pixels * mask)
    latents = denoise_latents(
        unet,
        scheduler,
        noise,
        resize_mask_to_latents(mask, reference_latents.shape[-2:]).unsqueeze(2),
        masked,
        reference_latents,
        audio.to(codec.device, codec.dtype),
        num_inference_steps,
        guidance_scale,
        eta,
        generator,
        on_step,
    )
    if not codec.is_local:
        return torch.lerp(decode_frames(codec, latents), pixels, mask)
    rows, columns = masked_cells(mask, codec.factor)
    part = (..., *(slice(codec.factor * side.start, codec.factor * side.stop) for side in (rows, columns)))
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
