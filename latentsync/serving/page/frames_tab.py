"""The frame interpolation tab."""

from pathlib import Path

import gradio as gr

from latentsync.media.interpolation import RIFE_WEIGHTS
from latentsync.options import MAX_FPS, GenerationOptions
from latentsync.serving.jobs import JobKind
from latentsync.serving.page.errors import report_errors
from latentsync.serving.page.job_panel import JobPanel
from latentsync.serving.service import JobService
from latentsync.utils.errors import UserError

RIFE = "Frames are interpolated by RIFE."
FLOW = "Frames are interpolated by optical flow: RIFE's weights (checkpoints/auxiliary/rife/flownet.pkl) are missing."


class FramesTab:
    """The components of the tab and their event handlers; to be created inside `page`."""

    def __init__(self, service: JobService, page: gr.Blocks) -> None:
        self.service = service
        gr.Markdown(RIFE if RIFE_WEIGHTS.is_file() else FLOW)
        self.video = gr.File(label="Video", file_types=["video"], height=150, elem_id="frames-video")
        self.fps = gr.Slider(1, MAX_FPS, 50, step=1, label="Frames per second")
        self.go = gr.Button("Interpolate frames", variant="primary", elem_id="frames-go")
        self.panel = JobPanel(service, "latentsync-frames")
        self.panel.connect(page)
        self.go.click(report_errors(self.submit), [self.video, self.fps], self.panel.outputs, api_visibility="private")

    def submit(self, video: str | None, fps: float) -> dict:
        if not video:
            raise UserError("choose a video first")
        files = {"video": (Path(video).name, Path(video))}
        job = self.service.submit(JobKind.INTERPOLATE, files, GenerationOptions(interpolate=fps))
        return self.panel.follow(job)
