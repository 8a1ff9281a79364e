"""Run a job, on a local worker or on a Ray replica."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

import torch

from latentsync.media.interpolation import change_frame_rate
from latentsync.options import GenerationOptions
from latentsync.serving.jobs import JobKind
from latentsync.serving.models import ModelCache
from latentsync.utils.errors import UserError

DEFAULT_TARGET_FPS = 50.0
OnProgress = Callable[[str, int, int], None]


class Runner(Protocol):
    """Does jobs for a worker: here (`LocalRunner`) or elsewhere (`latentsync.serving.ray_serve.RayRunner`)."""

    def __call__(
        self, kind: JobKind, options: GenerationOptions, files: Mapping[str, Path], out: Path, on_progress: OnProgress
    ) -> None:
        """As `run_job`."""

    def models(self) -> tuple[str, ...]:
        """Names of the models that are loaded."""


class LocalRunner:
    """Runs jobs in this process. max_seconds: longest result."""

    def __init__(self, cache: ModelCache, max_seconds: float | None = None) -> None:
        self.cache, self.max_seconds = cache, max_seconds

    def __call__(
        self, kind: JobKind, options: GenerationOptions, files: Mapping[str, Path], out: Path, on_progress: OnProgress
    ) -> None:
        run_job(kind, options, files, out, self.cache, on_progress, max_seconds=self.max_seconds)

    def models(self) -> tuple[str, ...]:
        return self.cache.names


def run_job(
    kind: JobKind,
    options: GenerationOptions,
    files: Mapping[str, Path],
    out: Path,
    models: ModelCache,
    on_progress: OnProgress,
    *,
    max_seconds: float | None = None,
) -> None:
    """Write the result of a job to `out` (.mp4), whole or not at all.

    Args:
        files: by role, see `JobKind`.
        models: where pipelines are kept between jobs.
        on_progress: on_progress(stage, done, total) in frames; an exception in it stops the job and goes to the caller.
        max_seconds: longest result; the header of an upload may say less than is in it.

    Raises:
        UserError: anything the user can fix, in one line.
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
    limits = [seconds for seconds in (options.max_seconds, max_seconds) if seconds is not None]
    given = {"mask_image_path": files.get("mask"), "max_seconds": min(limits, default=None)}
    chosen = options.model_copy(update=given)
    try:
        models.get(options)(files["video"], files["audio"], out, on_progress=on_progress, options=chosen)
    except torch.OutOfMemoryError as error:
        models.clear()
        remedy = "turn on vram_efficient, use a smaller model, or try again when the GPU is less busy"
        raise UserError(f"the GPU ran out of memory; {remedy}") from error
