"""What is done for a job: the one place where its options become arguments. Local workers and Ray call it alike."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

import torch

from latentsync.media.interpolation import change_frame_rate
from latentsync.serving.jobs import JobKind
from latentsync.serving.models import ModelCache
from latentsync.serving.options import JobOptions
from latentsync.utils.errors import UserError

DEFAULT_TARGET_FPS = 50.0
OnProgress = Callable[[str, int, int], None]


class Runner(Protocol):
    """Does jobs for a worker: here (`LocalRunner`) or elsewhere (`latentsync.serving.ray_serve.RayRunner`)."""

    def __call__(
        self, kind: JobKind, options: JobOptions, files: Mapping[str, Path], out: Path, on_progress: OnProgress
    ) -> None:
        """As `run_job`."""

    def models(self) -> tuple[str, ...]:
        """Names of the models that are loaded."""


class LocalRunner:
    """Runs jobs in this process. max_seconds: longest result."""

    def __init__(self, cache: ModelCache, max_seconds: float | None = None) -> None:
        self.cache, self.max_seconds = cache, max_seconds

    def __call__(
        self, kind: JobKind, options: JobOptions, files: Mapping[str, Path], out: Path, on_progress: OnProgress
    ) -> None:
        run_job(kind, options, files, out, self.cache, on_progress, max_seconds=self.max_seconds)

    def models(self) -> tuple[str, ...]:
        return self.cache.names


def run_job(
    kind: JobKind,
    options: JobOptions,
    files: Mapping[str, Path],
    out: Path,
    models: ModelCache,
    on_progress: OnProgress,
    *,
    max_seconds: float | None = None,
) -> None:
    """Write the result of a job to `out` (.mp4), whole or not at all.

    Args:
        files: by role: video, and for lip-sync audio.
        models: where pipelines are kept between jobs.
        on_progress: on_progress(stage, done, total) in frames; an exception in it stops the job and goes to the caller.
        max_seconds: longest result; the header of an upload may say less than is in it.

    Raises:
        UserError: anything the user can mend, in one line.
    """
    on_progress("loading", 0, 0)
    if kind is JobKind.INTERPOLATE:
        change_frame_rate(
            files["video"],
            out,
            options.interpolate or DEFAULT_TARGET_FPS,
            device=str(models.device),
            crf=options.crf,
            on_progress=on_progress,
        )
        return
    try:
        _lipsync(options, files, out, models, on_progress, max_seconds)
    except torch.OutOfMemoryError as error:
        models.clear()
        raise UserError("the GPU ran out of memory; take a smaller model, or try again when it is less busy") from error


def _lipsync(
    options: JobOptions,
    files: Mapping[str, Path],
    out: Path,
    models: ModelCache,
    on_progress: OnProgress,
    max_seconds: float | None,
) -> None:
    pipeline = models.get(options)
    limits = [seconds for seconds in (options.preview_seconds, max_seconds) if seconds is not None]
    pipeline(
        files["video"],
        files["audio"],
        out,
        num_inference_steps=options.inference_steps,
        guidance_scale=options.guidance_scale,
        generator=_generator(options.seed),
        face=options.face,
        detector=options.detector,
        keep_fps=options.keep_fps,
        on_short_video=options.on_short_video,
        crf=options.crf,
        sharpness_factor=options.sharpness_factor,
        solver=options.solver,
        interpolate=options.interpolate,
        max_seconds=min(limits, default=None),
        on_progress=on_progress,
    )


def _generator(seed: int) -> torch.Generator:
    generator = torch.Generator()
    if seed == -1:
        generator.seed()
        return generator
    return generator.manual_seed(seed)
