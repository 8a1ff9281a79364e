"""The tab with all jobs of the service, newest first."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import gradio as gr

from latentsync.options import GenerationOptions
from latentsync.serving.jobs import AUDIO_ROLES, Job, JobKind, JobNotFound, JobState
from latentsync.serving.page.errors import report_errors
from latentsync.serving.page.job_panel import JobPanel
from latentsync.serving.page.lipsync_tab import LipsyncTab
from latentsync.serving.page.report import settings_html, write_report
from latentsync.serving.page.views import caption, download_name, tile
from latentsync.serving.service import JobService
from latentsync.utils.errors import UserError

SHOWN = 48
SMOOTH_FPS = 50
REFRESH_SECONDS = 3.0
PRIVATE: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
CONFIRM = "id => id && confirm('Delete this job and its files? This cannot be undone.') ? id : ''"
LIPSYNC = "lipsync"  # id of the tab
# The job that was chosen may be below the edge of a small screen.
SHOW = "() => document.querySelector('#results-job').scrollIntoView({behavior: 'smooth', block: 'nearest'})"


class ResultsTab:
    """The components of the tab and their event handlers; to be created inside `page`, in `tab`.

    Args:
        job_id: of the job that is shown.
        tabs, others: all tabs, and those besides this one; the list is refreshed while this one is open.
        lipsync: whose fields the settings of a job can be copied to.
    """

    def __init__(
        self,
        service: JobService,
        page: gr.Blocks,
        tab: gr.Tab,
        job_id: gr.BrowserState | gr.State,
        lipsync: LipsyncTab,
        tabs: gr.Tabs,
        others: Sequence[gr.Tab] = (),
    ) -> None:
        self.service, self.lipsync, self.tabs = service, lipsync, tabs
        self.ids, self.shown = gr.State([]), gr.State("")
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
        self.timer = gr.Timer(REFRESH_SECONDS, active=False)
        with gr.Column(elem_id="results-job"):
            self.panel = JobPanel(service, job_id)
            self.settings = gr.HTML("", visible=False)
        with gr.Row(elem_id="results-actions"):
            self.report = gr.DownloadButton("Report", visible=False, elem_id="report")
            self.reuse = gr.Button("Use these settings", visible=False, elem_id="reuse")
            self.smooth = gr.Button(f"Interpolate to {SMOOTH_FPS} fps", visible=False, elem_id="smooth")
            self.again = gr.Button("Try again", visible=False, elem_id="again")
            self.delete = gr.Button("Delete", variant="stop", visible=False, elem_id="delete")
        self.actions = [self.settings, self.report, self.reuse, self.smooth, self.again, self.delete]
        self._connect(page, tab, others)

    def _connect(self, page: gr.Blocks, tab: gr.Tab, others: Sequence[gr.Tab]) -> None:
        self.panel.connect(page)
        job_id, listing = self.panel.job_id, [self.gallery, self.ids, self.shown]
        opened = [*self.panel.outputs, *self.actions]
        everything = [*listing, *opened]
        tab.select(report_errors(self.listing), self.shown, listing, **PRIVATE)
        tab.select(lambda: gr.Timer(active=True), None, self.timer, **PRIVATE)
        for other in others:
            other.select(lambda: gr.Timer(active=False), None, self.timer, **PRIVATE)
        self.timer.tick(report_errors(self.listing), self.shown, listing, queue=False, **PRIVATE)
        page.load(report_errors(self.offered), job_id, self.actions, **PRIVATE)
        opening = self.gallery.select(report_errors(self.open), self.ids, opened, **PRIVATE)
        opening.then(None, None, None, js=SHOW, **PRIVATE)
        self.smooth.click(report_errors(self.interpolate), job_id, everything, **PRIVATE)
        self.again.click(report_errors(self.retry), job_id, everything, **PRIVATE)
        self.delete.click(report_errors(self.remove), job_id, everything, js=CONFIRM, **PRIVATE)
        first = self.lipsync
        filled = [first.video, first.audio, first.more_audio, *first.form.fields.values(), first.reused, self.tabs]
        self.reuse.click(report_errors(self.fill_in), job_id, filled, **PRIVATE)
        self.panel.timer.tick(report_errors(self.offered), job_id, self.actions, queue=False, **PRIVATE)

    def listing(self, shown: str = "") -> dict:
        """Updates that list the newest jobs; none if nothing has changed since `shown`."""
        jobs = self.service.list(limit=SHOWN)
        now = " ".join(f"{job.id}:{job.state.value}:{job.expired}" for job in jobs)
        if shown == now and jobs:
            return {self.gallery: gr.skip(), self.ids: gr.skip(), self.shown: gr.skip()}
        tiles = [(tile(job, self._thumbnail(job)), caption(job)) for job in jobs]
        gallery = gr.update(value=tiles, selected_index=None)
        return {self.gallery: gallery, self.ids: [job.id for job in jobs], self.shown: now}

    def open(self, ids: list[str], event: gr.SelectData) -> dict:
        """Show the selected job."""
        job_id = ids[event.index] if event.index < len(ids) else ""
        return self.panel.refresh(job_id) | self.offered(job_id)

    def offered(self, job_id: str) -> dict:
        """Updates that show the settings of a job and the actions available for it."""
        try:
            job = self.service.get(job_id) if job_id else None
        except JobNotFound:
            job = None
        if job is None:
            return {action: gr.update(visible=False) for action in self.actions}
        result = job.result if job.state is JobState.DONE else None
        ended = job.state.is_final
        has_files = ended and not job.expired
        report = write_report(job, self.service.workspace.folder(job.id)) if has_files else None
        return {
            self.settings: gr.update(visible=True, value=settings_html(job)),
            self.report: gr.update(visible=report is not None, value=None if report is None else str(report)),
            self.reuse: gr.update(visible=job.kind is JobKind.LIPSYNC),
            self.smooth: gr.update(visible=result is not None and job.kind is JobKind.LIPSYNC),
            self.again: gr.update(visible=ended and result is None and not job.expired),
            self.delete: gr.update(visible=ended),
        }

    def fill_in(self, job_id: str) -> list[Any]:
        """Copy the inputs, as far as they are there, and the settings of a job to the fields of the first tab."""
        job = self.service.get(job_id)
        files = {}
        for role in job.inputs:
            with suppress(JobNotFound):  # it has expired
                files[role] = str(self.service.input_path(job_id, role))
        more_audio = [files[role] for role in AUDIO_ROLES[1:] if role in files]
        fields = self.lipsync.form.values_of(job.options, files)
        return [files.get("video"), files.get("audio"), more_audio or None, *fields, job_id, gr.Tabs(selected=LIPSYNC)]

    def interpolate(self, job_id: str) -> dict:
        """Queue frame interpolation of the result."""
        job = self.service.get(job_id)
        if job.result is None:
            raise UserError("The result has expired. Run the job again first.")
        name = download_name(job, job.result.suffix)
        options = GenerationOptions(interpolate=SMOOTH_FPS, crf=job.options.crf)
        return self._show(self.service.submit(JobKind.INTERPOLATE, {"video": (name, job.result)}, options))

    def retry(self, job_id: str) -> dict:
        """Queue the job again."""
        return self._show(self.service.retry(job_id))

    def remove(self, job_id: str) -> dict:
        """Delete the job and its files; nothing if the user did not confirm it."""
        if not job_id:
            return {self.gallery: gr.skip()}
        self.service.delete(job_id)
        return self.listing() | self.panel.refresh("") | self.offered("")

    def _show(self, job: Job) -> dict:
        return self.listing() | self.panel.follow(job) | self.offered(job.id)

    def _thumbnail(self, job: Job) -> Path | None:
        try:
            return self.service.thumbnail(job.id)
        except JobNotFound:  # deleted meanwhile
            return None
