"""The page: its texts, face picker and forms. `test_page_browser` uses it in a browser."""

import html
import json
import re
import shutil
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import httpx
import numpy as np
import pytest

gr = pytest.importorskip("gradio")

import gradio_app  # noqa: E402
from latentsync.checkpoints.registry import PROJECT_ROOT  # noqa: E402
from latentsync.options import OPTIONS, GenerationOptions, parse_options  # noqa: E402
from latentsync.serving.jobs import Job, JobKind, JobState  # noqa: E402
from latentsync.serving.page.app import build_page, serve_page  # noqa: E402
from latentsync.serving.page.compare import compare_html  # noqa: E402
from latentsync.serving.page.downloads import download_html  # noqa: E402
from latentsync.serving.page.errors import report_errors  # noqa: E402
from latentsync.serving.page.faces import FaceFinder  # noqa: E402
from latentsync.serving.page.frames_tab import FramesTab  # noqa: E402
from latentsync.serving.page.job_panel import JobPanel  # noqa: E402
from latentsync.serving.page.lipsync_tab import LipsyncTab, unprobed_audio  # noqa: E402
from latentsync.serving.page.options_form import make_field  # noqa: E402
from latentsync.serving.page.people import PeopleStrip  # noqa: E402
from latentsync.serving.page.results_tab import ResultsTab  # noqa: E402
from latentsync.serving.page.views import caption, sentence, status_html, tile  # noqa: E402
from latentsync.utils.errors import UserError  # noqa: E402
from tests.pipelines.scenes import clip, draw_scene  # noqa: E402
from tests.serving.fakes import FakeRunner, service_in, wait_for, working, write_files  # noqa: E402


def job(state: JobState, **values) -> Job:
    values = {"inputs": {"video": "a.mp4", "audio": "b.wav"}, "created": 0.0, "options": GenerationOptions()} | values
    return Job("0" * 32, JobKind.LIPSYNC, state, **values)


@pytest.fixture
def service(tmp_path):
    return service_in(tmp_path / "ws")


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        (job(JobState.QUEUED, position=0), "Waiting: next in the queue."),
        (job(JobState.QUEUED, position=2), "Waiting: 2 jobs before it."),
        (
            job(JobState.RUNNING, stage="lip-sync", done=3, total=10, eta_seconds=75.0),
            "Generating frames, frame 3 of 10, about 1 min 15 s left.",
        ),
        (job(JobState.RUNNING, stage="preparing", total=10), "Reading the audio."),
        (job(JobState.RUNNING, stage="loading", attempts=2), "Loading the model (attempt 2)."),
        (job(JobState.RUNNING, stage="lip-sync", done=3, total=10, canceling=True), "Canceling."),
        (job(JobState.DONE, started=1.0, finished=5.0), "Done in 4 s."),
        (job(JobState.DONE, expired=True), "Its files have expired."),
        (job(JobState.FAILED, error="no face"), "Failed: no face"),
        (job(JobState.CANCELLED), "Canceled."),
    ],
)
def test_the_description_of_a_job(shown, text):
    assert sentence(shown) == text


def test_texts_of_users_are_no_markup():
    shown = status_html(job(JobState.FAILED, error="<script>alert(1)</script>"))
    assert "<script" not in shown and "&lt;script" in shown
    said = caption(job(JobState.DONE))
    assert said.startswith("done · ") and said.endswith(" · a.mp4 with b.wav")
    spoken = job(JobState.DONE, inputs={"video": "a.mp4"}, options=GenerationOptions(text="Good morning. " * 9))
    assert caption(spoken).endswith('a.mp4 says "Good morning. Good morning. Good..."')
    assert caption(job(JobState.DONE, inputs={"video": "a.mp4", "script": "c.csv"})).endswith("a.mp4 with c.csv")
    assert tile(job(JobState.FAILED), None).shape == (180, 320, 3)


def test_the_face_picker(tmp_path):
    path = clip(tmp_path / "a.mp4", 2)
    seen = FaceFinder().find(path)
    assert len(seen.faces) == 1 and seen.scale == 1
    x, y = seen.faces[0].center
    assert seen.face_at(x + 5, y) == 0 and seen.face_at(x + 200, y) is None
    assert [seen.face_of(option) for option in (seen.option(0), "left", "right", "largest", "9,9@1.5")] == [0] * 5
    later = FaceFinder().find(path, 0.04)
    assert later.option(0).endswith("@0.04") and GenerationOptions(face=later.option(0))
    given = [float(part) for part in seen.option(0).split(",")]
    assert np.abs(np.array(given) - (x, y)).max() <= 1
    assert GenerationOptions(face=seen.option(0))
    assert (seen.marked(0) != seen.marked(None)).any() and (seen.marked(None) != seen.pixels).any()


