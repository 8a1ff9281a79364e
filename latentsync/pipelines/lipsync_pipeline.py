"""A video (or a picture) and a voice in, the same video speaking that voice out, frame by frame as a stream."""

import logging
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler
from torch import Tensor
from tqdm import tqdm

from latentsync.faces.factory import create_detector
from latentsync.faces.mask import blend_weight, load_mask
from latentsync.faces.sharpen import sharpen
from latentsync.faces.tracking import FaceTracker
from latentsync.media.audio import is_silent, load_audio
from latentsync.media.frame import VideoFrame
from latentsync.media.paths import check_output_path
from latentsync.media.probe import VideoInfo, probe_video
from latentsync.media.timeline import open_timeline
from latentsync.media.writer import DEFAULT_CRF, VideoWriter
from latentsync.models.rrdbnet import FaceUpscaler
from latentsync.models.unet import UNet3DConditionModel
from latentsync.models.vae import LatentCodec
from latentsync.pipelines.denoise import regenerate_faces, shared_noise
from latentsync.pipelines.face_stream import FaceAligner, TrackedFrame, face_runs, tracked_frames
from latentsync.utils.affine_transform import AlignRestore
from latentsync.utils.errors import UserError
from latentsync.utils.files import staged_output
from latentsync.utils.threads import Sink, prefetch
from latentsync.whisper.audio2feature import Audio2Feature, AudioFeatureStream

logger = logging.getLogger(__name__)

QUEUE_FRAMES = 16  # frames kept ready on either side of the networks
Callback = Callable[[int, int, Tensor], None]


@dataclass(frozen=True)
class LipsyncResult:
    """What a run made: where it is and how many of its frames had a face to speak with."""

    path: Path
    num_frames: int
    faces: int
    fps: Fraction


@dataclass(frozen=True)
class Sampling:
    """How one run denoises; see `LipsyncPipeline.__call__`."""

    num_inference_steps: int
    guidance_scale: float
    eta: float
    generator: torch.Generator | None
    callback: Callback | None
    callback_steps: int

    def __post_init__(self) -> None:
        if self.num_inference_steps < 1:
            raise UserError(f"inference steps must be 1 or more, not {self.num_inference_steps}")
        if not math.isfinite(self.guidance_scale) or self.guidance_scale < 0:
            raise UserError(f"guidance scale must be a number from 1 (off) to about 3, not {self.guidance_scale}")
        if not 0 <= self.eta <= 1:
            raise UserError(f"eta must lie between 0 and 1, not {self.eta}")
        if self.callback_steps < 1:
            raise UserError(f"callback_steps must be 1 or more, not {self.callback_steps}")

    def on_step(self, step: int, timestep: int, latents: Tensor) -> None:
        if self.callback is not None and step % self.callback_steps == 0:
            self.callback(step, timestep, latents)


