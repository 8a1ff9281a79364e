"""The public view of a job."""

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from latentsync.options import GenerationOptions
from latentsync.utils.errors import UserError

AUDIO_ROLES = ("audio", *(f"audio{number}" for number in range(2, 9)))  # the further ones are for scripts
ROLES = ("video", *AUDIO_ROLES, "mask", "script")  # of a job's input files


class JobState(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        """Whether the job is finished; only a retry changes it then."""
        return self in (JobState.DONE, JobState.FAILED, JobState.CANCELLED)


class JobKind(StrEnum):
    LIPSYNC = "lipsync"
    INTERPOLATE = "interpolate"

    def needed_roles(self, options: GenerationOptions, given: Collection[str] = ()) -> tuple[str, ...]:
        """Files that a job of this kind needs; `given` are those that it has."""
        speaks = self is JobKind.LIPSYNC and options.text is None and "script" not in given
        return ("video", "audio") if speaks else ("video",)

    def accepted_roles(self, options: GenerationOptions, given: Collection[str] = ()) -> tuple[str, ...]:
        """Files that it takes, the needed ones first."""
        more: tuple[str, ...] = ()
        if self is JobKind.LIPSYNC:
            more = ("mask",) if options.text is not None else (*AUDIO_ROLES, "mask", "script")
            if options.text is None and "script" not in given:
                more = ("mask", "script")
        return tuple(dict.fromkeys((*self.needed_roles(options, given), *more)))


@dataclass(frozen=True)
class Metadata:
    """A client's own data of a job. tags: words to find it by. webhook: URL to call when it has ended.
    idempotency_key: a second submission with the same key returns the first job."""

    tags: tuple[str, ...] = ()
    webhook: str | None = None
    idempotency_key: str | None = None


NO_METADATA = Metadata()


@dataclass(frozen=True)
class Job:
    """Snapshot of a job.

    id: 32 hexadecimal digits. inputs: role -> original file name, for display only, never used as a path. created,
    started, finished: seconds since 1970. attempts: number of times it was started. stage, done, total: progress of the
    running attempt, in frames; fraction: of its work, 0 to 1. canceling: it was asked to stop. eta_seconds: estimated
    time until it is done, None if unknown. error: message for the user. result: the finished file; None if there is
    none or it was deleted (`expired`). position: number of jobs before it in the queue. submitter: name of the API key
    that it belongs to, None without one. tags: words of the submitter. webhook: URL that is called when the job has
    ended.
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
    fraction: float = 0.0
    canceling: bool = False
    eta_seconds: float | None = None
    error: str | None = None
    result: Path | None = None
    expired: bool = False
    position: int | None = None
    submitter: str | None = None
    tags: tuple[str, ...] = ()
    webhook: str | None = None


@dataclass(frozen=True)
class ServiceStats:
    """Statistics of the service.

    counts: number of jobs by state. queue_length: queued jobs. workers_alive: of all processes on this workspace.
    models_loaded: by these workers. disk_used: bytes of the workspace. durations: seconds that the most recent finished
    jobs took, newest first.
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
    """The queue is at its limit."""


class InsufficientSpace(UserError):
    """The disk or the quota has no room for another job."""


class WrongState(UserError):
    """The job's state does not allow this."""