def test_the_strip_of_people(service, tmp_path):
    path = clip(tmp_path / "two.mp4", 15, lambda index: draw_scene(((0, 0), (150, 0)), width=290))
    with gr.Blocks():
        strip = PeopleStrip(service.settings)
    names, _, shown = strip.search(str(path))
    assert names == ["person1", "person2"] and shown["visible"]
    assert [caption.partition(":")[0] for _, caption in shown["value"]] == names
    assert all(pixels.shape == (160, 160, 3) for pixels, _ in shown["value"])
    chosen = strip.choose(names, SimpleNamespace(index=1))
    assert GenerationOptions(face=chosen).face == "person2"
    with pytest.raises(UserError, match="video: a.mp4"):
        (tmp_path / "a.mp4").write_bytes(b"ffconcat version 1.0\nfile a.mp4\n")
        strip.search(str(tmp_path / "a.mp4"))


def test_the_page_never_probes_audio(tmp_path, monkeypatch):
    """Gradio's own component would run ffprobe and ffmpeg on untrusted files, without limits."""

    def probe(*_):
        raise AssertionError("probed")

    monkeypatch.setattr(gr.processing_utils, "audio_is_playable", probe)
    monkeypatch.setattr(gr.processing_utils, "ffmpeg_installed", lambda: True)
    path = tmp_path / "a.aiff"
    path.write_bytes(b"x")
    with pytest.raises(AssertionError, match="probed"):
        gr.Audio(type="filepath").postprocess(str(path))
    field = unprobed_audio("Audio", "voice")
    shown = field.postprocess(str(path))
    assert (shown.path, shown.orig_name) == (str(path), "a.aiff") and field.postprocess(None) is None
    assert field.preprocess(shown) == str(path)


def test_a_script_with_several_voices(service, tmp_path):
    files = write_files(tmp_path / "in")
    voices = [str(shutil.copy(files["audio"][1], tmp_path / name)) for name in ("anna.mp4", "ben.mp4")]
    script = tmp_path / "cues.csv"
    script.write_text("start,face,audio\n0,left,anna.mp4\n0,right,ben.mp4\n")
    with gr.Blocks() as page:
        lipsync = LipsyncTab(service, page, gr.State(""))
    values = {name: field.value for name, field in lipsync.form.fields.items()}
    submit, video = lipsync._submitter({}), str(files["video"][1])
    with pytest.raises(UserError, match="need a script"):
        submit("", video, None, voices, *values.values())
    values["script"] = str(script)
    with pytest.raises(UserError, match="there is no audio 'ben.mp4'"):
        submit("", video, voices[0], None, *values.values())
    with pytest.raises(UserError, match="at most 8"):
        submit("", video, None, voices * 5, *values.values())
    for audio, more in ((None, voices), (voices[0], voices[1:])):
        made = service.get(submit("", video, audio, more, *values.values())[lipsync.panel.job_id])
        assert made.inputs["audio"] == "anna.mp4" and made.inputs["audio2"] == "ben.mp4"


def test_the_settings_of_a_job_with_a_script_are_used_again(service, tmp_path):
    """With all of its files, under their own names."""
    files = write_files(tmp_path / "in")
    voices = [str(shutil.copy(files["audio"][1], tmp_path / name)) for name in ("anna.mp4", "ben.mp4")]
    script = tmp_path / "cues.csv"
    script.write_text("start,face,audio\n0,left,anna.mp4\n0,right,ben.mp4\n")
    lipsync, results = tabs_of(service)
    values = {name: field.value for name, field in lipsync.form.fields.items()} | {"script": str(script)}
    submit = lipsync._submitter({})
    first = submit("", str(files["video"][1]), None, voices, *values.values())[lipsync.panel.job_id]
    video, audio, more, *fields, reused, _ = results.fill_in(first)
    again = service.get(submit(reused, video, audio, more, *fields)[lipsync.panel.job_id])
    assert again.id != first and again.inputs == service.get(first).inputs | {"script": "script.json"}
    assert service.input_path(again.id, "script").read_text() == service.input_path(first, "script").read_text()
    for name in ("video", "audio", "audio2"):
        service.input_path(first, name).unlink()
    assert results.fill_in(first)[:3] == [None, None, None]  # not what is there by chance