class LipsyncPipeline:
    """The networks of one model and the stream that feeds them.

    Args:
        vae: autoencoder, or the `LatentCodec` around it.
        audio_encoder: Whisper features.
        unet: denoiser; its inputs are two latents more than the autoencoder's channels, see `unet_input`.
        scheduler: DDIM with the configuration the UNet was trained with.
        resolution: side of the aligned faces in pixels; by default from the UNet's `sample_size`.
        num_inference_steps, guidance_scale: what the model runs best with, used where a call gives none.
        blend_inset: how far inside the mask the paste begins, as a share of the face's side; see `blend_weight`.
        upscaler: enlarges regenerated faces before they are pasted back.

    Raises:
        UserError: UNet, autoencoder and audio encoder do not fit each other.
    """

    def __init__(
        self,
        vae: AutoencoderKL | LatentCodec,
        audio_encoder: Audio2Feature,
        unet: UNet3DConditionModel,
        scheduler: DDIMScheduler,
        resolution: int | None = None,
        *,
        num_inference_steps: int = 20,
        guidance_scale: float = 1.5,
        blend_inset: float = 0.0,
        upscaler: FaceUpscaler | None = None,
    ):
        self.codec = vae if isinstance(vae, LatentCodec) else LatentCodec(vae)
        self.audio_encoder, self.unet, self.scheduler = audio_encoder, unet, scheduler
        self.resolution = resolution or unet.config.sample_size * self.codec.factor
        self.num_inference_steps, self.guidance_scale = num_inference_steps, guidance_scale
        self.blend_inset, self.upscaler = blend_inset, upscaler
        self._check_fit()

    def _check_fit(self) -> None:
        channels, config = self.codec.channels, self.unet.config
        if (config.in_channels, config.out_channels) != (3 * channels + 1, channels):
            raise UserError(
                f"UNet ({config.in_channels} channels in, {config.out_channels} out) and autoencoder ({channels} "
                f"latent channels) do not belong together: {3 * channels + 1} in and {channels} out are needed; "
                "check the config and the checkpoints"
            )
        if self.audio_encoder.width != config.cross_attention_dim:
            raise UserError(
                f"the UNet listens to features of width {config.cross_attention_dim}, the Whisper checkpoint gives "
                f"{self.audio_encoder.width}: use tiny for 384 and small for 768"
            )

    @property
    def device(self) -> torch.device:
        return self.codec.device

    def to(self, device: str | torch.device, dtype: torch.dtype | None = None) -> "LipsyncPipeline":
        """Move all networks (the audio encoder keeps float32); returns self."""
        self.codec.to(device, dtype)
        self.unet.to(device, dtype)
        self.audio_encoder.to(device)
        if self.upscaler is not None:
            self.upscaler.to(device, dtype)
        return self

    def __call__(
        self,
        video_path: str | Path,
        audio_path: str | Path,
        video_out_path: str | Path,
        num_frames: int = 16,
        video_fps: float | Fraction = 25,
        audio_sample_rate: int = 16000,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        weight_dtype: torch.dtype | None = None,
        eta: float = 0.0,
        mask_image_path: str | Path | None = None,
        temp_dir: str | Path | None = None,
        generator: torch.Generator | None = None,
        callback: Callback | None = None,
        callback_steps: int = 1,
        *,
        face: str = "largest",
        detector: str = "auto",
        keep_fps: bool = False,
        on_short_video: str = "loop",
        crf: int = DEFAULT_CRF,
        sharpness_factor: float = 1.0,
        chunk_batch_size: int = 1,
        progress: bool = False,
    ) -> LipsyncResult:
        """Make `video_out_path`: as long as the audio, the audio as its sound, the chosen person speaking it.

        Args:
            num_frames: frames denoised together; frames at 25 per second in the published models.
            video_fps: frame rate of the result.
            audio_sample_rate: what the audio encoder hears; 16000 is the only rate Whisper knows.
            height, width: side of the aligned faces, the model's resolution unless given; must be equal.
            num_inference_steps, guidance_scale: by default the model's own; guidance of 1 or less is off.
            eta: DDIM's share of fresh noise, 0 to 1.
            weight_dtype: cast the UNet and the autoencoder first.
            mask_image_path: another mask (white = keep) instead of the one the checkpoints were trained with.
            temp_dir: where the unfinished file lies until it is done; beside the result unless given.
            generator: source of the noise; the same seed gives the same video.
            callback: called as callback(step, timestep, latents) every `callback_steps` steps of each batch of chunks.
                An exception in it stops the run and leaves nothing behind.
            face: whom to choose where there are several: largest, left, right, a number from the left, or x,y.
            detector: auto, mediapipe or insightface.
            keep_fps: the source's frame rate instead of `video_fps`.
            on_short_video: loop (forward, backward, ...), freeze or error, when the audio outlasts the video.
            crf: quality of the one lossy encode, lower is better.
            sharpness_factor: of the regenerated face, 1 = untouched.
            chunk_batch_size: chunks denoised at once: faster on a large GPU, the same result.

        Raises:
            UserError: anything the user can mend; nothing is written and an existing result is left as it was.
        """
        steps = self.num_inference_steps if num_inference_steps is None else num_inference_steps
        guidance = self.guidance_scale if guidance_scale is None else guidance_scale
        sampling = Sampling(steps, guidance, eta, generator, callback, callback_steps)
        if steps > (longest := self.scheduler.config.num_train_timesteps):
            raise UserError(f"inference steps must be at most {longest}, the scheduler's, not {steps}")
        check_output_path(video_out_path, [video_path, audio_path])
        self._check_amounts(num_frames, video_fps, sharpness_factor, chunk_batch_size)
        resolution = self._working_resolution(height, width, audio_sample_rate)
        if weight_dtype is not None:
            self.to(self.device, weight_dtype)
        info = probe_video(video_path)
        wave = load_audio(audio_path, audio_sample_rate)
        if is_silent(wave):
            logger.warning("%s is silent: there is nothing to speak", audio_path)
        fps = info.fps if keep_fps and not info.is_still else Fraction(video_fps).limit_denominator(1001)
        duration = Fraction(len(wave), audio_sample_rate)
        audio = self.audio_encoder.stream(wave, fps)
        mask = load_mask(resolution, mask_image_path)
        weight = blend_weight(mask, self.blend_inset)
        aligner = AlignRestore(resolution=resolution)
        noise = shared_noise(self.codec, resolution, generator)

        faces = 0

        def finish(item: TrackedFrame, pixels: np.ndarray | None) -> None:
            writer.write(item.frame if pixels is None else paste(item, pixels, aligner, weight, sharpness_factor))

        with (
            closing(self._find_faces(info, duration, fps, on_short_video, face, detector, aligner)) as found,
            staged_output(video_out_path, temp_dir) as path,
            VideoWriter(
                path,
                info.width,
                info.height,
                fps,
                color=info.color,
                sample_aspect_ratio=info.sample_aspect_ratio,
                crf=crf,
                audio=audio_path,
            ) as writer,
            Sink(lambda pair: finish(*pair), QUEUE_FRAMES) as sink,
            tqdm(total=len(audio), unit="frame", desc="lip-sync", disable=not progress, leave=False) as bar,
        ):
            for batch in run_batches(face_runs(found, num_frames), chunk_batch_size):
                for item, pixels in self._speak(batch, audio, mask, noise, sampling):
                    faces += pixels is not None
                    sink.put((item, pixels))
                    bar.update()
            bar.set_description("finishing")
            if not faces:
                wanted = "" if face == "largest" else f" that is the chosen one ({face})"
                raise UserError(f"{video_path}: no face{wanted} was found in any frame; use a video that shows one")
        if missing := len(audio) - faces:
            logger.warning("%s: %d of %d frames show no such face: passed through", video_path, missing, len(audio))
        return LipsyncResult(Path(video_out_path), len(audio), faces, fps)

    def _check_amounts(
        self, num_frames: int, video_fps: float | Fraction, sharpness_factor: float, chunk_batch_size: int
    ) -> None:
        limit = self.unet.config.max_frames
        if num_frames < 1 or (limit is not None and num_frames > limit):
            raise UserError(f"num_frames must be 1 to {limit or 'any number'} with this UNet, not {num_frames}")
        if not 1 <= video_fps <= 1000:
            raise UserError(f"video_fps must lie between 1 and 1000, not {video_fps}")
        if not 0 <= sharpness_factor < math.inf:
            raise UserError(f"sharpness_factor must be 0 or more, not {sharpness_factor}")
        if chunk_batch_size < 1:
            raise UserError(f"chunk_batch_size must be 1 or more, not {chunk_batch_size}")

    def _working_resolution(self, height: int | None, width: int | None, audio_sample_rate: int) -> int:
        resolution = height or width or self.resolution
        if (width or resolution) != resolution:
            raise UserError(f"faces are square: height {height} and width {width} must be equal")
        if resolution % (8 * self.codec.factor):
            raise UserError(f"resolution {resolution} must be a multiple of {8 * self.codec.factor}")
        if audio_sample_rate != 16000:
            raise UserError(f"audio_sample_rate must be 16000 (what Whisper hears), not {audio_sample_rate}")
        return resolution

    def _find_faces(
        self,
        info: VideoInfo,
        duration: Fraction,
        fps: Fraction,
        on_short_video: str,
        face: str,
        detector: str,
        aligner: AlignRestore,
    ) -> Iterator[TrackedFrame]:
        """Every frame of the result with its aligned face, decoded and searched ahead in a thread."""
        with (
            closing(open_timeline(info, duration, fps, on_short_video)) as timeline,
            closing(create_detector(detector, str(self.device), static=info.is_still)) as finder,
        ):
            tracker = FaceTracker(finder, face, fps=float(fps))
            yield from prefetch(tracked_frames(timeline, FaceAligner(tracker, aligner)), QUEUE_FRAMES)

    def _speak(
        self,
        batch: list[list[TrackedFrame]],
        audio: AudioFeatureStream,
        mask: Tensor,
        noise: Tensor,
        sampling: Sampling,
    ) -> Iterator[tuple[TrackedFrame, np.ndarray | None]]:
        """Pairs of a frame and its new face, (R, R, 3) float32 in 0..255; None where there is no face."""
        if batch[0][0].face is None:
            yield batch[0][0], None
            return
        pixels = np.stack([[item.face.pixels for item in run] for run in batch])
        tokens = torch.stack([audio.chunks(run[0].index, run[-1].index + 1) for run in batch])
        spoken = self.regenerate(torch.from_numpy(pixels), tokens, mask, noise, sampling)
        for run, faces in zip(batch, spoken, strict=True):
            yield from zip(run, faces.numpy(), strict=True)

    def regenerate(self, faces: Tensor, tokens: Tensor, mask: Tensor, noise: Tensor, sampling: Sampling) -> Tensor:
        """Faces (B, F, R, R, 3) uint8 and audio (B, F, S, D) -> speaking faces, float32 0..255, larger if upscaled."""
        pixels = faces.permute(0, 1, 4, 2, 3).float() / 127.5 - 1
        spoken = regenerate_faces(
            self.unet,
            self.codec,
            self.scheduler,
            pixels,
            tokens,
            mask,
            noise,
            sampling.num_inference_steps,
            sampling.guidance_scale,
            sampling.eta,
            sampling.generator,
            sampling.on_step,
        )
        if not torch.isfinite(spoken).all():
            remedy = "the checkpoint is damaged" if self.codec.dtype == torch.float32 else "use float32"
            raise UserError(f"the model's result is not a number: {remedy}")
        if self.upscaler is not None:
            spoken = self.upscaler(spoken.flatten(0, 1)).unflatten(0, spoken.shape[:2])
        return ((spoken.float().clamp(-1, 1) + 1) * 127.5).permute(0, 1, 3, 4, 2).cpu()


def run_batches(runs: Iterable[list[TrackedFrame]], size: int) -> Iterator[list[list[TrackedFrame]]]:
    """Up to `size` consecutive runs of equal length together; a frame without a face comes alone."""
    batch: list[list[TrackedFrame]] = []
    for run in runs:
        fits = run[0].face is not None and batch and len(run) == len(batch[0]) and batch[0][0].face is not None
        if batch and (not fits or len(batch) == size):
            yield batch
            batch = []
        batch.append(run)
    if batch:
        yield batch


def paste(
    item: TrackedFrame, pixels: np.ndarray, aligner: AlignRestore, weight: np.ndarray, sharpness_factor: float
) -> VideoFrame:
    """Put the regenerated part (`weight`) of a face (R, R, 3) back; every other sample stays as decoded."""
    pixels = sharpen(pixels, sharpness_factor)
    box, rgb, alpha = aligner.paste_region((item.frame.height, item.frame.width), pixels, item.face.matrix, weight)
    return item.frame.blend_rgb(box[0], box[1], rgb, alpha)
