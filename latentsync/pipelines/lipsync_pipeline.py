"""Streaming lip-sync pipeline: generates a lip-synced video from a video or image and an audio input."""

import logging
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import replace
from fractions import Fraction
from itertools import chain, cycle, islice, tee
from pathlib import Path
from typing import Any

import numpy as np
import torch

from latentsync.constants import SAMPLE_RATE
from latentsync.faces.chunks import Chunk, batch_chunks, face_chunks
from latentsync.faces.contour import MeshFinder
from latentsync.faces.mask import blend_weight
from latentsync.faces.texture import DetailRestorer
from latentsync.faces.video import Selection, TrackedFrame, track_people
from latentsync.media.codecs import video_codec
from latentsync.media.frame import VideoFrame
from latentsync.media.frame_rate import FrameRateConverter
from latentsync.media.interpolation import open_interpolator
from latentsync.media.paths import check_output_path
from latentsync.media.sources import AudioInput, VideoInput, is_path
from latentsync.options import GenerationOptions
from latentsync.pipelines.clip import Clip, Files
from latentsync.pipelines.crossfade import CrossFade
from latentsync.pipelines.face_generator import NUM_FRAMES, FaceGenerator, PendingFaces
from latentsync.pipelines.opening import open_clip
from latentsync.pipelines.people import resolve_faces
from latentsync.pipelines.progress import ProgressReport, Work
from latentsync.pipelines.report import FrameLog, open_log
from latentsync.pipelines.result import QUEUE_FRAMES, Finisher, GeneratedFace, LipsyncResult, Paste, ResultFile
from latentsync.pipelines.run import Run
from latentsync.pipelines.sampling import Callback
from latentsync.utils.affine_transform import AlignRestore
from latentsync.utils.errors import UserError
from latentsync.utils.progress import OnProgress
from latentsync.utils.rates import exact_rate
from latentsync.utils.threads import prefetch
from latentsync.whisper.windows import AudioFeatureStream

logger = logging.getLogger(__name__)