def tabs_of(service) -> tuple[LipsyncTab, ResultsTab]:
    with gr.Blocks() as page, gr.Tabs() as tabs, gr.Tab("x") as tab:
        lipsync = LipsyncTab(service, page, gr.State(""))
        return lipsync, ResultsTab(service, page, tab, gr.State(""), lipsync, tabs)


def test_errors_become_messages_without_the_inside(caplog):
    def user_error():
        raise UserError("no face in it")

    def bug():
        raise RuntimeError("secret")

    with pytest.raises(gr.Error, match="no face in it"):
        report_errors(user_error)()
    with pytest.raises(gr.Error, match="internal error") as error:
        report_errors(bug)()
    assert "secret" not in str(error.value) and "secret" in caplog.text
    with pytest.raises(gr.Error, match="crf must be a whole number from 0 to 51, not 99"):
        report_errors(lambda: parse_options({"crf": 99}))()


def test_a_job_from_the_form_to_the_list_of_results(service, tmp_path):
    files = write_files(tmp_path / "in")
    lipsync, results = tabs_of(service)
    with gr.Blocks() as page:
        frames = FramesTab(service, page, gr.State(""))
    values = {name: field.value for name, field in lipsync.form.fields.items()} | {"face": " left "}
    submit = lipsync._submitter({"max_seconds": 2.0})
    with pytest.raises(UserError, match="a video or an image"):
        submit("", None, str(files["audio"][1]), None, *values.values())
    with pytest.raises(UserError, match="Choose audio first"):
        submit("", str(files["video"][1]), None, None, *values.values())
    updates = submit("", str(files["video"][1]), str(files["audio"][1]), None, *values.values())
    job_id = updates[lipsync.panel.job_id]
    made = service.get(job_id)
    assert (made.options.face, made.options.max_seconds, made.options.guidance_scale) == ("left", 2.0, None)
    assert "next in the queue" in updates[lipsync.panel.status]
    with working(service, FakeRunner()):
        assert wait_for(service, job_id).state is JobState.DONE
    shown = lipsync.panel.refresh(job_id)
    player = shown[lipsync.panel.player]
    assert player["visible"] and "<img" in player["value"] and f"{job_id}/result.mp4" in player["value"]

    listed = results.listing()
    assert listed[results.ids] == [job_id] and "done" in listed[results.gallery]["value"][0][1]
    opened = results.open([job_id], SimpleNamespace(index=0))
    download = opened[results.panel.download]
    assert download["visible"] and f"{job_id}/result.mp4?download=face_voice_2s.mp4" in download["value"]
    assert opened[results.delete]["visible"]
    assert "<td>left</td>" in opened[results.settings]["value"]
    report = json.loads(Path(opened[results.report]["value"]).read_text())
    assert report["options"]["face"] == "left" and datetime.fromisoformat(report["created"]).tzinfo is not None
    assert results.listing(listed[results.shown])[results.ids] == gr.skip()  # nothing has changed
    video, audio, _, *fields, _, _ = results.fill_in(job_id)
    assert (Path(video).name, Path(audio).name) == ("video.png", "audio.mp4")
    read, _ = lipsync.form.read(tuple(fields))
    assert read == made.options
    assert results.remove("") == {results.gallery: gr.skip()}  # it was not confirmed
    removed = results.remove(job_id)
    assert removed[results.ids] == [] and not removed[results.delete]["visible"]
    assert lipsync.panel.refresh(job_id)[lipsync.panel.job_id] == ""
    with pytest.raises(UserError, match="Choose a video first"):
        frames.submit(None, 50)


def test_a_running_job_is_found_again_and_can_be_cancelled(service, tmp_path):
    made = service.submit(JobKind.LIPSYNC, write_files(tmp_path / "in"), GenerationOptions())
    with gr.Blocks():
        panel = JobPanel(service, gr.State(""))
    service.store.claim("w")
    again = panel.refresh(made.id)
    assert again[panel.cancel]["visible"] and again[panel.timer].active
    asked = panel.stop(made.id)
    assert "Canceling" in asked[panel.status] and asked[panel.timer].active and not asked[panel.cancel]["visible"]
    service.store.give_back("w")
    stopped = panel.refresh(made.id)
    assert "Canceled" in stopped[panel.status] and not stopped[panel.timer].active


def test_the_page_is_built_without_public_functions(service):
    page = build_page(service)
    assert all(function.api_visibility == "private" for function in page.fns.values())


