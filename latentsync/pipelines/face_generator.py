"""Generates lip-synced faces from aligned faces and audio: the only place where the model runs on faces.

Letters: B chunks, F frames, R resolution, S tokens of a frame, D width, N audio samples.
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
    """A pipeline without video: see `speak`."""

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
        """Generate lip-synced faces from aligned faces: the only place where the model runs on faces.

        Args:
            faces: (F, R, R, 3) uint8 RGB, aligned faces of consecutive frames, any number of them: they are denoised
                in chunks of `num_frames`. Or (B, F, R, R, 3): B chunks, denoised together.
            audio: tokens (F, S, D), or (B, F, S, D), of `pipeline.audio_encoder`; or a waveform (N,) at 16 kHz, float
                in [-1, 1] or int16, whose tokens are taken at the frame rate `video_fps`.
            reference: frames of the shape of `faces` that show how the person looks; by default the faces themselves.
            options: see `latentsync.options`. Those read here: inference_steps, guidance_scale, seed, solver,
                enable_deepcache, chunk_batch_size, vram_efficient, match_color, enable_upscale, enhancer,
                mask_image_path, video_fps.
            run: settings of a run under way, instead of `options` and `changes`.
            changes: options by name, and num_frames, eta, generator, callback, callback_steps, callback_on_step_end;
                see `frames`.

        Returns:
            float32 of the shape of `faces`, 0 to 255, on the CPU; R is larger after an enhancer.

        Raises:
            UserError: a wrong option, or the model's output is not finite.
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
        made = []
        for start, count in split_chunks(len(faces), run.num_frames, run.chunks_at_once):
            size = min(run.num_frames, len(faces) - start)
            batch = [
                None if part is None else part[start : start + count * size].unflatten(0, (count, size))
                for part in (faces, audio, reference)
            ]
            made.append(self._denoise(*batch, run).flatten(0, 1))
        return torch.cat(made)

    def _denoise(self, faces: Tensor, tokens: Tensor, reference: Tensor | None, run: Run) -> Tensor:
        """One batch of chunks: faces (B, F, R, R, 3) uint8, tokens (B, F, S, D); see `speak`."""
        pixels = _to_pixel_values(faces)
        with self._modes(run.options):
            made = regenerate_faces(
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
                run.sampling.on_step,
                None if reference is None else _to_pixel_values(reference),
            )
        if not torch.isfinite(made).all():
            remedy = "the checkpoint is damaged" if self.dtype == torch.float32 else "use float32"
            raise UserError(f"the model's output is not a number: {remedy}")
        if self.match_color or run.options.match_color:
            given = pixels.to(made.device)
            made = match_color(made.flatten(0, 1), given.flatten(0, 1)).unflatten(0, made.shape[:2])
        if run.enhancer is not None:
            made = run.enhancer(made.flatten(0, 1)).unflatten(0, made.shape[:2])
        return ((made.float().clamp(-1, 1) + 1) * 127.5).permute(0, 1, 3, 4, 2).cpu()

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
        """Resolve the settings of one run. Raises UserError for those that cannot be used."""
        given = resolve_options(options, changes)
        own = {"inference_steps": self.num_inference_steps, "guidance_scale": self.guidance_scale}
        resolved = resolve_options(given, {name: value for name, value in own.items() if getattr(given, name) is None})
        limit = self.unet.config.max_frames
        if num_frames < 1 or (limit is not None and num_frames > limit):
            raise UserError(f"num_frames must be 1 to {limit or 'any number'} with this UNet, not {num_frames}")
        if audio_sample_rate != SAMPLE_RATE:
            raise UserError(
                f"audio_sample_rate must be {SAMPLE_RATE}, the only rate of Whisper, not {audio_sample_rate}"
            )
        resolution = self._working_resolution(height, width)
        generator = make_generator(resolved.seed) if generator is None else generator
        sampling = Sampling(
            resolved.inference_steps,
            resolved.guidance_scale,
            eta,
            generator,
            callback,
            callback_steps,
            resolved.solver,
            None if callback_on_step_end is None else partial(callback_on_step_end, self),
        )
        sampling.scheduler(self.scheduler)  # refuses what it cannot do
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
    """(first frame, chunks) of each batch that `total` frames are denoised in: chunks of `size`, `at_once` together.

    Frames left over at the end form a shorter chunk of their own.
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
