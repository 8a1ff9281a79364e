"""What a lip-sync model makes of aligned faces, without detection and paste-back.

Legend: T frames of a clip, F frames denoised together, R pixels. Faces are (T, 3, R, R) in [-1, 1] on the CPU.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from latentsync.faces.mask import load_mask, resize_mask_to_latents
from latentsync.media.timeline import pingpong_index
from latentsync.options import DEFAULT_SEED
from latentsync.pipelines.denoise import decode_frames, denoise_latents, encode_frames, regenerate_faces, shared_noise
from latentsync.pipelines.lipsync_pipeline import LipsyncPipeline
from latentsync.utils.errors import UserError

FPS = 25
CHUNK = 16  # F, as the pipeline runs


def pingpong(faces: Tensor, num_frames: int) -> Tensor:
    """Faces forward, backward, forward, ... until there are `num_frames`, as inference fills a short video."""
    return faces[[pingpong_index(index, len(faces)) for index in range(num_frames)]]


def reference_start(start: int, run: int, total: int) -> int:
    """First frame of the reference for the frames [start, start + run): about half the clip away, not overlapping them.

    Raises:
        UserError: the clip is too short for both.
    """
    later = min(start + total // 2, total - run)
    if later >= start + run:
        return later
    earlier = max(start - total // 2, 0)
    if earlier + run > start:
        raise UserError(f"a clip of {total} frames has no reference run apart from frames {start} to {start + run - 1}")
    return earlier


class Talker:
    """Runs the networks of a pipeline with the pipeline's own settings; equal inputs give equal results.

    Args:
        pipeline: of `latentsync.loading.load_pipeline`.
        seed: of the noise, the same for every clip.
    """

    def __init__(self, pipeline: LipsyncPipeline, seed: int = DEFAULT_SEED):
        self.pipeline, self.seed = pipeline, seed
        self.mask = load_mask(pipeline.resolution)

    @property
    def resolution(self) -> int:
        """R."""
        return self.pipeline.resolution

    def drive(self, faces: Tensor, wave: np.ndarray) -> Tensor:
        """The faces speaking `wave` (N,), as at inference: each frame is its own reference."""
        parts = []
        for start, chunk, tokens in self._chunks(faces, wave):
            made = regenerate_faces(
                self.pipeline.unet,
                self.pipeline.codec,
                self.pipeline.scheduler,
                chunk[None],
                tokens[None],
                self.mask,
                self._noise(),
                self.pipeline.num_inference_steps,
                self.pipeline.guidance_scale,
            )
            parts.append(_finished(made[0], start))
        return torch.cat(parts)

    def reconstruct(self, faces: Tensor, wave: np.ndarray) -> tuple[Tensor, Tensor]:
        """Rebuild the masked part of each frame from the clip's own sound and a reference run from elsewhere in it.

        Returns:
            rebuilt (T, 3, R, R): what the model makes; and pasted (T, 3, R, R): the reference frames' pixels copied
            into the masked part as they are. Outside the mask both are the frames given.
        """
        rebuilt, pasted = [], []
        for start, chunk, tokens in self._chunks(faces, wave):
            begin = reference_start(start, len(chunk), len(faces))
            reference = faces[begin : begin + len(chunk)]
            rebuilt.append(_finished(self._rebuild(chunk, reference, tokens), start))
            pasted.append(torch.lerp(reference, chunk, self.mask))
        return torch.cat(rebuilt), torch.cat(pasted)

    @torch.no_grad()
    def through_codec(self, faces: Tensor) -> Tensor:
        """The faces encoded and decoded, in the masked part: the best that a UNet could do with this autoencoder."""
        codec = self.pipeline.codec
        made = torch.cat([codec.decode(codec.encode(part)).float().cpu() for part in faces.split(CHUNK)])
        return torch.lerp(made.clamp(-1, 1), faces, self.mask)

    def _rebuild(self, chunk: Tensor, reference: Tensor, tokens: Tensor) -> Tensor:
        """`regenerate_faces` for one chunk (F, 3, R, R), with other frames as reference."""
        codec = self.pipeline.codec
        pixels = chunk[None].to(codec.device, codec.dtype)
        mask = self.mask.to(pixels)
        latents = encode_frames(codec, reference[None].to(pixels))
        made = denoise_latents(
            self.pipeline.unet,
            self.pipeline.scheduler,
            self._noise(),
            resize_mask_to_latents(mask, latents.shape[-2:]).unsqueeze(2),
            encode_frames(codec, pixels * mask),
            latents,
            tokens[None].to(pixels),
            self.pipeline.num_inference_steps,
            self.pipeline.guidance_scale,
        )
        with torch.no_grad():
            return torch.lerp(decode_frames(codec, made), pixels, mask)[0]

    def _chunks(self, faces: Tensor, wave: np.ndarray) -> Iterator[tuple[int, Tensor, Tensor]]:
        """(first frame, faces (F, 3, R, R), tokens (F, S, D)) of run after run."""
        stream = self.pipeline.audio_encoder.stream(wave, FPS, len(faces))
        for start in range(0, len(faces), CHUNK):
            chunk = faces[start : start + CHUNK]
            yield start, chunk, stream.chunks(start, start + len(chunk))

    def _noise(self) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        return shared_noise(self.pipeline.codec, self.resolution, generator)


def _finished(made: Tensor, start: int) -> Tensor:
    if not torch.isfinite(made).all():
        raise UserError(f"the model's result is not a number from frame {start} on: the checkpoint is damaged")
    return made.float().cpu().clamp(-1, 1)