def test_the_page_shows_no_other_files_and_answers_to_no_other_site(service, monkeypatch, capsys):
    pages: list[gr.Blocks] = []
    monkeypatch.setattr("latentsync.serving.page.app.wait_for_signal", pages.append)
    serve_page(service, "127.0.0.1", 0)
    url = re.search(r"listening on (\S+)", capsys.readouterr().out)[1]
    try:
        with httpx.Client(base_url=url, trust_env=False, timeout=60) as client:
            assert client.get("/").status_code == 200
            assert client.get("/rest/healthz").status_code == 200
            assert client.get("/rest/v1/jobs").json() == {"jobs": []}
            for path in (PROJECT_ROOT / "README.md", service.workspace.database, "/etc/passwd"):
                assert client.get(f"/gradio_api/file={path}").status_code == 403, path
            own = service.workspace.folder("0" * 32) / "result.mp4"
            own.parent.mkdir()
            own.write_bytes(b"video")
            saved = client.get("/" + download_link(own, "an&na_\N{SNOWMAN}.mp4"))
            assert saved.content == b"video"
            assert saved.headers["content-disposition"] == "attachment; filename*=UTF-8''an%26na_%E2%98%83.mp4"
            assert client.get("/", headers={"Host": "evil.example"}).status_code == 421
            assert client.get("/", headers={"Origin": "https://evil.example"}).status_code == 403
            assert client.get("/rest/v1/jobs", headers={"Origin": "https://evil.example"}).status_code == 403
    finally:
        pages[0].close()


def download_link(path: Path, name: str) -> str:
    return html.unescape(re.search(r'href="([^"]+)"', download_html(path, name))[1])


def test_the_api_beside_a_page_with_a_password_needs_a_key(service, monkeypatch, capsys):
    pages: list[gr.Blocks] = []
    monkeypatch.setattr("latentsync.serving.page.app.wait_for_signal", pages.append)
    for key, status in ((None, 404), ("k" * 16, 401)):
        serve_page(service, "127.0.0.1", 0, login=("me", "secret"), api_key=key)
        url = re.search(r"listening on (\S+)", capsys.readouterr().out)[1]
        with httpx.Client(base_url=url, trust_env=False, timeout=60) as client:
            assert client.get("/rest/v1/jobs").status_code == status
            if key:
                assert client.get("/rest/v1/jobs", headers={"X-API-Key": key}).status_code == 200
        pages.pop().close()


def test_the_player_of_source_and_result():
    both = compare_html(Path("/a/video.mp4"), Path("/a/it's.mp4"), 2.5)
    assert both.count("<video") == 2 and 'data-start="2.5"' in both and "it%27s.mp4" in both
    assert "<img" in compare_html(Path("/a/video.png"), Path("/a/r.mp4"))
    for source in (None, Path("/a/video.heic")):  # browsers do not show it
        alone = compare_html(source, Path("/a/r.mp4"))
        assert "compare alone" in alone and alone.count("<video") == 1


def test_unset_numbers_are_empty_fields():
    """A number field would show 0."""
    for name in ("inference_steps", "guidance_scale", "interpolate", "max_seconds"):
        field = make_field(OPTIONS[name])
        assert isinstance(field, gr.Textbox) and field.value == "" and OPTIONS[name].show.unset in field.placeholder
    assert make_field(OPTIONS["start"]).placeholder == "its beginning (seconds)"


def test_a_number_or_a_word_is_a_list_that_takes_other_numbers():
    field = make_field(OPTIONS["chunk_batch_size"])
    assert isinstance(field, gr.Dropdown) and field.allow_custom_value and field.value == "1"
    assert [value for _, value in field.choices] == ["auto", "1", "2", "4", "8"]


@pytest.mark.parametrize("words", [["--max_upload_mb", "nan"], ["--max_upload_mb", "inf"], []])
def test_numbers_that_are_none(words, monkeypatch, capsys):
    if not words:
        monkeypatch.setenv("GRADIO_SERVER_PORT", "x")
    with pytest.raises(SystemExit, match="2"):
        gradio_app.main(words)
    assert "invalid" in capsys.readouterr().err


@pytest.mark.parametrize("port", [-1, 65536])
def test_ports_that_are_none(service, port):
    with pytest.raises(UserError, match="between 0 and 65535"):
        serve_page(service, "127.0.0.1", port)


def test_other_machines_need_a_password(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in (gradio_app.USER_VARIABLE, gradio_app.PASSWORD_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    for words in (["--host", "0.0.0.0"], ["--share"]):
        assert gradio_app.main(words) == 1
        assert "others can reach the page" in capsys.readouterr().err
    default = gradio_app.build_parser().parse_args([])
    assert not default.share and not default.no_auth and default.host == "127.0.0.1"
    monkeypatch.setenv(gradio_app.USER_VARIABLE, "me")
    assert gradio_app.main([]) == 1
    assert "set both" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
