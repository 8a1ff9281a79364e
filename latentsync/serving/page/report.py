"""Inputs and options of a job, as a table on the page and as a file to download."""

import html
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from latentsync import __version__
from latentsync.options import OPTIONS
from latentsync.serving.jobs import Job
from latentsync.serving.page.options_form import label
from latentsync.utils.files import write_text
from latentsync.utils.progress import duration

REPORT = "report.json"


def settings_html(job: Job) -> str:
    """The settings of a job that are not the defaults."""
    rows = {"Inputs": ", ".join(job.inputs.values())}
    if job.tags:
        rows["Tags"] = ", ".join(job.tags)
    if job.started and job.finished:
        rows["Duration"] = duration(job.finished - job.started)
    changed = job.options.model_dump(mode="json", exclude_defaults=True)
    rows |= {label(name): f"{value:g}" if isinstance(value, float) else str(value) for name, value in changed.items()}
    if not changed:
        rows["Settings"] = "the defaults"
    cells = "".join(
        f"<tr><th scope=row>{html.escape(name)}</th><td>{html.escape(text)}</td></tr>" for name, text in rows.items()
    )
    return f'<table class="settings">{cells}</table>'


def report(job: Job) -> dict[str, Any]:
    """Inputs, options, times and version of a job, ready for JSON."""
    times = {name: _iso(getattr(job, name)) for name in ("created", "started", "finished")}
    return {
        "id": job.id,
        "kind": job.kind.value,
        "state": job.state.value,
        "inputs": job.inputs,
        "options": {name: value for name, value in job.options.model_dump(mode="json").items() if name in OPTIONS},
        **times,
        "frames": job.total,
        "attempts": job.attempts,
        "error": job.error,
        "tags": list(job.tags),
        "version": __version__,
    }


def write_report(job: Job, folder: Path) -> Path:
    """Write the report into the folder of the job. Raises UserError if that is not possible."""
    path = folder / REPORT
    write_text(path, lambda file: json.dump(report(job), file, indent=2))
    return path


def _iso(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
