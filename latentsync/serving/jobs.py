"""A job as the service presents it."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from latentsync.options import GenerationOptions
from latentsync.utils.errors import UserError

ROLES = ("video", "audio", "mask")  # of the files that a job may take


class JobState(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        """Whether the job has ended; only a retry changes it then."""
        return self in (JobState.DONE, JobState.FAILED, JobState.CANCELLED)


class JobKind(StrEnum):
    LIPSYNC = "lipsync"
    INTERPOLATE = "interpolate"

    @property
    def roles(self) -> tuple[str, ...]:
        """The files that a job of this kind needs."""
        return ("video", "audio") if self is JobKind.LIPSYNC else ("video",)

    @property
    def optional_roles(self) -> tuple[str, ...]:
        """The files that it may be given as well."""
        return ("mask",) if self is JobKind.LIPSYNC else ()


@dataclass(frozen=True)
class Job:
    """One job at one moment.

    id: 32 hexadecimal digits. inputs: role -> name the file had with the user; for showing, never a path here.
    created, started, finished: seconds since 1970. attempts: how often it was begun. stage, done, total: progress of
    the running attempt, in frames. eta_seconds: until its end, None while unknown. error: what went wrong, in words for
    the user. result: the finished file, None where there is none or where it has aged out (`expired`). position: jobs
    that come before it in the queue.
    """

    id: str
    kind: JobKind
    state: JobState
    options: GenerationOptions
    inputs: dict[str, str]
    created: float
    started: float | None = None
    finished: float | None = None
    attempts: int = 0
    stage: str = ""
    done: int = 0
    total: int = 0
    eta_seconds: float | None = None
    error: str | None = None
    result: Path | None = None
    expired: bool = False
    position: int | None = None


@dataclass(frozen=True)
class ServiceStats:
    """The service at one moment.

    counts: jobs by state. queue_length: those that wait. workers_alive: of all processes on this workspace.
    models_loaded: by these workers. disk_used: bytes of the workspace. durations: seconds that the last finished jobs
    took, newest first.
    """

    counts: dict[JobState, int]
    queue_length: int
    workers_alive: int
    models_loaded: tuple[str, ...]
    disk_used: int
    durations: tuple[float, ...]


class JobNotFound(UserError):
    """No job has this id."""


class QueueFull(UserError):
    """As many jobs wait as may."""


class InsufficientSpace(UserError):
    """The disk or the quota has no room for another job."""


class WrongState(UserError):
    """The job's state does not allow this."""
