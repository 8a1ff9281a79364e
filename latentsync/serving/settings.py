"""The settings of a job service, and the command-line arguments for them."""

import argparse
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from latentsync.options import AUTO, COMPILE_HELP, DTYPES, WEIGHTS, WEIGHTS_HELP, Weights
from latentsync.utils.commands import size
from latentsync.utils.errors import UserError
from latentsync.utils.logs import FORMATS
from latentsync.utils.memory import GIB, default_limit

MIB = 2**20


@dataclass(frozen=True)
class ServingSettings:
    """Settings of one service. Sizes in bytes, times in seconds unless the name says otherwise.

    workspace: folder of the queue, uploads and results; nothing outside it is written.
    workers: number of processes that run jobs; 0 for a process that only submits and reads.
    devices: of the workers, in turn: auto, cpu, cuda, cuda:0, ...
    dtype: precision of the models: float32, float16, bfloat16; None for the device's default.
    weights: see `PipelineBase.store_weights`. compile: compile the models.
    model: the model that "auto" in a job's options stands for.
    max_models: number of pipelines a worker keeps loaded. unload_after_minutes: without a job, a worker unloads them;
        None for never.
    max_queue: maximum number of queued jobs.
    max_upload_bytes: of one file. max_audio_seconds, max_video_seconds, max_pixels (of a frame): limits on its content.
    worker_memory_bytes: of a worker; its job fails beyond it. None: its share of 80% of the machine's memory.
    job_timeout_seconds: time limit of one attempt. max_attempts: how often a job is started if its worker dies.
    lease_seconds: a job whose worker gives no sign of life for this long is lost and queued again.
    keep_results_hours: after this time, files of finished jobs are deleted. quota_bytes: of the workspace; if it is
        exceeded, the files of the oldest finished jobs are deleted. upload_hours: unused uploads are deleted after it.
    min_free_bytes: of the disk; below it, no job is accepted.
    ray_address: Ray cluster that runs the jobs instead of this machine ("auto", or host:port); see
        `latentsync.serving.ray_serve`.
    """

    workspace: Path
    workers: int = 1
    devices: tuple[str, ...] = (AUTO,)
    dtype: str | None = None
    weights: Weights = "full"
    compile: bool = False
    model: str = AUTO
    max_models: int = 2
    unload_after_minutes: float | None = None
    max_queue: int = 1000
    max_upload_bytes: int = 2 * GIB
    max_audio_seconds: float = 3600.0
    max_video_seconds: float = 4 * 3600.0
    max_pixels: int = 4096 * 4096
    worker_memory_bytes: int | None = None
    job_timeout_seconds: float = 6 * 3600.0
    max_attempts: int = 3
    lease_seconds: float = 20.0
    keep_results_hours: float = 7 * 24.0
    quota_bytes: int = 50 * GIB
    upload_hours: float = 2.0
    min_free_bytes: int = 256 * MIB
    ray_address: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "workspace", Path(self.workspace).absolute())
        object.__setattr__(self, "devices", tuple(self.devices))
        if self.workers < 0 or not self.devices:
            raise UserError("workers must be 0 or more, and there must be a device for them")
        for name in ("max_models", "max_queue", "max_upload_bytes", "max_pixels", "max_attempts", "quota_bytes"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, not {getattr(self, name)}")
        times = ("max_audio_seconds", "max_video_seconds", "job_timeout_seconds", "lease_seconds")
        for name in (*times, "keep_results_hours", "upload_hours"):
            if not getattr(self, name) > 0:
                raise UserError(f"{name} must be above 0, not {getattr(self, name)}")
        if self.unload_after_minutes is not None and not self.unload_after_minutes > 0:
            raise UserError(f"unload_after_minutes must be above 0, not {self.unload_after_minutes}")
        if self.worker_memory_bytes is not None and self.worker_memory_bytes < 1:
            raise UserError(f"worker_memory_bytes must be at least 1, not {self.worker_memory_bytes}")
        if self.dtype not in (None, *DTYPES):
            raise UserError(f"dtype must be one of {', '.join(DTYPES)}, not {self.dtype!r}")
        if self.weights not in WEIGHTS:
            raise UserError(f"weights must be one of {', '.join(WEIGHTS)}, not {self.weights!r}")
        if self.min_free_bytes < 0:
            raise UserError(f"min_free_bytes must be 0 or more, not {self.min_free_bytes}")

    @property
    def worker_memory_limit(self) -> int:
        """Bytes of memory that a worker may use."""
        return self.worker_memory_bytes or default_limit(self.workers)

    def as_plain(self) -> dict:
        """JSON-compatible values; `ServingSettings(**plain)` restores them."""
        return asdict(self) | {"workspace": str(self.workspace), "devices": list(self.devices)}


def add_server_arguments(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Add the arguments that API and web UI share, with those of `add_service_arguments`. Returns the group `jobs`."""
    jobs = parser.add_argument_group("jobs")
    add = jobs.add_argument
    add("--workspace", type=Path, default=Path("workspace"), help="folder of jobs and results (default: %(default)s)")
    add("--model", default=AUTO, help="default model of jobs (default: the best present)")
    add(
        "--max_upload_mb",
        type=size,
        default=2048,
        help="maximum size of an uploaded file in MiB (default: %(default)s)",
    )
    add("--ray_address", help="address of a Ray cluster that runs the jobs, see docs/serving.md")
    parser.add_argument("--log_format", choices=FORMATS, help="format of the log lines (default: text)")
    add_service_arguments(parser)
    return jobs


def add_service_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that all commands with a job service share."""
    add = parser.add_argument_group("workers").add_argument
    add("--workers", type=int, default=1, help="number of processes, each with its own models (default: %(default)s)")
    add(
        "--worker_memory_gb",
        type=size,
        help="memory of a process in GiB, beyond which its job fails (default: its share of 80%% of the machine's)",
    )
    add("--devices", nargs="+", default=[AUTO], help="one per worker, in turn: cuda:0 cuda:1 ... (default: auto)")
    add("--dtype", choices=DTYPES, help="precision of the models (default: by device and model)")
    add("--weights", choices=WEIGHTS, default="full", help=WEIGHTS_HELP)
    add("--compile", action="store_true", help=COMPILE_HELP)
    add(
        "--unload_after_minutes",
        type=float,
        metavar="MINUTES",
        help="free the memory of the models after so long without a job (default: never)",
    )
    parser.add_argument(
        "--repair", action="store_true", help="if the job queue is damaged, move it aside and start an empty one"
    )


def server_settings(options: argparse.Namespace, **more: Any) -> ServingSettings:
    """Settings from the arguments of `add_server_arguments`, and `more` of them by name."""
    from latentsync.serving.models import find_model

    find_model(options.model)
    return service_settings(
        options,
        options.workspace,
        model=options.model,
        max_upload_bytes=int(options.max_upload_mb * MIB),
        ray_address=options.ray_address,
        **more,
    )


def service_settings(options: argparse.Namespace, workspace: Path, **more: Any) -> ServingSettings:
    """Settings from the arguments of `add_service_arguments`, and `more` of them by name."""
    memory = options.worker_memory_gb
    return ServingSettings(
        workspace,
        workers=options.workers,
        devices=tuple(options.devices),
        dtype=options.dtype,
        weights=options.weights,
        compile=options.compile,
        unload_after_minutes=options.unload_after_minutes,
        worker_memory_bytes=None if memory is None else int(memory * GIB),
        **more,
    )
