"""The strip of people: everyone in a video, to choose one by name."""

import io
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from latentsync.serving.inspection import inspect_file
from latentsync.serving.page.errors import report_errors
from latentsync.serving.people import SCANNED_SECONDS, PersonInVideo, list_people
from latentsync.serving.settings import ServingSettings

PRIVATE = {"api_visibility": "private"}
COLUMNS = 4


class PeopleStrip:
    """A button that searches the video, and the people found; placed where this object is created."""

    def __init__(self, settings: ServingSettings) -> None:
        self.settings = settings
        self.names = gr.State([])
        self.find = gr.Button("Find everyone in the video", visible=False, size="sm", elem_id="find-people")
        self.strip = gr.Gallery(
            label="Who speaks? Click to choose",
            visible=False,
            columns=COLUMNS,
            height="auto",
            allow_preview=False,
            interactive=False,
            object_fit="contain",
            buttons=[],
            elem_id="people",
        )
        self.outputs = [self.names, self.find, self.strip]

    def connect(self, video: gr.File, face: gr.components.Component) -> None:
        """Connect the event handlers. face: the field of the option, which a click sets."""
        self.find.click(report_errors(self.search), video, self.outputs, concurrency_limit=1, **PRIVATE)
        self.strip.select(report_errors(self.choose), self.names, face, **PRIVATE)

    def offered(self, is_video: bool) -> tuple[Any, ...]:
        """Updates of `outputs` for a new file: nobody is found yet."""
        return [], gr.update(visible=is_video), gr.update(visible=False, value=None)

    def search(self, path: str | None) -> tuple[Any, ...]:
        """Updates of `outputs` with the people in the video."""
        if not path:
            return self.offered(False)
        inspect_file("video", Path(path).name, Path(path), self.settings)
        people = list_people(Path(path))
        if not people:
            gr.Warning(f"No face was found in the first {SCANNED_SECONDS // 60} minutes of the video.")
            return self.offered(True)
        tiles = [(_pixels(person), _caption(person)) for person in people]
        return [person.name for person in people], gr.skip(), gr.update(visible=True, value=tiles, selected_index=None)

    @staticmethod
    def choose(names: list[str], event: gr.SelectData) -> Any:
        """The name of the person that was clicked."""
        return names[event.index] if event.index < len(names) else gr.skip()


def _pixels(person: PersonInVideo) -> np.ndarray:
    with Image.open(io.BytesIO(person.portrait)) as portrait:
        return np.asarray(portrait.convert("RGB"))


def _caption(person: PersonInVideo) -> str:
    spans = ", ".join(f"{start:.1f}\u2013{end:.1f}" for start, end in person.seconds[:3])
    return f"{person.name}: {spans} s" + (" \u2026" if len(person.seconds) > 3 else "")
