"""Run one job, in a local worker or in a Ray replica."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import torch

from latentsync.faces.presence import require_face
from latentsync.media.interpolation import change_frame_rate
from latentsync.options import GenerationOptions
from latentsync.serving.jobs import AUDIO_ROLES, JobKind
from latentsync.serving.models import ModelCache
from latentsync.utils.errors import UserError
from latentsync.utils.progress import OnProgress, Progress

DEFAULT_TARGET_FPS = 50.0


class Runner(Protocol):
    """Runs jobs for a worker: here (`LocalRunner`) or elsewhere (`latentsync.serving.ray_serve.RayRunner`)."""

    def __call__(
        self, kind: JobKind, options: GenerationOptions, files: Mapping[str, Path], out: Path, on_progress: OnProgress
    ) -> None:
        """See `run_job`."""

    def models(self) -> tuple[str, ...]:
        """Names of the loaded models."""

    def unload(self) -> None:
        """Free the memory of the loaded models."""


class LocalRunner:
    """Runs jobs in this process. max_seconds: maximum duration of a result."""

    def __init__(self, cache: ModelCache, max_seconds: float | None = None) -> None:
        self.cache, self.max_seconds = cache, max_seconds

    def __call__(
        self, kind: JobKind, options: GenerationOptions, files: Mapping[str, Path], out: Path, on_progress: OnProgress
    ) -> None:
        run_job(kind, options, files, out, self.cache, on_progress, max_seconds=self.max_seconds)

    def models(self) -> tuple[str, ...]:
        return self.cache.names

    def unload(self) -> None:
        self.cache.clear()


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
    """Run a job and write its result to `out`, whole or not at all.

    Args:
        files: paths by role, see `JobKind`.
        models: cache of pipelines between jobs.
        on_progress: called with the progress; an exception in it stops the job and is propagated.
        max_seconds: maximum duration of the result; the header of an upload may understate its duration.

    Raises:
        UserError: a problem that the user can fix.
    """
    if kind is JobKind.LIPSYNC:
        on_progress(Progress("checking"))
        require_face(files["video"], options.detector, str(models.device))
    on_progress(Progress("loading"))
    if kind is JobKind.INTERPOLATE:
        change_frame_rate(
            files["video"],
            out,
            options.interpolate or DEFAULT_TARGET_FPS,
            device=str(models.device),
            codec=options.codec,
            crf=options.crf,
            on_progress=on_progress,
        )
        return
    limits = [seconds for seconds in (options.max_seconds, max_seconds) if seconds is not None]
    given = {
        "mask_image_path": files.get("mask"),
        "script": files.get("script"),
        "max_seconds": min(limits, default=None),
    }
    chosen = options.model_copy(update=given)
    try:
        audio = (
            {role: files[role] for role in AUDIO_ROLES if role in files} if "script" in files else files.get("audio")
        )
        models.get(options)(files["video"], audio, out, on_progress=on_progress, options=chosen)
    except torch.OutOfMemoryError as error:
        models.clear()
        remedy = "turn on vram_efficient, use a smaller model, or try again when the GPU is less busy"
        raise UserError(f"the GPU ran out of memory; {remedy}") from error
