"""Streaming lip-sync pipeline: generates a lip-synced video from a video or image and an audio input."""

import logging
from collections.abc import Generator, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch

from latentsync.faces.contour import ContourFinder
from latentsync.faces.mask import blend_weight
from latentsync.faces.video import TrackedFrame, face_runs, track_faces
from latentsync.media.audio import SpooledAudio
from latentsync.media.audio_stream import AudioSource, select_audio
from latentsync.media.frame import VideoFrame
from latentsync.media.frame_rate import FrameRateConverter
from latentsync.media.interpolation import open_interpolator
from latentsync.media.paths import check_output_path
from latentsync.media.probe import VideoInfo
from latentsync.media.sources import AudioInput, VideoInput, VideoSource, audio_file, is_path, open_video
from latentsync.options import GenerationOptions
from latentsync.pipelines.face_generator import NUM_FRAMES, SAMPLE_RATE, FaceGenerator
from latentsync.pipelines.progress import ProgressReport, Work
from latentsync.pipelines.report import FrameLog, open_log
from latentsync.pipelines.result import QUEUE_FRAMES, Finisher, LipsyncResult, Paste, ResultFile
from latentsync.pipelines.run import Run
from latentsync.pipelines.sampling import Callback
from latentsync.utils.affine_transform import AlignRestore
from latentsync.utils.errors import UserError
from latentsync.utils.progress import OnProgress
from latentsync.utils.rates import exact_rate
from latentsync.utils.threads import prefetch
from latentsync.whisper.audio2feature import AudioFeatureStream

logger = logging.getLogger(__name__)

GeneratedFace = tuple[TrackedFrame, np.ndarray | None]


@dataclass(frozen=True)
class Clip:
    """Opened inputs of a run (video, audio, audio features), and frame rate and duration of the output."""

    source: VideoSource
    audio: AudioSource
    features: AudioFeatureStream
    fps: Fraction
    duration: Fraction

    @property
    def info(self) -> VideoInfo:
        return self.source.info


