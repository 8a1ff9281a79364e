"""The lip-sync tab: video, speech, examples, presets, a button, and the options folded away."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from gradio.data_classes import FileData

from latentsync.serving.inspection import inspect_file
from latentsync.serving.jobs import AUDIO_ROLES, JobKind, JobNotFound
from latentsync.serving.page.compare import player_html
from latentsync.serving.page.errors import report_errors
from latentsync.serving.page.examples import chosen_example, example_gallery
from latentsync.serving.page.faces import FaceFinder, ShownFrame
from latentsync.serving.page.job_panel import JobPanel
from latentsync.serving.page.options_form import OptionsForm
from latentsync.serving.page.people import PeopleStrip
from latentsync.serving.service import JobService
from latentsync.utils.errors import UserError

PREVIEW_SECONDS = 2.0
# Fields that are not among the options: beside the player, below the audio, above the button.
TRIM = ("start", "end")
SPOKEN, SCRIPT = ("text", "voice"), ("script",)
FIRST = ("preset",)
CURRENT = """second => {
    const video = document.querySelector('#given video');
    return video ? String(Math.round(1000 * video.currentTime) / 1000) : second;
}"""
LARGEST = "largest"
PRIVATE = {"api_visibility": "private"}
CURRENT_OF_FILE = """path => {
    const video = document.querySelector('#given video');
    return [path, video ? Math.round(1000 * video.currentTime) / 1000 : 0];
}"""
SEEK = """second => {
    const video = document.querySelector('#given video');
    if (video && second) video.currentTime = Number(second);
}"""


class LipsyncTab:
    """The components of the tab and their event handlers; to be created inside `page`. job_id: of its job."""

    def __init__(self, service: JobService, page: gr.Blocks, job_id: gr.BrowserState | gr.State) -> None:
        self.service, self.finder = service, FaceFinder()
        with gr.Row():
            with gr.Column(min_width=280):
                self.video = gr.File(
                    label="1. Video or image of a person", file_types=["video", "image"], height=120, elem_id="video"
                )
                self.examples = example_gallery()
                self.player = gr.HTML("", visible=False, elem_id="given")
                self.form = OptionsForm(service.settings)
                with gr.Column(visible=False, elem_id="trim") as self.trim:
                    self.form.build(TRIM)
                    with gr.Row():
                        self.marks = [gr.Button(f"Set {name} here", size="sm", elem_id=f"set-{name}") for name in TRIM]
                    self.face_here = gr.Button("Choose a face here", size="sm", elem_id="face-here")
                self.preview_image = gr.Image(
                    label="Which face? Click to choose",
                    visible=False,
                    interactive=False,
                    buttons=[],
                    height=300,
                    elem_id="faces",
                )
                self.people = PeopleStrip(self.form.settings)
            with gr.Column(min_width=280):
                self.audio = unprobed_audio("2. Audio", "audio")
                with gr.Accordion("Or a text to speak", open=False, elem_id="spoken"):
                    self.form.build(SPOKEN)
                with gr.Accordion("Or a script for several voices", open=False, elem_id="cues"):
                    self.form.build(SCRIPT)
                    self.more_audio = gr.File(
                        label="Audio files of the script",
                        file_count="multiple",
                        file_types=["audio", "video"],
                        height=110,
                        elem_id="more-audio",
                    )
                self.form.build(FIRST)
                with gr.Row():
                    self.speak = gr.Button("3. Make it speak", variant="primary", elem_id="speak")
                    self.preview = gr.Button(f"Preview of {PREVIEW_SECONDS:g} s", elem_id="preview")
                self.panel = JobPanel(service, job_id)
        self.second = gr.Number(0, visible=False)
        self.seen, self.reused = gr.State(None), gr.State("")  # reused: id of the job whose settings were copied
        with gr.Accordion("Options", open=False, elem_id="options"):
            self.form.build_rest()
        self.face = self.form.fields["face"]
        self._connect(page)

    def _connect(self, page: gr.Blocks) -> None:
        self.panel.connect(page)
        shown = [self.seen, self.preview_image, self.player, self.trim, *self.people.outputs]
        self.people.connect(self.video, self.face)
        self.video.change(report_errors(self.show_faces), [self.video, self.face], shown, **PRIVATE)
        for new_video in (self.video.upload, self.video.clear):
            new_video(lambda: LARGEST, None, self.face, **PRIVATE)
        self.examples.select(self.use_example, None, [self.video, self.audio, self.face], **PRIVATE)
        for name, mark in zip(TRIM, self.marks, strict=True):
            field = self.form.fields[name]
            field.change(None, field, None, js=SEEK, **PRIVATE)  # the player shows the second that is chosen
            mark.click(None, field, field, js=CURRENT, **PRIVATE)
        self.face_here.click(
            report_errors(self.show_faces_at),
            [self.video, self.second],
            [self.seen, self.preview_image],
            js=CURRENT_OF_FILE,
            **PRIVATE,
        )
        self.preview_image.select(
            report_errors(self.choose_face), self.seen, [self.preview_image, self.face], **PRIVATE
        )
        inputs = [self.reused, self.video, self.audio, self.more_audio, *self.form.fields.values()]
        for button, preview in ((self.speak, {}), (self.preview, {"max_seconds": PREVIEW_SECONDS})):
            button.click(report_errors(self._submitter(preview)), inputs, self.panel.outputs, **PRIVATE)
        page.load(report_errors(self.form.refresh), None, self.form.refreshed, show_progress="hidden", **PRIVATE)

    @staticmethod
    def use_example(event: gr.SelectData) -> tuple[str, str, str]:
        """(video, audio, face) of the example that was clicked."""
        return (*chosen_example(event), LARGEST)

    def show_faces(self, path: str | None, face: str = LARGEST) -> tuple[Any, ...]:
        """The first frame with its faces marked, the file in a player, and the search for people in a video.

        face: the face option.
        """
        hidden = gr.update(visible=False)
        if not path:
            return None, gr.update(visible=False, value=None), hidden, hidden, *self.people.offered(False)
        inspect_file("video", Path(path).name, Path(path), self.service.settings)
        seen = self.finder.find(Path(path))
        if not seen.faces:
            gr.Warning("No face was found in the first frame; frames without a face stay unchanged.")
        chosen = seen.face_of(face)
        image = gr.update(visible=True, value=seen.marked(chosen))
        player = player_html(Path(path))
        is_video = player.startswith("<video")
        return (
            seen,
            image,
            gr.update(visible=is_video, value=player if is_video else ""),
            gr.update(visible=is_video),
            *self.people.offered(is_video),
        )

    def show_faces_at(self, path: str | None, second: float) -> tuple[Any, ...]:
        """The frame at `second` with its faces marked, to choose one of them."""
        if not path:
            return gr.skip(), gr.skip()
        inspect_file("video", Path(path).name, Path(path), self.service.settings)
        seen = self.finder.find(Path(path), second)
        if not seen.faces:
            gr.Warning("No face was found in this frame.")
        return seen, gr.update(visible=True, value=seen.marked(None))

    def choose_face(self, seen: ShownFrame | None, event: gr.SelectData) -> tuple[np.ndarray | dict, str | dict]:
        """Choose the face at the click."""
        number = seen.face_at(*event.index) if seen is not None else None
        if seen is None or number is None:
            return gr.skip(), gr.skip()
        return seen.marked(number), seen.option(number)

    def _submitter(self, preview: dict[str, float]) -> Callable[..., dict]:
        def submit(
            reused: str, video: str | None, audio: str | None, more_audio: list[str] | None, *values: Any
        ) -> dict:
            if not video:
                raise UserError("Choose a video or an image of a person first.")
            options, more = self.form.read(values, **preview)
            given = {"video": video} | ({"audio": audio} if audio and options.text is None else {})
            given |= script_audio(more_audio or [], given, has_script="script" in more)
            if not audio and options.text is None and "script" not in more:
                raise UserError("Choose audio first: a file or a recording, a text, or a script.")
            if audio and options.text is not None:
                gr.Info("The text is spoken; the audio is not used.")
            files = {role: (Path(path).name, Path(path)) for role, path in given.items()} | more
            named = {role: (self._name(role, path, reused), path) for role, (_, path) in files.items()}
            return self.panel.follow(self.service.submit(JobKind.LIPSYNC, named, options))

        return submit

    def _name(self, role: str, path: Path, reused: str) -> str:
        """Name of a file that was given: the original one if it was copied from the job `reused`."""
        try:
            kept = self.service.input_path(reused, role)
            original = self.service.get(reused).inputs[role]
            is_copy = kept.name == path.name and kept.stat().st_size == path.stat().st_size
        except (JobNotFound, OSError):
            return path.name
        return original if is_copy and original.endswith(path.suffix) else path.name  # a script is stored as JSON


def unprobed_audio(label: str, elem_id: str) -> gr.Audio:
    """An audio field that never runs ffprobe or ffmpeg on its files, which Gradio's own does to files that it shows."""
    field = gr.Audio(label=label, sources=["upload", "microphone"], type="filepath", buttons=[], elem_id=elem_id)

    def as_given(path: str | None) -> FileData | None:
        return None if path is None else FileData(path=path, orig_name=Path(path).name)

    field.postprocess = as_given  # of a subclass, Gradio would write a stub file here
    return field


def script_audio(paths: Sequence[str], given: Mapping[str, str], *, has_script: bool) -> dict[str, str]:
    """The audio files of a script by their roles in a job, after that of the audio field. Raises UserError."""
    if paths and not has_script:
        raise UserError("The audio files of a script need a script: choose it, or remove them.")
    free = [role for role in AUDIO_ROLES if role not in given]
    if len(paths) > len(free):
        raise UserError(f"A script takes at most {len(AUDIO_ROLES)} audio files.")
    return dict(zip(free, paths, strict=False))
