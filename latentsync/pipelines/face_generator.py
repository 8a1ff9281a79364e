"""Generation of lip-synced faces from aligned faces and audio.

Legend: B chunks, F frames, R resolution, S tokens per frame, D width, N audio samples.
"""

import logging
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from latentsync.constants import SAMPLE_RATE
from latentsync.faces.chunks import batch_chunks, split_chunks
from latentsync.faces.color import match_color
from latentsync.faces.mask import load_mask
from latentsync.models.compiled import run_eagerly
from latentsync.options import AUTO, GenerationOptions
from latentsync.pipelines.base import PipelineBase
from latentsync.pipelines.crossfade import CrossFade, Joint
from latentsync.pipelines.denoise import are_still, regenerate_faces, shared_noise
from latentsync.pipelines.memory import chunks_that_fit, free_memory, peak_memory
from latentsync.pipelines.presets import apply_preset
from latentsync.pipelines.run import Run, make_generator, resolve_options
from latentsync.pipelines.sampling import DDIM, Callback, PipelineCallback, Sampling
from latentsync.pipelines.transfer import Download, SideStream, upload
from latentsync.utils.errors import UserError

logger = logging.getLogger(__name__)

NUM_FRAMES = 16


class PendingFaces:
    """Generated faces that may still be computed. `dtype`: of the model, for the message if they are not finite."""

    def __init__(self, download: Download, dtype: torch.dtype) -> None:
        self._download, self._dtype = download, dtype

    def wait(self) -> Tensor:
        """(B, F, R, R, 3) float32 on the CPU, in [0, 255]. Raises UserError if the model output is not finite."""
        faces, finite = self._download.wait()
        if not finite:
            remedy = "the checkpoint is damaged" if self._dtype == torch.float32 else "use float32"
            raise UserError(f"the model output is not finite: {remedy}")
        return faces.float()


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
                (B, F, R, R, 3): B chunks, denoised as one batch, which do not overlap.
            audio: tokens of `pipeline.audio_encoder`, (F, S, D) or (B, F, S, D); or a waveform (N,) at 16 kHz, float
                in [-1, 1] or int16, which is encoded at the frame rate `video_fps`.
            reference: reference frames for the identity, of the same shape as `faces`; by default `faces`.
                Chunks with other references do not overlap.
            options: see `latentsync.options`. Used here: inference_steps, guidance_scale, seed, solver,
                enable_deepcache, chunk_batch_size, chunk_overlap, vram_efficient, match_color, enable_upscale,
                enhancer, mask_image_path, video_fps.
            run: resolved settings, instead of `options` and `changes`.
            changes: single options, and num_frames, eta, generator, callback, callback_steps, callback_on_step_end;
                see `frames`.

        Returns:
            float32 on the CPU, in [0, 255], of the same shape as `faces`; larger R after upscaling. CUDA devices round
            to whole numbers before the copy.

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
            return self.begin(faces, audio, reference, run).wait()
        chunks = split_chunks(len(faces), run.num_frames, run.overlap if reference is None else 0)
        fade, generated = CrossFade(), []
        for batch in batch_chunks(chunks, run.chunks_at_once):
            index = torch.tensor([list(chunk.frames) for chunk in batch])
            inputs = faces[index], audio[index], None if reference is None else reference[index]
            generated.append(self.begin(*inputs, run, fade.of(batch)).wait().flatten(0, 1))
        return torch.cat(generated)

    def begin(
        self, faces: Tensor, tokens: Tensor, reference: Tensor | None, run: Run, joint: Joint | None = None
    ) -> "PendingFaces":
        """Start to denoise a batch of chunks: faces (B, F, R, R, 3) uint8, tokens (B, F, S, D); see `speak`.

        `joint`: how the chunks overlap others; the frames that the next batch delivers are missing in the result.
        On CUDA this only queues the work, so that the next chunk can be prepared meanwhile.
        """
        count, frames = faces.shape[:2]
        delivered = frames - (0 if joint is None else joint.left)
        run.watch.begin(count * delivered)
        uses_compiled = self._is_compiled and frames == run.num_frames
        if uses_compiled:
            faces, tokens = (repeat_last(values, run.chunks_at_once) for values in (faces, tokens))
            reference = None if reference is None else repeat_last(reference, run.chunks_at_once)
        still = are_still(faces) and reference is None  # on the host; on the device it would wait for the answer
        pixels = _to_pixel_values(faces, self.device)
        decoding = SideStream(self.device, enabled=not run.options.vram_efficient)
        with self._modes(run.options), nullcontext() if uses_compiled else run_eagerly():
            generated = regenerate_faces(
                self.unet,
                self.codec,
                run.scheduler,
                pixels,
                tokens,
                run.mask,
                run.noise,
                run.sampling.num_inference_steps,
                run.sampling.guidance_scale,
                run.sampling.eta,
                run.sampling.generator,
                run.on_step,
                None if reference is None else _to_pixel_values(reference, self.device),
                run.sampling.guidance_share,
                still,
                decoding,
                None if joint is None else partial(_join, joint, count),
                run.options.vram_efficient,
            )
        with decoding.after(pixels):
            generated = generated[:count]
            finite = torch.isfinite(generated).all()
            finished = self._finish(generated, pixels[:count, :delivered], run)
            return PendingFaces(Download(finished, finite), self.dtype)

    def _finish(self, generated: Tensor, pixels: Tensor, run: Run) -> Tensor:
        """Generated and original faces (B, F, 3, R, R) in [-1, 1] -> (B, F, R', R', 3) in [0, 255], uint8 on CUDA."""
        shape = generated.shape[:2]
        if self.match_color or run.options.match_color:
            generated = match_color(generated.flatten(0, 1), pixels.flatten(0, 1)).unflatten(0, shape)
        enhancer = self._enhancer(run.options)  # that of this device
        if enhancer is not None:
            generated = enhancer(generated.flatten(0, 1)).unflatten(0, shape)
        values = ((generated.float().clamp(-1, 1) + 1) * 127.5).permute(0, 1, 3, 4, 2)
        return values.round().to(torch.uint8) if self.device.type == "cuda" else values

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
        resolved, guidance_share = apply_preset(given, self.num_inference_steps, self.guidance_scale)
        resolved = self._with_own_sampling(resolved) if self.one_step or self.few_steps else resolved
        if self._vram_efficient:
            resolved = resolved.model_copy(update={"vram_efficient": True})
        assert resolved.inference_steps and resolved.guidance_scale and resolved.solver
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
            resolved.inference_steps,
            resolved.guidance_scale,
            eta,
            generator,
            callback,
            callback_steps,
            resolved.solver,
            None if callback_on_step_end is None else partial(callback_on_step_end, self),
            guidance_share,
        )
        mask = load_mask(resolution, resolved.mask_image_path)
        noise = shared_noise(self.codec, resolution, generator)
        run = Run(
            resolved,
            sampling,
            sampling.scheduler(self.scheduler),
            num_frames,
            resolution,
            mask,
            noise,
            self._enhancer(resolved),
        )
        return run.with_chunks(self._fitting_chunks(run)) if resolved.chunk_batch_size == AUTO else run

    @property
    def _measures_memory(self) -> bool:
        return self.device.type == "cuda"

    def _fitting_chunks(self, run: Run) -> int:
        """Chunks that fit into free GPU memory, from that of a step on one and on two; 1 on other devices."""
        if not self._measures_memory or run.options.vram_efficient:
            return 1
        key = run.pace_key
        try:
            if key not in self._chunk_memory:
                one, two = (peak_memory(partial(self._try_chunks, run, count), self.device) for count in (1, 2))
                self._chunk_memory[key] = one, two
        except torch.OutOfMemoryError:
            return 1
        return chunks_that_fit(free_memory(self.device), *self._chunk_memory[key])

    def _try_chunks(self, run: Run, count: int) -> None:
        """A step on so many chunks of empty frames, twice: the first are decoded while the second are denoised."""
        side = run.resolution
        faces = torch.zeros(count, run.num_frames, side, side, 3, dtype=torch.uint8)
        faces[:, 0] = 255  # no still image, which would be encoded only once
        tokens = torch.zeros(count, run.num_frames, self.audio_encoder.num_tokens, self.audio_encoder.width)
        sampling = replace(run.sampling, num_inference_steps=1, eta=0.0, callback=None, callback_on_step_end=None)
        trial = replace(run.with_chunks(count), sampling=sampling)
        with run_eagerly():
            for pending in [self.begin(faces, tokens, None, trial) for _ in range(2)]:
                pending.wait()

    def _with_own_sampling(self, options: GenerationOptions) -> GenerationOptions:
        """The options with the sampling that a model of one or a few steps was trained for."""
        own = {"inference_steps": self.num_inference_steps, "guidance_scale": self.guidance_scale, "solver": DDIM}
        if any(getattr(options, name) != value for name, value in own.items()):
            logger.info(
                "%s is for %d steps without guidance: inference_steps, guidance_scale and solver have no effect",
                *(self.name, self.num_inference_steps),
            )
        return options.model_copy(update=own)

    def _working_resolution(self, height: int | None, width: int | None) -> int:
        resolution = height or width or self.resolution
        if (width or resolution) != resolution:
            raise UserError(f"faces are square: height {height} and width {width} must be equal")
        if resolution % (8 * self.codec.factor):
            raise UserError(f"resolution {resolution} must be a multiple of {8 * self.codec.factor}")
        return resolution


def _join(joint: Joint, count: int, latents: Tensor) -> Tensor:
    """Join the first `count` chunks of a padded batch."""
    return repeat_last(joint(latents[:count]), len(latents))


def repeat_last(chunks: Tensor, count: int) -> Tensor:
    """(B, ...) -> (`count`, ...) with repetitions of the last one, if there are fewer."""
    if len(chunks) >= count:
        return chunks
    return torch.cat([chunks, chunks[-1:].expand(count - len(chunks), *chunks.shape[1:])])


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


def _to_pixel_values(faces: Tensor, device: torch.device) -> Tensor:
    """(B, F, R, R, 3) uint8 on the host -> (B, F, 3, R, R) float32 in [-1, 1] on the device."""
    return upload(faces, device).permute(0, 1, 4, 2, 3).float() / 127.5 - 1
