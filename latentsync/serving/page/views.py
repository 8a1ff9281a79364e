"""Texts and thumbnails that describe a job on the page."""

import html
import time
from pathlib import Path
from textwrap import shorten

import cv2
import numpy as np

from latentsync.serving.jobs import Job, JobKind, JobState
from latentsync.utils.progress import duration

STAGES = {
    "": "starting",
    "starting": "starting",
    "loading": "loading the model",
    "preparing": "reading the audio",
    "lip-sync": "generating frames",
    "checking": "looking for a face",
    "interpolation": "interpolating frames",
    "finishing": "writing the file",
}
NAMES = {JobState.CANCELLED: "canceled"}  # where they differ from the values in the API
COLORS = {
    JobState.QUEUED: (120, 120, 120),
    JobState.RUNNING: (60, 100, 170),
    JobState.DONE: (46, 130, 67),
    JobState.FAILED: (170, 60, 60),
    JobState.CANCELLED: (100, 100, 100),
}
MAX_QUOTE = 40  # characters of a text that is spoken
IDLE = '<p class="status">Nothing is running.</p>'


def status_html(job: Job | None) -> str:
    """One line and a progress bar; screen readers announce changes."""
    if job is None:
        return IDLE
    bar = ""
    if job.state is JobState.RUNNING:
        value = f' value="{job.fraction:.3f}" max="1"' if job.fraction else ""
        bar = f'<progress aria-label="progress"{value}></progress>'
    kind = "failed" if job.state is JobState.FAILED else "plain"
    return f'<p class="status {kind}" role="status">{html.escape(sentence(job))}</p>{bar}'


def sentence(job: Job) -> str:
    """The state of a job in one sentence."""
    if job.state is JobState.QUEUED:
        ahead = job.position or 0
        place = f"{ahead} job{'s' * (ahead > 1)} before it" if ahead else "next in the queue"
        return f"Waiting: {place}" + (f", done in about {duration(job.eta_seconds)}." if job.eta_seconds else ".")
    if job.canceling:
        return "Canceling."
    if job.state is JobState.RUNNING:
        frames = f", frame {job.done} of {job.total}" if job.done else ""
        left = f", about {duration(job.eta_seconds)} left" if job.eta_seconds is not None else ""
        again = f" (attempt {job.attempts})" if job.attempts > 1 else ""
        return f"{STAGES.get(job.stage, job.stage).capitalize()}{frames}{left}{again}."
    if job.state is JobState.DONE:
        took = f" in {duration(job.finished - job.started)}" if job.finished and job.started else ""
        return "Its files have expired." if job.expired else f"Done{took}."
    if job.state is JobState.FAILED:
        return f"Failed: {job.error or 'for an unknown reason'}"
    return "Canceled."


def state_name(job: Job) -> str:
    """The state of a job in a word."""
    return "expired" if job.expired else NAMES.get(job.state, job.state.value)


def download_name(job: Job, suffix: str) -> str:
    """Name for a saved result, from those of the inputs: `anna_speech.mp4`."""
    parts = [Path(job.inputs[role]).stem for role in ("video", "audio") if role in job.inputs]
    if job.options.interpolate is not None:
        parts.append(f"{job.options.interpolate:g}fps")
    if job.options.max_seconds is not None:
        parts.append(f"{job.options.max_seconds:g}s")
    return "_".join(parts or ["result"]) + suffix


def caption(job: Job) -> str:
    """The caption of a job in the list: state, date, inputs."""
    name = job.inputs.get("video", "")
    if job.kind is JobKind.INTERPOLATE:
        what = "frame interpolation"
    elif job.options.text is not None:
        what = f'says "{shorten(job.options.text, MAX_QUOTE, placeholder="...")}"'
    else:
        what = f"with {job.inputs.get('script') or job.inputs.get('audio', '')}"
    state = state_name(job)
    preview = f", first {job.options.max_seconds:g} s" if job.options.max_seconds else ""
    when = time.strftime("%d %b %H:%M", time.localtime(job.created))
    return f"{state}{preview} · {when} · {name} {what}"


def tile(job: Job, thumbnail: Path | None) -> str | np.ndarray:
    """The image of a job in the list: its thumbnail, or a card with its state."""
    if thumbnail is not None:
        return str(thumbnail)
    card = np.full((180, 320, 3), COLORS[job.state], np.uint8)
    text = state_name(job)
    (width, height), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 1.0, 2)
    place = ((320 - width) // 2, (180 + height) // 2)
    return cv2.putText(card, text, place, cv2.FONT_HERSHEY_SIMPLEX, 1.0, (255, 255, 255), 2, cv2.LINE_AA)
