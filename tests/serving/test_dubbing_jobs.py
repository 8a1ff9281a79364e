"""Jobs and batch rows that speak a text or follow a script."""

import json
from pathlib import Path

import pytest

from latentsync.options import GenerationOptions
from latentsync.serving.batch import read_list
from latentsync.serving.handler import run_job
from latentsync.serving.jobs import JobKind
from latentsync.utils.errors import UserError
from tests.media.synthetic import tone, write_audio
from tests.serving.fakes import service_in, write_files


@pytest.fixture
def service(tmp_path):
    return service_in(tmp_path / "ws")


@pytest.fixture
def files(tmp_path):
    return write_files(tmp_path / "in")


def script_of(folder: Path, text: str) -> dict[str, tuple[str, Path]]:
    path = folder / "cues.csv"
    path.write_text(text)
    return {"script": (path.name, path)}


def test_a_script_names_its_audio_by_file_or_by_field(service, files, tmp_path):
    second = write_audio(tmp_path / "ben.wav", tone(16000, 0.3))
    given = files | {"audio2": ("ben.wav", second)}
    given |= script_of(tmp_path, "start,face,audio\n0,left,voice.mp4\n0.1,right,ben.wav\n1,left,audio2\n")
    job = service.submit(JobKind.LIPSYNC, given, GenerationOptions())
    stored = service.input_path(job.id, "script")
    assert stored.name == "script.json"
    cues = json.loads(stored.read_text())
    assert [(cue["start"], cue["face"], cue["audio"]) for cue in cues] == [
        (0.0, "left", "audio"), (0.1, "right", "audio2"), (1.0, "left", "audio2"),
    ]  # fmt: skip
    service.workspace.clear_attempt(job.id)
    assert stored.is_file() and service.input_path(job.id, "audio2").is_file()


def test_options_that_a_script_job_refuses(service, files, tmp_path):
    video = {"video": files["video"]}
    for text, message in (
        ("start,audio\n0,../secret.wav\n", "script: cues.csv: line 2: there is no audio '../secret.wav'"),
        ("start,text,voice\n0,Hello,/etc/voice.onnx\n", "takes no paths"),
        ("start,audio\nsoon,audio\n", "script: cues.csv: line 2: 'soon' is not a time"),
        ("", "script: cues.csv: "),
    ):
        with pytest.raises(UserError, match=message) as error:
            service.submit(JobKind.LIPSYNC, video | script_of(tmp_path, text), GenerationOptions())
        assert str(tmp_path) not in str(error.value)
    with pytest.raises(UserError, match="takes no paths"):
        service.submit(JobKind.LIPSYNC, files, GenerationOptions(script=tmp_path / "cues.csv"))
    with pytest.raises(UserError, match="takes no paths"):
        service.submit(JobKind.LIPSYNC, video, GenerationOptions(text="Hello", voice="a/b.onnx"))
    with pytest.raises(UserError, match="takes video, audio, mask, script, not audio2"):
        service.submit(JobKind.LIPSYNC, files | {"audio2": files["audio"]}, GenerationOptions())


def test_a_text_takes_no_audio(service, files):
    options = GenerationOptions(text="Hello")
    assert service.submit(JobKind.LIPSYNC, {"video": files["video"]}, options).options.text == "Hello"
    with pytest.raises(UserError, match="takes video, mask, not audio"):
        service.submit(JobKind.LIPSYNC, files, options)
    with pytest.raises(UserError, match="needs video and audio; audio is missing"):
        service.submit(JobKind.LIPSYNC, {"video": files["video"]}, GenerationOptions())


def test_the_pipeline_gets_the_script_and_its_audio(tmp_path, monkeypatch, files):
    seen = {}

    class Models:
        device = "cpu"

        def get(self, options):
            return lambda video, audio, out, **more: seen.update(audio=audio, script=more["options"].script)

    monkeypatch.setattr("latentsync.serving.handler.require_face", lambda *_: None)
    paths = {role: path for role, (_, path) in files.items()} | {"script": tmp_path / "script.json"}
    run_job(JobKind.LIPSYNC, GenerationOptions(), paths, tmp_path / "o.mp4", Models(), lambda progress: None)
    assert seen == {"audio": {"audio": paths["audio"]}, "script": tmp_path / "script.json"}
    del paths["script"]
    run_job(JobKind.LIPSYNC, GenerationOptions(), paths, tmp_path / "o.mp4", Models(), lambda progress: None)
    assert seen == {"audio": paths["audio"], "script": None}


def test_rows_of_a_list(tmp_path):
    (tmp_path / "cues.csv").write_text("start,audio\n0,a.wav\n1,voices/b.wav\n")
    (tmp_path / "list.csv").write_text(
        "video,audio,out,text,script\nv.mp4,,a.mp4,Hello there,\nv.mp4,,b.mp4,,cues.csv\nv.mp4,,c.mp4,,\n"
    )
    spoken, scripted, interpolated = read_list(tmp_path / "list.csv")
    assert [row.kind for row in (spoken, scripted, interpolated)] == [JobKind.LIPSYNC] * 2 + [JobKind.INTERPOLATE]
    assert set(spoken.files()) == {"video"}
    assert scripted.files() == {
        "video": ("v.mp4", tmp_path / "v.mp4"),
        "script": ("cues.csv", tmp_path / "cues.csv"),
        "audio": ("a.wav", tmp_path / "a.wav"),
        "audio2": ("voices/b.wav", tmp_path / "voices/b.wav"),
    }
