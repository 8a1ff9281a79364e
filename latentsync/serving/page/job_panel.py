"""The panel that follows a job: its progress, a button to cancel it, source and result side by side."""

from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

from latentsync.media.first_frame import first_frame
from latentsync.serving.jobs import Job, JobNotFound, JobState
from latentsync.serving.page.errors import report_errors
from latentsync.serving.page.views import status_html
from latentsync.serving.service import JobService
from latentsync.utils.errors import UserError

REFRESH_SECONDS = 1.0
SECRET = "latentsync"  # encrypts the job id that the browser stores; the id is not secret
STILLS = frozenset((".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".heic", ".avif"))


class JobPanel:
    """The components for one job, placed where this object is created.

    With `storage_key`, the browser stores the job's id under this name, so that a reloaded page shows the job again.
    """

    def __init__(self, service: JobService, storage_key: str = "") -> None:
        self.service = service
        self.job_id = gr.BrowserState("", storage_key=storage_key, secret=SECRET) if storage_key else gr.State("")
        self.status = gr.HTML(status_html(None))
        self.cancel = gr.Button("Cancel", variant="stop", visible=False, elem_classes="cancel")
        hidden: dict[str, Any] = {"visible": False, "interactive": False}
        with gr.Row():
            self.before_video = gr.Video(label="Before", buttons=[], elem_classes="before", **hidden)
            self.before_image = gr.Image(label="Before", buttons=[], elem_classes="before", **hidden)
            self.after = gr.Video(label="After", buttons=["download"], elem_classes="after", **hidden)
        self.timer = gr.Timer(REFRESH_SECONDS, active=False)
        self.outputs = [
            self.job_id,
            self.status,
            self.cancel,
            self.before_video,
            self.before_image,
            self.after,
            self.timer,
        ]

    def connect(self, page: gr.Blocks) -> None:
        """Connect the event handlers; call once, inside `page`."""
        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        self.timer.tick(report_errors(self.refresh), self.job_id, self.outputs, queue=False, **quiet)
        self.cancel.click(report_errors(self.stop), self.job_id, self.outputs, **quiet)
        page.load(report_errors(self.refresh), self.job_id, self.outputs, **quiet)

    def follow(self, job: Job) -> dict:
        """Updates of `outputs` for a newly submitted job."""
        hidden = gr.update(visible=False, value=None)
        return self._status(job) | {self.before_video: hidden, self.before_image: hidden, self.after: hidden}

    def refresh(self, job_id: str) -> dict:
        """Updates of `outputs` for the current state of a job."""
        try:
            job = self.service.get(job_id) if job_id else None
        except JobNotFound:
            job = None
        if job is None:
            hidden = gr.update(visible=False, value=None)
            return {
                self.job_id: "",
                self.status: status_html(None),
                self.cancel: gr.update(visible=False),
                self.before_video: hidden,
                self.before_image: hidden,
                self.after: hidden,
                self.timer: gr.Timer(active=False),
            }
        if not job.state.is_final:
            return self._status(job)
        return self._status(job) | self._media(job)

    def stop(self, job_id: str) -> dict:
        """Cancel the job."""
        if job_id:
            self.service.cancel(job_id)
        return self.refresh(job_id)

    def _status(self, job: Job) -> dict:
        return {
            self.job_id: job.id,
            self.status: status_html(job),
            self.cancel: gr.update(visible=not job.state.is_final),
            self.timer: gr.Timer(active=not job.state.is_final),
        }

    def _media(self, job: Job) -> dict:
        hidden = gr.update(visible=False, value=None)
        if job.state is not JobState.DONE or job.result is None:
            return {self.before_video: hidden, self.before_image: hidden, self.after: hidden}
        before = self.service.input_path(job.id, "video")
        after = gr.update(visible=True, value=str(job.result))
        if before.suffix.lower() not in STILLS:
            shown = gr.update(visible=True, value=str(before))
            return {self.before_video: shown, self.before_image: hidden, self.after: after}
        shown = gr.update(visible=True, value=still_pixels(before))
        return {self.before_video: hidden, self.before_image: shown, self.after: after}


def still_pixels(path: Path) -> np.ndarray | None:
    """(H, W, 3) uint8 of an image as the pipeline reads it; None if it cannot be decoded."""
    try:
        return first_frame(path)
    except UserError:
        return None
