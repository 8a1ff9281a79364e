"""The tab with all jobs of the service, newest first."""

from pathlib import Path

import gradio as gr

from latentsync.options import GenerationOptions
from latentsync.serving.jobs import Job, JobKind, JobNotFound, JobState
from latentsync.serving.page.errors import report_errors
from latentsync.serving.page.job_panel import JobPanel
from latentsync.serving.page.views import caption, tile
from latentsync.serving.service import JobService
from latentsync.utils.errors import UserError

SHOWN = 48
SMOOTH_FPS = 50
PRIVATE = {"api_visibility": "private", "show_progress": "hidden"}


class ResultsTab:
    """The components of the tab and their event handlers; to be created inside `page`, in `tab`."""

    def __init__(self, service: JobService, page: gr.Blocks, tab: gr.Tab) -> None:
        self.service = service
        self.ids = gr.State([])
        self.gallery = gr.Gallery(
            label="Jobs, newest first",
            columns=4,
            height="auto",
            fit_columns=False,
            allow_preview=False,
            object_fit="contain",
            buttons=[],
            elem_id="jobs",
        )
        self.refresh = gr.Button("Refresh", size="sm", elem_id="refresh")
        self.panel = JobPanel(service)
        with gr.Row():
            self.download = gr.DownloadButton("Download", visible=False, elem_id="download")
            self.smooth = gr.Button(f"Interpolate this one ({SMOOTH_FPS} fps)", visible=False, elem_id="smooth")
            self.again = gr.Button("Try again", visible=False, elem_id="again")
            self.delete = gr.Button("Delete", variant="stop", visible=False, elem_id="delete")
        self.actions = [self.download, self.smooth, self.again, self.delete]
        self.panel.connect(page)
        listing = [self.gallery, self.ids]
        everything = [*listing, *self.panel.outputs, *self.actions]
        tab.select(report_errors(self.listing), None, listing, **PRIVATE)
        self.refresh.click(report_errors(self.listing), None, listing, **PRIVATE)
        self.gallery.select(report_errors(self.open), self.ids, [*self.panel.outputs, *self.actions], **PRIVATE)
        self.smooth.click(report_errors(self.interpolate), self.panel.job_id, everything, **PRIVATE)
        self.again.click(report_errors(self.retry), self.panel.job_id, everything, **PRIVATE)
        self.delete.click(report_errors(self.remove), self.panel.job_id, everything, **PRIVATE)
        self.panel.timer.tick(report_errors(self.offered), self.panel.job_id, self.actions, queue=False, **PRIVATE)

    def listing(self) -> dict:
        """Updates that list the newest jobs."""
        jobs = self.service.list(limit=SHOWN)
        tiles = [(tile(job, self._thumbnail(job)), caption(job)) for job in jobs]
        return {self.gallery: gr.update(value=tiles, selected_index=None), self.ids: [job.id for job in jobs]}

    def open(self, ids: list[str], event: gr.SelectData) -> dict:
        """Show the selected job."""
        job_id = ids[event.index] if event.index < len(ids) else ""
        return self.panel.refresh(job_id) | self.offered(job_id)

    def offered(self, job_id: str) -> dict:
        """Updates that show the actions available for a job."""
        try:
            job = self.service.get(job_id) if job_id else None
        except JobNotFound:
            job = None
        if job is None:
            return {action: gr.update(visible=False) for action in self.actions}
        result = job.result if job.state is JobState.DONE else None
        ended = job.state.is_final
        return {
            self.download: gr.update(visible=result is not None, value=None if result is None else str(result)),
            self.smooth: gr.update(visible=result is not None and job.kind is JobKind.LIPSYNC),
            self.again: gr.update(visible=ended and result is None and not job.expired),
            self.delete: gr.update(visible=ended),
        }

    def interpolate(self, job_id: str) -> dict:
        """Queue frame interpolation of the result."""
        job = self.service.get(job_id)
        if job.result is None:
            raise UserError("the result has expired; run the job again first")
        name = f"{Path(job.inputs.get('video', 'result')).stem}_{SMOOTH_FPS}fps{job.result.suffix}"
        options = GenerationOptions(interpolate=SMOOTH_FPS, crf=job.options.crf)
        return self._show(self.service.submit(JobKind.INTERPOLATE, {"video": (name, job.result)}, options))

    def retry(self, job_id: str) -> dict:
        """Queue the job again."""
        return self._show(self.service.retry(job_id))

    def remove(self, job_id: str) -> dict:
        """Delete the job and its files."""
        self.service.delete(job_id)
        return self.listing() | self.panel.refresh("") | self.offered("")

    def _show(self, job: Job) -> dict:
        return self.listing() | self.panel.follow(job) | self.offered(job.id)

    def _thumbnail(self, job: Job) -> Path | None:
        try:
            return self.service.thumbnail(job.id)
        except JobNotFound:  # deleted meanwhile
            return None