class LipsyncPipeline(FaceGenerator):
    """Pipeline for lip-syncing videos. For loading and model settings see `PipelineBase`."""

    def __call__(
        self,
        video_path: VideoInput,
        audio_path: AudioInput | Files | None,
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
        """Lip-sync a video and write it to `video_out_path`, with the given audio.

        Args:
            video_path, audio_path: files, file objects or arrays; see `latentsync.media.sources`. No audio (None) with
                the option `text`; with `script`, the audio files by their names in it, or None for paths.
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
        video_codec(run.options.codec, Path(video_out_path).suffix)
        with open_clip(video_path, audio_path, run.options, self.audio_encoder) as clip:
            with open_log(clip.fps, report_path) as log:
                return self._write(clip, run, video_out_path, temp_dir, log, on_progress, progress)

    def frames(
        self,
        video: VideoInput,
        audio: AudioInput | Files | None,
        options: GenerationOptions | None = None,
        **changes: Any,
    ) -> Iterator[VideoFrame]:
        """Lip-sync a video and yield its frames as they are generated, in constant memory.

        `np.asarray(frame)` is (H, W, 3) uint8 RGB. Frames arrive in chunks. Closing the generator stops the run and
        releases the inputs. If `video` is an iterator, it is consumed in another thread.

        Args:
            video, audio: see `__call__`.
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
            open_clip(video, audio, run.options, self.audio_encoder) as clip,
            closing(self._finisher(clip, run)) as finisher,
            closing(self._generate(clip, run)) as pairs,
        ):
            edited = 0
            for faces in pairs:
                edited += any(pixels is not None for _, pixels in faces)
                yield from finisher.push(faces)
            yield from finisher.flush()
            _check_faces_found(clip, edited)

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
        total, edited = clip.fit.count, 0
        speeds, steps = self._speeds.setdefault(run.pace_key, {}), run.sampling.num_inference_steps
        work = Work(total, steps, QUEUE_FRAMES, speeds, interpolates=run.options.interpolate is not None)
        with (
            closing(self._finisher(clip, run)) as finisher,
            ProgressReport(work, on_progress, shown=progress) as report,
            closing(self._generate(clip, replace(run, watch=report))) as pairs,
            ResultFile(path, clip.info, finisher.fps, clip.audio(), run.options, temp_dir).open(
                finisher, report.wrote
            ) as deliver,
        ):
            for faces in pairs:
                edited += any(pixels is not None for _, pixels in faces)
                deliver(faces)
                log.add([item for item, _ in faces])
                report.frame()
            report.finishing()
            _check_faces_found(clip, edited)
        if unchanged := log.describe(total):
            logger.warning("%s: %s", clip.info.path, unchanged)
        return LipsyncResult(Path(path), finisher.count(total), edited, finisher.fps, tuple(log.passed))

    def _generate(self, clip: Clip, run: Run) -> Generator[list[GeneratedFace], None, None]:
        """Yield, for each frame, the generated face of each speaker."""
        with closing(self._track(clip, run)) as tracked, ExitStack() as stack:
            streams = []
            for number, frames in enumerate(tee(tracked, len(clip.speakers))):
                streams.append(stack.enter_context(closing(self._generate_person(frames, number, clip, run))))
            yield from map(list, zip(*streams, strict=True))

    def _generate_person(
        self, frames: Iterable[tuple[TrackedFrame, ...]], number: int, clip: Clip, run: Run
    ) -> Generator[GeneratedFace, None, None]:
        """Yield the frames with the generated face of a speaker (R, R, 3) float32 in 0..255, or None without a face.

        On CUDA, a batch is awaited only after the next one of its device has been queued, so that no device idles.
        """
        speaker = clip.speakers[number]
        shown = _with_audio_begun((people[number] for people in frames), speaker.features)
        generators: Iterator[LipsyncPipeline] = cycle([self, *self._copies])
        ahead = len(self.devices) if self._queues_work else 0
        pending: deque[tuple[list[Chunk[TrackedFrame]], PendingFaces]] = deque()
        fade = CrossFade()
        for batch in batch_chunks(face_chunks(shown, run.num_frames, run.overlap), run.chunks_at_once):
            if not batch[0].has_face:
                yield from _awaited(pending, 0)
                yield batch[0].frames[0], None
                continue
            faces = np.stack([[item.face.pixels for item in chunk.frames if item.face is not None] for chunk in batch])
            spans = [(chunk.frames[0].index, chunk.frames[-1].index + 1) for chunk in batch]
            tokens = torch.stack([speaker.features.chunks(*span) for span in spans])
            generator = next(generators)
            pending.append((batch, generator.begin(torch.from_numpy(faces), tokens, None, run, fade.of(batch))))
            yield from _awaited(pending, ahead)
        yield from _awaited(pending, 0)

    @property
    def _queues_work(self) -> bool:
        """Whether `begin` returns before the faces are computed."""
        return self.device.type == "cuda"

    def _track(self, clip: Clip, run: Run) -> Generator[tuple[TrackedFrame, ...], None, None]:
        """Yield every output frame with the aligned faces; decoding and tracking run ahead in a thread."""
        detector, device = run.options.detector, str(self.device)
        faces = resolve_faces([speaker.face for speaker in clip.speakers], clip.source, detector, device)
        selections = [Selection(face, speaker.weights) for face, speaker in zip(faces, clip.speakers, strict=True)]
        with closing(clip.fit.open()) as frames:
            tracked = track_people(
                frames,
                run.resolution,
                selections,
                fps=clip.fps,
                min_face=run.options.min_face,
                detector=detector,
                device=device,
                is_still=clip.info.is_still,
                keep_hands=run.options.paste_mask == "contour",
            )
            yield from prefetch(tracked, QUEUE_FRAMES)

    def _finisher(self, clip: Clip, run: Run) -> Finisher:
        options = run.options
        if options.sharpness_factor != 1 and run.enhancer is None:
            logger.info("no enhancer is enabled: sharpness_factor applies a sharpness filter only")
        matches = self.match_detail and run.enhancer is None
        has_contour = options.paste_mask == "contour"
        mesh = MeshFinder() if matches or has_contour else None
        paste = Paste(
            AlignRestore(resolution=run.resolution),
            blend_weight(run.mask, self.blend_inset),
            options.sharpness_factor,
            mesh if has_contour else None,
        )
        converter = self._converter(clip.fps, options.interpolate)
        if converter is not None and clip.info.keeps_hdr:
            raise UserError("interpolate works on SDR only; leave it out, or leave out hdr keep")
        details = [DetailRestorer(mesh) for _ in clip.speakers] if matches and mesh is not None else ()
        return Finisher(paste, clip.fps, converter, details, [speaker.closed for speaker in clip.speakers], mesh)

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


def _with_audio_begun(frames: Iterable[TrackedFrame], features: AudioFeatureStream) -> Iterator[TrackedFrame]:
    """The frames. The first window of audio is encoded in a thread while the first frame is decoded and tracked."""
    remaining = iter(frames)
    with ThreadPoolExecutor(1) as pool:
        begun = pool.submit(features.chunks, 0, 1)
        first = list(islice(remaining, 1))
        begun.result()
    yield from chain(first, remaining)


def _awaited(
    pending: deque[tuple[list[Chunk[TrackedFrame]], PendingFaces]], left: int
) -> Generator[GeneratedFace, None, None]:
    """Await the oldest batches until only `left` are pending; yields their frames and faces."""
    while len(pending) > left:
        batch, faces = pending.popleft()
        for chunk, generated in zip(batch, faces.wait(), strict=True):
            yield from zip(chunk.delivered, generated.numpy(), strict=True)


def _check_faces_found(clip: Clip, edited: int) -> None:
    """Raise UserError if someone speaks, and no face was edited."""
    if edited or not any(speaker.weights.any() for speaker in clip.speakers):
        return
    face = clip.speakers[0].face
    wanted = "" if face == "largest" else f" that matches the selection ({face})"
    raise UserError(f"{clip.info.path}: no face{wanted} was found in any frame; use a video that shows one")
