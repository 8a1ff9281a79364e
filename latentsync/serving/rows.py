"""A job as it is stored: a row of the table `jobs` with its columns parsed."""

import json
import sqlite3
from dataclasses import dataclass, fields
from typing import Any

from latentsync.options import GenerationOptions, read_stored
from latentsync.serving.jobs import JobKind, JobState

UNREADABLE = "the stored job cannot be read ({reason}): another version wrote it, or it is damaged; submit it again"
MAX_REASON = 200  # characters
MAX_NUMBER = 2.0**37  # seconds since 1970 of a time before the year 6000


@dataclass(frozen=True)
class Row:
    """A job as it is stored.

    files: role -> file name in the job's folder; result: the same, or None. place: order in the queue. fraction: of the
    work that is done. ends: when the running attempt is expected to end. owner, beat: the worker and its last sign of
    life. cancel: the owner should stop. submitter: name of the API key, None without one. webhook: URL to call at the
    end; webhook_attempts: calls so far. ends and beat are monotonic seconds, the other times seconds since 1970.
    """

    number: int
    id: str
    kind: JobKind
    state: JobState
    options: GenerationOptions
    inputs: dict[str, str]
    files: dict[str, str]
    created: float
    started: float | None
    finished: float | None
    attempts: int
    place: float
    stage: str
    done: int
    total: int
    fraction: float
    ends: float | None
    error: str | None
    result: str | None
    expired: bool
    owner: str | None
    beat: float | None
    cancel: bool
    submitter: str | None
    tags: tuple[str, ...] = ()
    webhook: str | None = None
    webhook_attempts: int = 0

    @classmethod
    def of(cls, row: sqlite3.Row) -> "Row":
        """The job in a row of the table. One that cannot be read is a failed job with a message."""
        values = {field.name: row[field.name] for field in fields(cls)}
        try:
            return cls(**_parse(values))
        except (ValueError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
            return cls(**_unreadable(values, error))


def _parse(values: dict[str, Any]) -> dict[str, Any]:
    """Columns as values of a `Row`. Raises the errors that `Row.of` catches."""
    parsed = dict(values)
    for name in ("inputs", "files"):
        parsed[name] = {str(role): str(file) for role, file in json.loads(values[name]).items()}
    parsed |= {"options": read_stored(values["options"])}
    parsed |= {"kind": JobKind(values["kind"]), "state": JobState(values["state"])}
    parsed["tags"] = tuple(str(tag) for tag in json.loads(values["tags"]))
    for name in ("created", "place", "fraction"):
        parsed[name] = _number(values[name])
    for name in ("started", "finished", "ends", "beat"):
        parsed[name] = None if values[name] is None else _number(values[name])
    for name in ("stage", "error", "result", "owner", "submitter", "webhook"):
        if not isinstance(values[name], str | None):
            raise ValueError(f"{name} is not text")
    for name in ("attempts", "done", "total", "webhook_attempts"):
        parsed[name] = int(values[name])
    return parsed | {name: bool(values[name]) for name in ("expired", "cancel")}


def _number(value: Any) -> float:
    number = float(value)
    if not abs(number) < MAX_NUMBER:
        raise ValueError(f"{number} is out of range")
    return number


def _is_time(value: Any) -> bool:
    return isinstance(value, float) and abs(value) < MAX_NUMBER


def _unreadable(values: dict[str, Any], error: Exception) -> dict[str, Any]:
    reason = " ".join(str(error).split())[:MAX_REASON] or type(error).__name__
    times = {name: values[name] if _is_time(values[name]) else None for name in ("created", "finished")}
    kept = {name: values[name] for name in ("number", "id")}
    kept |= {name: value if isinstance(value := values[name], str) else None for name in ("owner", "submitter")}
    empty: dict[str, Any] = dict.fromkeys(("started", "ends", "beat", "result", "webhook"))
    return (
        empty
        | times
        | kept
        | {
            "kind": JobKind.INTERPOLATE if values["kind"] == JobKind.INTERPOLATE else JobKind.LIPSYNC,
            "state": JobState.FAILED,
            "options": GenerationOptions(),
            "inputs": {},
            "files": {},
            "created": times["created"] or 0.0,
            "attempts": 0,
            "place": 0.0,
            "fraction": 0.0,
            "tags": (),
            "webhook_attempts": 0,
            "stage": "",
            "done": 0,
            "total": 0,
            "error": UNREADABLE.format(reason=reason),
            "expired": bool(values["expired"]),
            "cancel": bool(values["cancel"]),
        }
    )
