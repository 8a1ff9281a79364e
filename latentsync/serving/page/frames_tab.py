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

RIFE = "Method: RIFE."
FLOW = "Method: optical flow. RIFE is used instead if its weights are in checkpoints/auxiliary/rife/flownet.pkl."


class FramesTab:
    """The components of the tab and their event handlers; to be created inside `page`. job_id: of its job."""

    def __init__(self, service: JobService, page: gr.Blocks, job_id: gr.BrowserState | gr.State) -> None:
        self.service = service
        gr.Markdown(f"Raise the frame rate of a video; the audio is kept. {RIFE if RIFE_WEIGHTS.is_file() else FLOW}")
        self.video = gr.File(label="Video", file_types=["video"], height=150, elem_id="frames-video")
        self.fps = gr.Slider(1, MAX_FPS, 50, step=1, label="Frames per second", elem_id="frames-fps")
        self.go = gr.Button("Interpolate frames", variant="primary", elem_id="frames-go")
        self.panel = JobPanel(service, job_id)
        self.panel.connect(page)
        self.go.click(report_errors(self.submit), [self.video, self.fps], self.panel.outputs, api_visibility="private")

    def submit(self, video: str | None, fps: float) -> dict:
        if not video:
            raise UserError("Choose a video first.")
        files = {"video": (Path(video).name, Path(video))}
        job = self.service.submit(JobKind.INTERPOLATE, files, GenerationOptions(interpolate=fps))
        return self.panel.follow(job)
