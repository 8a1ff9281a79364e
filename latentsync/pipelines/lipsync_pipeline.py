"""A video (or a picture) and a voice in, the same video speaking that voice out, frame by frame as a stream."""

import logging
import math
from collections.abc import Iterable, Iterator
from contextlib import closing
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler
from torch import Tensor

from latentsync.faces.colour import match_colour
from latentsync.faces.factory import create_detector
from latentsync.faces.mask import blend_weight, load_mask
from latentsync.faces.tracking import FaceTracker
from latentsync.media.audio import MIN_AUDIO_SECONDS, SpooledAudio
from latentsync.media.frame_rate import FrameRateConverter
from latentsync.media.interpolation import open_interpolator
from latentsync.media.paths import check_output_path
from latentsync.media.probe import VideoInfo, probe_video
from latentsync.media.timeline import open_timeline
from latentsync.media.writer import DEFAULT_CRF
from latentsync.models.enhancers import FaceEnhancer
from latentsync.models.unet import UNet3DConditionModel
from latentsync.models.vae import LatentCodec
from latentsync.pipelines.denoise import regenerate_faces, shared_noise
from latentsync.pipelines.face_stream import FaceAligner, TrackedFrame, face_runs, tracked_frames
from latentsync.pipelines.progress import Progress, ProgressReport
from latentsync.pipelines.result import QUEUE_FRAMES, LipsyncResult, Paste, ResultFile
from latentsync.pipelines.sampling import DDIM, Callback, Sampling
from latentsync.utils.affine_transform import AlignRestore
from latentsync.utils.errors import UserError
from latentsync.utils.threads import prefetch
from latentsync.whisper.audio2feature import Audio2Feature, AudioFeatureStream

logger = logging.getLogger(__name__)