class LipsyncPipeline(FaceGenerator):
    """Pipeline for lip-syncing videos. For loading and model settings see `PipelineBase`."""

    def __call__(
        self,
        video_path: VideoInput,
        audio_path: AudioInput,
        video_out_path: str | Path,
        num_frames: int = NUM_FRAMES,
        video_fps: float | Fraction | None = None,
        audio_sample_rate: int = SAMPLE_RATE,
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
        options: GenerationOptions | None = None,
        on_progress: OnProgress | None = None,
        progress: bool = False,
        report_path: str | Path | None = None,
        **changes: Any,
    ) -> LipsyncResult:
        """Lip-sync a video and write it to `video_out_path`, with the given audio and its duration.

        Args:
            video_path, audio_path: files, file objects or arrays; see `latentsync.media.sources`.
            video_out_path: .mp4, .mov or .mkv.
            audio_sample_rate: must be 16000, the sample rate of Whisper.
            video_fps, num_inference_steps, guidance_scale, mask_image_path: override these options.
            weight_dtype: data type to cast UNet and autoencoder to before the run.
            temp_dir: folder for the unfinished file; by default the output folder.
            options: generation options; see `latentsync.options`. `model`, `lora` and `lora_scale` belong to
                `from_pretrained` and are ignored here.
            on_progress: called with a `latentsync.utils.progress.Progress` after every denoising step and every frame;
                stages are "preparing", "lip-sync" and "finishing". Raise an exception in it to stop the run, as in
                `callback`.
            progress: show a progress bar.
            report_path: JSON file with the face and its confidence for every frame; see docs/inference.md.
            changes: single options that override `options`, and callback_on_step_end.
            num_frames, height, width, eta, generator, callback, callback_steps, callback_on_step_end: see `frames`.

        Raises:
            UserError: invalid input or options. Nothing is written, and an existing output file is kept.
        """
        if weight_dtype is not None:
            self.to(weight_dtype)
        changes |= {
            "video_fps": video_fps,
            "inference_steps": num_inference_steps,
            "guidance_scale": guidance_scale,
            "mask_image_path": mask_image_path,
        }
        run = self._prepare(
            options,
            num_frames=num_frames,
            audio_sample_rate=audio_sample_rate,
            height=height,
            width=width,
            eta=eta,
            generator=generator,
            callback=callback,
            callback_steps=callback_steps,
            **changes,
        )
        check_output_path(video_out_path, [path for path in (video_path, audio_path) if is_path(path)])
        with self._open(video_path, audio_path, run) as clip:
            with open_log(clip.fps, report_path) as log:
                return self._write(clip, run, video_out_path, temp_dir, log, on_progress, progress)

    def frames(
        self,
        video: VideoInput,
        audio: AudioInput,
        options: GenerationOptions | None = None,
        **changes: Any,
    ) -> Iterator[VideoFrame]:
        """Lip-sync a video and yield its frames as they are generated, in constant memory.

        `np.asarray(frame)` is (H, W, 3) uint8 RGB. Frames arrive in chunks. Closing the generator stops the run and
        releases the inputs. If `video` is an iterator, it is consumed in another thread.

        Args:
            video, audio: see `latentsync.media.sources`.
            options: see `latentsync.options`.
            changes: single options that override `options`, and the following arguments.
            num_frames: frames per chunk; the released models were trained with 16.
            height, width: side of the aligned faces; must be equal. Default: the resolution of the model.
            eta: amount of noise added in each DDIM step, 0 (deterministic) to 1.
            generator: random number generator, instead of one seeded with the option `seed`.
            callback: called as callback(step, timestep, latents) every `callback_steps` steps of each batch of chunks.
                Raise an exception in it to stop the run.
            callback_on_step_end: called as callback_on_step_end(pipeline, step, timestep, {"latents": latents}) after
                every step; may return a dictionary with modified latents.

        Raises:
            UserError: invalid input or options, raised on the first frame; or no face in any frame, after the last.
        """
        run = self._prepare(options, **changes)
        with (
            self._open(video, audio, run) as clip,
            closing(self._finisher(clip, run)) as finisher,
            closing(self._generate(clip, run)) as pairs,
        ):
            faces = 0
            for item, pixels in pairs:
                faces += pixels is not None
                yield from finisher.push(item, pixels)
            yield from finisher.flush()
            _check_faces_found(clip.info, run.options.face, faces)

    def _write(
        self,
        clip: Clip,
        run: Run,
        path: str | Path,
        temp_dir: str | Path | None,
        log: FrameLog,
        on_progress: OnProgress | None,
        progress: bool,
    ) -> LipsyncResult:
        """Generate all frames; pasting and encoding run in another thread."""
        total, faces = len(clip.features), 0
        work = Work(total, run.sampling.num_inference_steps, QUEUE_FRAMES, self._speeds.setdefault(run.pace_key, {}))
        with (
            closing(self._finisher(clip, run)) as finisher,
            ProgressReport(work, on_progress, shown=progress) as report,
            closing(self._generate(clip, replace(run, watch=report))) as pairs,
            ResultFile(path, clip.info, finisher.fps, clip.audio, run.options, temp_dir).open(
                finisher, report.wrote
            ) as deliver,
        ):
            for item, pixels in pairs:
                faces += pixels is not None
                deliver(item, pixels)
                log.add(item)
                report.frame()
            report.finishing()
            _check_faces_found(clip.info, run.options.face, faces)
        if unchanged := log.describe(total):
            logger.warning("%s: %s", clip.info.path, unchanged)
        return LipsyncResult(Path(path), finisher.count(total), faces, finisher.fps, tuple(log.passed))

    @contextmanager
    def _open(self, video: VideoInput, audio: AudioInput, run: Run) -> Iterator[Clip]:
        """Open the inputs; temporary files are removed on exit."""
        options = run.options
        with open_video(video) as source, audio_file(audio) as path, ExitStack() as files:
            selected = select_audio(path, options.audio_track, source.info.path)
            wave = files.enter_context(closing(SpooledAudio(selected, SAMPLE_RATE, options.max_seconds)))
            if wave.is_silent:
                logger.warning("%s is silent: the mouth will not move", path)
            keep_fps = options.keep_fps and not source.info.is_still
            fps = source.info.fps if keep_fps else exact_rate(options.video_fps)
            features = self.audio_encoder.stream(wave, fps)
            yield Clip(source, selected, features, fps, Fraction(len(wave), SAMPLE_RATE))

    def _generate(self, clip: Clip, run: Run) -> Generator[GeneratedFace, None, None]:
        """Yield frames with generated faces (R, R, 3) float32 in 0..255, or with None if there is no face."""
        with closing(self._track(clip, run)) as tracked:
            for batch in batch_runs(face_runs(tracked, run.num_frames), run.chunks_at_once):
                if batch[0][0].face is None:
                    yield batch[0][0], None
                    continue
                faces = np.stack([[item.face.pixels for item in chunk if item.face is not None] for chunk in batch])
                tokens = torch.stack([clip.features.chunks(chunk[0].index, chunk[-1].index + 1) for chunk in batch])
                for chunk, generated in zip(batch, self.speak(faces, tokens, run=run), strict=True):
                    yield from zip(chunk, generated.numpy(), strict=True)

    def _track(self, clip: Clip, run: Run) -> Generator[TrackedFrame, None, None]:
        """Yield every output frame with its aligned face; decoding and tracking run ahead in a thread."""
        options = run.options
        with closing(clip.source.open(clip.duration, clip.fps, options.on_short_video)) as frames:
            tracked = track_faces(
                frames,
                run.resolution,
                fps=clip.fps,
                face=options.face,
                min_face=options.min_face,
                detector=options.detector,
                device=str(self.device),
                is_still=clip.info.is_still,
            )
            yield from prefetch(tracked, QUEUE_FRAMES)

    def _finisher(self, clip: Clip, run: Run) -> Finisher:
        options = run.options
        if options.sharpness_factor != 1 and run.enhancer is None:
            logger.info("no enhancer is enabled: sharpness_factor applies a sharpness filter only")
        paste = Paste(
            AlignRestore(resolution=run.resolution),
            blend_weight(run.mask, self.blend_inset),
            options.sharpness_factor,
            ContourFinder() if options.paste_mask == "contour" else None,
        )
        return Finisher(paste, clip.fps, self._converter(clip.fps, options.interpolate))

    def _converter(self, fps: Fraction, interpolate: float | None) -> FrameRateConverter | None:
        """Converter to the output frame rate; None if it is that of the generated frames."""
        target = fps if interpolate is None else exact_rate(interpolate)
        if target == fps:
            return None
        if target < fps:
            raise UserError(
                f"interpolate must be at least {float(fps):g}, the frame rate of the video, not {interpolate:g}"
            )
        return FrameRateConverter(open_interpolator("auto", str(self.device)), fps, target)


def batch_runs(runs: Iterable[list[TrackedFrame]], size: int) -> Iterator[list[list[TrackedFrame]]]:
    """Group up to `size` consecutive runs of equal length; a frame without a face forms its own group."""
    batch: list[list[TrackedFrame]] = []
    for run in runs:
        fits = run[0].face is not None and batch and len(run) == len(batch[0]) and batch[0][0].face is not None
        if batch and (not fits or len(batch) == size):
            yield batch
            batch = []
        batch.append(run)
    if batch:
        yield batch


def _check_faces_found(info: VideoInfo, face: str, faces: int) -> None:
    if not faces:
        wanted = "" if face == "largest" else f" that matches the selection ({face})"
        raise UserError(f"{info.path}: no face{wanted} was found in any frame; use a video that shows one")
