"""The panel that follows a job: its progress, a button to cancel it, source and result in one player, a download."""

from pathlib import Path
from typing import Any

import gradio as gr

from latentsync.constants import FPS
from latentsync.media.probe import probe_video
from latentsync.serving.jobs import Job, JobNotFound, JobState
from latentsync.serving.page.compare import compare_html
from latentsync.serving.page.downloads import download_html
from latentsync.serving.page.errors import report_errors
from latentsync.serving.page.views import download_name, status_html
from latentsync.serving.service import JobService
from latentsync.utils.errors import UserError

REFRESH_SECONDS = 1.0
CANCELING_SECONDS = 0.25  # refreshes of a job that is about to stop
SECRET = "latentsync"  # encrypts the job id that the browser stores; the id is not secret


def remembered_job(name: str) -> gr.BrowserState:
    """The id of a job, stored by the browser under this name, so that a reloaded page shows the job again.

    Create it outside of tabs: Gradio creates components of a hidden tab late, which would overwrite the stored id.
    """
    return gr.BrowserState("", storage_key=name, secret=SECRET)


class JobPanel:
    """The components for one job, placed where this object is created. `job_id` holds its id, "" for none."""

    def __init__(self, service: JobService, job_id: gr.BrowserState | gr.State) -> None:
        self.service, self.job_id = service, job_id
        self.status = gr.HTML(status_html(None))
        self.cancel = gr.Button("Cancel", variant="stop", visible=False, elem_classes="cancel")
        self.player = gr.HTML("", visible=False, elem_classes="player")
        self.download = gr.HTML("", visible=False, elem_classes="download")
        self.timer = gr.Timer(REFRESH_SECONDS, active=False)
        self.outputs = [self.job_id, self.status, self.cancel, self.player, self.download, self.timer]

    def connect(self, page: gr.Blocks) -> None:
        """Connect the event handlers; call once, inside `page`."""
        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        self.timer.tick(report_errors(self.refresh), self.job_id, self.outputs, queue=False, **quiet)
        self.cancel.click(report_errors(self.stop), self.job_id, self.outputs, **quiet)
        page.load(report_errors(self.refresh), self.job_id, self.outputs, **quiet)

    def follow(self, job: Job) -> dict:
        """Updates of `outputs` for a newly submitted job."""
        return self._status(job) | self._no_media()

    def refresh(self, job_id: str) -> dict:
        """Updates of `outputs` for the current state of a job."""
        try:
            job = self.service.get(job_id) if job_id else None
        except JobNotFound:
            job = None
        if job is None:
            return {
                self.job_id: "",
                self.status: status_html(None),
                self.cancel: gr.update(visible=False),
                self.timer: gr.Timer(active=False),
            } | self._no_media()
        return self._status(job) | (self._media(job) if job.state.is_final else {})

    def stop(self, job_id: str) -> dict:
        """Cancel the job."""
        if job_id:
            self.service.cancel(job_id)
        return self.refresh(job_id)

    def _status(self, job: Job) -> dict:
        return {
            self.job_id: job.id,
            self.status: status_html(job),
            self.cancel: gr.update(visible=not job.state.is_final and not job.canceling),
            self.timer: gr.Timer(
                CANCELING_SECONDS if job.canceling else REFRESH_SECONDS, active=not job.state.is_final
            ),
        }

    def _no_media(self) -> dict:
        return {self.player: gr.update(visible=False, value=""), self.download: gr.update(visible=False, value="")}

    def _media(self, job: Job) -> dict:
        if job.state is not JobState.DONE or job.result is None:
            return self._no_media()
        try:
            source = self.service.input_path(job.id, "video")
        except JobNotFound:
            source = None
        start = float(getattr(job.options, "start", None) or 0.0)
        mode = str(getattr(job.options, "length_mode", "bounce"))
        return {
            self.player: gr.update(visible=True, value=compare_html(source, job.result, start, mode, _fps(job.result))),
            self.download: gr.update(
                visible=True, value=download_html(job.result, download_name(job, job.result.suffix))
            ),
        }


def _fps(result: Path) -> float:
    """Frame rate of a result; any, if it cannot be read."""
    try:
        return float(probe_video(result).fps)
    except UserError:
        return float(FPS)
