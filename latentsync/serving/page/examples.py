"""Examples to try: images that fill in both inputs."""

from dataclasses import dataclass

import cv2
import gradio as gr
import numpy as np

from latentsync.media.first_frame import first_frame
from latentsync.utils.paths import PROJECT_ROOT

ASSETS = PROJECT_ROOT / "assets"
THUMBNAIL = 200  # pixels, of the longer side


@dataclass(frozen=True)
class Example:
    """One example; `video` and `audio` are names in the folder of assets."""

    title: str
    video: str
    audio: str = "demo_voice.wav"

    @property
    def files(self) -> tuple[str, str]:
        return str(ASSETS / self.video), str(ASSETS / self.audio)

    def thumbnail(self) -> np.ndarray:
        pixels = first_frame(ASSETS / self.video)
        scale = THUMBNAIL / max(pixels.shape[:2])
        return cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)


EXAMPLES = (
    Example("Video", "demo_video.mp4"),
    Example("Still image", "demo_portrait.png"),
    Example("Two people", "demo_two.jpg"),
)


def example_gallery() -> gr.Gallery:
    """The examples as images to choose from."""
    return gr.Gallery(
        [(example.thumbnail(), example.title) for example in EXAMPLES],
        label="Examples",
        columns=len(EXAMPLES),
        height="auto",
        allow_preview=False,
        interactive=False,
        object_fit="contain",
        buttons=[],
        elem_id="examples",
    )


def chosen_example(event: gr.SelectData) -> tuple[str, str]:
    """(video, audio) of the example that was clicked."""
    return EXAMPLES[event.index].files