MAX_FPS = 1000


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
        match_colour: give the skin of regenerated faces the colour that it has in the frame.
        enhancer: works on regenerated faces before they are pasted back.

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
        match_colour: bool = False,
        enhancer: FaceEnhancer | None = None,
    ):
        self.codec = vae if isinstance(vae, LatentCodec) else LatentCodec(vae)
        self.audio_encoder, self.unet, self.scheduler = audio_encoder, unet, scheduler
        self.resolution = resolution or unet.config.sample_size * self.codec.factor
        self.num_inference_steps, self.guidance_scale = num_inference_steps, guidance_scale
        self.blend_inset, self.match_colour, self.enhancer = blend_inset, match_colour, enhancer
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
        if self.enhancer is not None:
            self.enhancer.to(device, dtype)
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
        solver: str = DDIM,
        interpolate: float | None = None,
        max_seconds: float | None = None,
        on_progress: Progress | None = None,
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
            solver: ddim, or dpm++ (the same end point in fewer steps).
            interpolate: frame rate of the result, with frames in between made by `latentsync.media.interpolation`.
            max_seconds: stop after so much of the audio, for a preview.
            on_progress: called as on_progress(stage, done, total) for every frame; stages are "preparing", "lip-sync"
                and "finishing". An exception in it stops the run, as one in `callback`.
            progress: show a bar.

        Raises:
            UserError: anything the user can mend; nothing is written and an existing result is left as it was.
        """
        steps = self.num_inference_steps if num_inference_steps is None else num_inference_steps
        guidance = self.guidance_scale if guidance_scale is None else guidance_scale
        sampling = Sampling(steps, guidance, eta, generator, callback, callback_steps, solver)
        sampling.scheduler(self.scheduler)  # refuses what it cannot do
        check_output_path(video_out_path, [video_path, audio_path])
        self._check_amounts(num_frames, video_fps, sharpness_factor, chunk_batch_size)
        resolution = self._working_resolution(height, width, audio_sample_rate)
        if weight_dtype is not None:
            self.to(self.device, weight_dtype)
        info = probe_video(video_path)
        wave = load_voice(audio_path, audio_sample_rate, max_seconds)
        fps = info.fps if keep_fps and not info.is_still else Fraction(video_fps).limit_denominator(1001)
        converter = self._converter(fps, interpolate)
        duration = Fraction(len(wave), audio_sample_rate)
        audio = self.audio_encoder.stream(wave, fps)
        mask = load_mask(resolution, mask_image_path)
        aligner = AlignRestore(resolution=resolution)
        noise = shared_noise(self.codec, resolution, generator)
        paste = Paste(aligner, blend_weight(mask, self.blend_inset), sharpness_factor)
        if sharpness_factor != 1 and self.enhancer is None:
            logger.info("no enhancing network is in use: the new face is sharpened by a filter alone")
        file = ResultFile(video_out_path, info, fps, audio_path, crf, max_seconds, temp_dir)

        faces = 0
        with (
            closing(self._find_faces(info, duration, fps, on_short_video, face, detector, aligner)) as found,
            file.open(paste, converter) as deliver,
            ProgressReport(len(audio), on_progress, shown=progress) as report,
        ):
            for batch in run_batches(face_runs(found, num_frames), chunk_batch_size):
                for item, pixels in self._speak(batch, audio, mask, noise, sampling):
                    faces += pixels is not None
                    deliver(item, pixels)
                    report.frame()
            report.finishing()
            if not faces:
                wanted = "" if face == "largest" else f" that is the chosen one ({face})"
                raise UserError(f"{video_path}: no face{wanted} was found in any frame; use a video that shows one")
        if missing := len(audio) - faces:
            logger.warning("%s: %d of %d frames show no such face: passed through", video_path, missing, len(audio))
        total, rate = (len(audio), fps) if converter is None else (converter.written, converter.target_fps)
        return LipsyncResult(Path(video_out_path), total, faces, rate)

    def _converter(self, fps: Fraction, interpolate: float | None) -> FrameRateConverter | None:
        """For a result of another rate than the model's frames."""
        if interpolate is None:
            return None
        if not fps <= interpolate <= MAX_FPS:
            raise UserError(f"interpolate must lie between the {float(fps):g} frames/s there are and {MAX_FPS}")
        target = Fraction(interpolate).limit_denominator(1001)
        if target == fps:
            return None
        return FrameRateConverter(open_interpolator("auto", str(self.device)), fps, target)

    def _check_amounts(
        self, num_frames: int, video_fps: float | Fraction, sharpness_factor: float, chunk_batch_size: int
    ) -> None:
        limit = self.unet.config.max_frames
        if num_frames < 1 or (limit is not None and num_frames > limit):
            raise UserError(f"num_frames must be 1 to {limit or 'any number'} with this UNet, not {num_frames}")
        if not 1 <= video_fps <= MAX_FPS:
            raise UserError(f"video_fps must lie between 1 and {MAX_FPS}, not {video_fps}")
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
        """Faces (B, F, R, R, 3) uint8 and audio (B, F, S, D) -> speaking faces, float32 0..255, larger if enhanced."""
        pixels = faces.permute(0, 1, 4, 2, 3).float() / 127.5 - 1
        spoken = regenerate_faces(
            self.unet,
            self.codec,
            sampling.scheduler(self.scheduler),
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
        if self.match_colour:
            given = pixels.to(spoken.device)
            spoken = match_colour(spoken.flatten(0, 1), given.flatten(0, 1)).unflatten(0, spoken.shape[:2])
        if self.enhancer is not None:
            spoken = self.enhancer(spoken.flatten(0, 1)).unflatten(0, spoken.shape[:2])
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


def load_voice(path: str | Path, sample_rate: int, max_seconds: float | None = None) -> SpooledAudio:
    """The voice, mono float32 (N,), as far as `max_seconds`; says so when there is nothing in it to speak."""
    if max_seconds is not None and not MIN_AUDIO_SECONDS <= max_seconds < math.inf:
        raise UserError(f"max_seconds must be {MIN_AUDIO_SECONDS} or more, not {max_seconds}")
    wave = SpooledAudio(path, sample_rate, max_seconds)
    if wave.is_silent:
        logger.warning("%s is silent: there is nothing to speak", path)
    return wave
