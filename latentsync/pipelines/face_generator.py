"""Generation of lip-synced faces from aligned faces and audio.

Legend: B chunks, F frames, R resolution, S tokens per frame, D width, N audio samples.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from latentsync.faces.color import match_color
from latentsync.faces.mask import load_mask
from latentsync.options import GenerationOptions
from latentsync.pipelines.base import PipelineBase
from latentsync.pipelines.denoise import regenerate_faces, shared_noise
from latentsync.pipelines.run import Run, make_generator, resolve_options
from latentsync.pipelines.sampling import Callback, PipelineCallback, Sampling
from latentsync.utils.errors import UserError

SAMPLE_RATE = 16000
NUM_FRAMES = 16


class FaceGenerator(PipelineBase):
    """Pipeline for aligned faces, without video input and output; see `speak`."""

    def speak(
        self,
        faces: np.ndarray | Tensor,
        audio: np.ndarray | Tensor,
        reference: np.ndarray | Tensor | None = None,
        options: GenerationOptions | None = None,
        *,
        run: Run | None = None,
        **changes: Any,
    ) -> Tensor:
        """Generate lip-synced faces from aligned faces and audio.

        Args:
            faces: aligned faces of consecutive frames, (F, R, R, 3) uint8 RGB, denoised in chunks of `num_frames`; or
                (B, F, R, R, 3): B chunks, denoised as one batch.
            audio: tokens of `pipeline.audio_encoder`, (F, S, D) or (B, F, S, D); or a waveform (N,) at 16 kHz, float
                in [-1, 1] or int16, which is encoded at the frame rate `video_fps`.
            reference: reference frames for the identity, of the same shape as `faces`; by default `faces`.
            options: see `latentsync.options`. Used here: inference_steps, guidance_scale, seed, solver,
                enable_deepcache, chunk_batch_size, vram_efficient, match_color, enable_upscale, enhancer,
                mask_image_path, video_fps.
            run: resolved settings, instead of `options` and `changes`.
            changes: single options, and num_frames, eta, generator, callback, callback_steps, callback_on_step_end;
                see `frames`.

        Returns:
            float32 on the CPU, in [0, 255], of the same shape as `faces`; larger R after upscaling.

        Raises:
            UserError: invalid option, or non-finite model output.
        """
        faces, audio = torch.as_tensor(faces), torch.as_tensor(audio)
        reference = None if reference is None else torch.as_tensor(reference)
        _check_faces(faces, reference)
        if run is None:
            run = self._prepare(options, **{"height": faces.shape[-2], **changes})
        if audio.ndim == 1:
            audio = self.audio_encoder.stream(audio.numpy(), run.fps, len(faces)).chunks(0, len(faces))
        if faces.ndim == 5:
            return self._denoise(faces, audio, reference, run)
        generated = []
        for start, count in split_chunks(len(faces), run.num_frames, run.chunks_at_once):
            size = min(run.num_frames, len(faces) - start)
            part, shape = slice(start, start + count * size), (count, size)
            batch = self._denoise(
                faces[part].unflatten(0, shape),
                audio[part].unflatten(0, shape),
                None if reference is None else reference[part].unflatten(0, shape),
                run,
            )
            generated.append(batch.flatten(0, 1))
        return torch.cat(generated)

    def _denoise(self, faces: Tensor, tokens: Tensor, reference: Tensor | None, run: Run) -> Tensor:
        """Denoise a batch of chunks: faces (B, F, R, R, 3) uint8, tokens (B, F, S, D); see `speak`."""
        run.watch.begin(faces.shape[0] * faces.shape[1])
        pixels = _to_pixel_values(faces)
        with self._modes(run.options):
            generated = regenerate_faces(
                self.unet,
                self.codec,
                run.sampling.scheduler(self.scheduler),
                pixels,
                tokens,
                run.mask,
                run.noise,
                run.sampling.num_inference_steps,
                run.sampling.guidance_scale,
                run.sampling.eta,
                run.sampling.generator,
                run.on_step,
                None if reference is None else _to_pixel_values(reference),
            )
        if not torch.isfinite(generated).all():
            remedy = "the checkpoint is damaged" if self.dtype == torch.float32 else "use float32"
            raise UserError(f"the model output is not finite: {remedy}")
        if self.match_color or run.options.match_color:
            original = pixels.to(generated.device).flatten(0, 1)
            generated = match_color(generated.flatten(0, 1), original).unflatten(0, generated.shape[:2])
        if run.enhancer is not None:
            generated = run.enhancer(generated.flatten(0, 1)).unflatten(0, generated.shape[:2])
        return ((generated.float().clamp(-1, 1) + 1) * 127.5).permute(0, 1, 3, 4, 2).cpu()

    def _prepare(
        self,
        options: GenerationOptions | None,
        *,
        num_frames: int = NUM_FRAMES,
        height: int | None = None,
        width: int | None = None,
        audio_sample_rate: int = SAMPLE_RATE,
        eta: float = 0.0,
        generator: torch.Generator | None = None,
        callback: Callback | None = None,
        callback_steps: int = 1,
        callback_on_step_end: PipelineCallback | None = None,
        **changes: Any,
    ) -> Run:
        """Resolve and validate the settings of a run. Raises UserError for invalid ones."""
        given = resolve_options(options, changes)
        steps = self.num_inference_steps if given.inference_steps is None else given.inference_steps
        guidance_scale = self.guidance_scale if given.guidance_scale is None else given.guidance_scale
        resolved = resolve_options(given, {"inference_steps": steps, "guidance_scale": guidance_scale})
        limit = self.unet.config.max_frames
        if num_frames < 1 or (limit is not None and num_frames > limit):
            raise UserError(f"num_frames must be 1 to {limit or 'any number'} with this UNet, not {num_frames}")
        if audio_sample_rate != SAMPLE_RATE:
            raise UserError(
                f"audio_sample_rate must be {SAMPLE_RATE}, the sample rate of Whisper, not {audio_sample_rate}"
            )
        resolution = self._working_resolution(height, width)
        generator = make_generator(resolved.seed) if generator is None else generator
        sampling = Sampling(
            steps,
            guidance_scale,
            eta,
            generator,
            callback,
            callback_steps,
            resolved.solver,
            None if callback_on_step_end is None else partial(callback_on_step_end, self),
        )
        sampling.scheduler(self.scheduler)  # validates the settings
        mask = load_mask(resolution, resolved.mask_image_path)
        noise = shared_noise(self.codec, resolution, generator)
        return Run(resolved, sampling, num_frames, resolution, mask, noise, self._enhancer(resolved))

    def _working_resolution(self, height: int | None, width: int | None) -> int:
        resolution = height or width or self.resolution
        if (width or resolution) != resolution:
            raise UserError(f"faces are square: height {height} and width {width} must be equal")
        if resolution % (8 * self.codec.factor):
            raise UserError(f"resolution {resolution} must be a multiple of {8 * self.codec.factor}")
        return resolution


def split_chunks(total: int, size: int, at_once: int) -> Iterator[tuple[int, int]]:
    """Split `total` frames into batches of up to `at_once` chunks of `size` frames; yields (first frame, chunks).

    The remaining frames form a shorter chunk.
    """
    whole = total // size
    for first in range(0, whole, at_once):
        yield first * size, min(at_once, whole - first)
    if total % size:
        yield whole * size, 1


def _check_faces(faces: Tensor, reference: Tensor | None) -> None:
    if (
        faces.dtype != torch.uint8
        or faces.ndim not in (4, 5)
        or faces.shape[-1] != 3
        or faces.shape[-2] != faces.shape[-3]
    ):
        raise ValueError(f"faces must be (F, R, R, 3) or (B, F, R, R, 3) uint8, got {tuple(faces.shape)} {faces.dtype}")
    if reference is not None and (reference.dtype, reference.shape) != (faces.dtype, faces.shape):
        raise ValueError(f"reference {tuple(reference.shape)} {reference.dtype} does not match the faces")


def _to_pixel_values(faces: Tensor) -> Tensor:
    """(B, F, R, R, 3) uint8 -> (B, F, 3, R, R) float32 in [-1, 1]."""
    return faces.permute(0, 1, 4, 2, 3).float() / 127.5 - 1
