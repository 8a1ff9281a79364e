"""Batches: one pipeline for all, resumable, bad rows do not stop the others."""

import csv
import json
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

import latentsync
from eval import inference_videos
from eval.inference_videos import BatchInference, main
from eval.output_folder import output_folder
from eval.pairs import Pair, read_pairs
from latentsync.loading import ModelPaths, load_pipeline
from latentsync.media.audio import load_audio
from latentsync.media.probe import probe_video
from latentsync.options import GenerationOptions
from latentsync.utils.batch import ALL_FAILED, SOME_FAILED
from latentsync.utils.errors import UserError
from latentsync.utils.paths import PROJECT_ROOT
from tests.media.synthetic import tone, write_audio, write_clip
from tests.waiting import HANG_SECONDS, eventually


@dataclass
class Result:
    num_frames: int


class Copies:
    """In the place of a pipeline: checks what it gets as the real one does, and writes a small file."""

    def __init__(self) -> None:
        self.calls: list[tuple] = []

    def __call__(self, video: Path, audio: Path, target: Path, options: GenerationOptions) -> Result:
        probe_video(video)
        load_audio(audio, 16000)
        self.calls.append((video.name, audio.name, options))
        target.write_bytes(video.read_bytes())
        return Result(5)


@pytest.fixture
def folder(tmp_path) -> Path:
    write_clip(tmp_path / "ä b.mp4", 5, tone_seconds=0.2)
    write_clip(tmp_path / "two\nlines.mp4", 5, tone_seconds=0.2)
    write_clip(tmp_path / "silent.mp4", 5)
    write_audio(tmp_path / "voice.wav", tone(16000, 0.2))
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("not a video")
    rows = ["video,audio,id", "ä b.mp4,,first", "empty.mp4,,", "text.mp4,voice.wav,", "silent.mp4,,", "none.mp4,,"]
    (tmp_path / "list.csv").write_text("\n".join([*rows, '"two\nlines.mp4",voice.wav,']) + "\n")
    return tmp_path


@pytest.fixture
def pipeline(monkeypatch) -> Copies:
    made, opened = Copies(), []
    monkeypatch.setattr(latentsync, "load_pipeline", lambda *places, **named: opened.append(places) or made)
    made.opened = opened
    return made


def call(folder: Path, *more: str) -> int:
    words = ["--pairs", str(folder / "list.csv"), "--output_dir", str(folder / "out"), "--model", "embedded", *more]
    return main(words)


def statuses(folder: Path) -> dict[str, str]:
    with (folder / "out" / "inference.csv").open(newline="") as file:
        return {row["id"]: row["status"] for row in csv.DictReader(file)}


def test_bad_rows_are_reported_and_one_pipeline_does_the_rest(folder, pipeline, capsys):
    assert call(folder, "--seed", "5", "--inference_steps", "3") == SOME_FAILED
    failed = dict.fromkeys(["empty", "text__voice", "silent", "none"], "failed")
    assert statuses(folder) == {"first": "done", **failed, "two_lines__voice": "done"}
    assert len(pipeline.opened) == 1 and [name for name, *_ in pipeline.calls] == ["ä b.mp4", "two\nlines.mp4"]
    options = pipeline.calls[0][2]
    assert (options.seed, options.inference_steps, options.solver) == (5, 3, None)
    with (folder / "out" / "inference.csv").open(newline="") as file:
        reasons = {row["id"]: row["reason"] for row in csv.DictReader(file)}
    assert "0 bytes" in reasons["empty"] and "can" in reasons["text__voice"] and "cannot be read" in reasons["none"]
    assert reasons["first"] == "" and reasons["silent"]
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: 4 rows failed, see")


def test_only_missing_or_changed_results_are_generated(folder, pipeline):
    call(folder)
    call(folder)
    assert statuses(folder)["first"] == statuses(folder)["two_lines__voice"] == "kept" and len(pipeline.calls) == 2
    (folder / "out" / "first.mp4").unlink()
    call(folder)
    assert statuses(folder)["first"] == "done" and statuses(folder)["two_lines__voice"] == "kept"
    write_audio(folder / "voice.wav", tone(16000, 0.3))
    call(folder)
    assert statuses(folder)["first"] == "kept" and statuses(folder)["two_lines__voice"] == "done"
    (folder / "out" / "first.json").write_text('{"cut short')
    call(folder)
    assert statuses(folder)["first"] == "done"
    call(folder, "--guidance_scale", "1.0")
    assert len(pipeline.calls) == 7


@pytest.mark.parametrize(
    "words, changes", [(["--quantize"], {"quantize": True}), (["--weights", "fp8"], {"stored_weights": "fp8"})]
)
def test_results_in_8_bits_are_generated_anew(folder, pipeline, monkeypatch, words, changes):
    named: list[dict] = []
    monkeypatch.setattr(latentsync, "load_pipeline", lambda *places, **given: named.append(given) or pipeline)
    (folder / "list.csv").write_text("video,id\nä b.mp4,first\n")
    for more, status in (([], "done"), (words, "done"), (words, "kept"), ([], "done")):
        assert call(folder, *more) == 0
        assert statuses(folder)["first"] == status
        record = json.loads((folder / "out" / "first.json").read_text())
        assert changes.items() <= record.items() if more else not changes.keys() & record.keys()
    assert [(given["quantize"], given["weights"]) for given in named] == [
        (False, "full"),
        ("quantize" in changes, changes.get("stored_weights", "full")),
        (False, "full"),
    ]


def test_no_pipeline_is_loaded_without_work(folder, pipeline):
    (folder / "list.csv").write_text("video\nempty.mp4\nnone.mp4\n")
    assert call(folder) == ALL_FAILED
    assert len(pipeline.calls) == 0


def test_an_incomplete_result_is_generated_again(folder, monkeypatch):
    class Crashing(Copies):
        def __call__(self, video, audio, target, options):
            target.write_bytes(b"half")
            raise MemoryError

    pair = Pair("first", folder / "ä b.mp4")
    with pytest.raises(MemoryError):
        list(BatchInference(GenerationOptions(model="embedded"), folder / "out", Crashing)([pair]))
    rows = list(BatchInference(GenerationOptions(model="embedded"), folder / "out", Copies)([pair]))
    assert [row.status for row in rows] == ["done"] and (folder / "out" / "first.mp4").read_bytes() != b"half"


RESUMED = """
import sys, time
from pathlib import Path
from types import SimpleNamespace
from eval.inference_videos import BatchInference
from eval.pairs import read_pairs
from latentsync.options import GenerationOptions

folder = Path(sys.argv[1])

def pipeline(video, audio, target, options):
    with (folder / "begun").open("a") as file:
        file.write("x")
    target.write_bytes(b"half")
    while (folder / "begun").stat().st_size == 2 and not (folder / "go").exists():
        time.sleep(0.02)
    target.write_bytes(b"a result")
    return SimpleNamespace(num_frames=1)

options = GenerationOptions(model="embedded")
for outcome in BatchInference(options, folder / "out", lambda: pipeline)(read_pairs(folder / "two.csv")):
    print(outcome.row.id, outcome.status)
"""


def test_a_killed_run_resumes(folder):
    """Killed while the second result is written: the first is kept, and the second is made again."""
    (folder / "two.csv").write_text("video,audio,id\nä b.mp4,,a\nä b.mp4,voice.wav,b\n")
    command = [sys.executable, "-c", RESUMED, str(folder)]
    process = subprocess.Popen(command, cwd=PROJECT_ROOT)
    try:
        assert eventually(lambda: (folder / "begun").exists() and (folder / "begun").read_text() == "xx")
        assert eventually((folder / "out" / "b.mp4").exists)
    finally:
        process.kill()
        process.wait()
    (folder / "go").touch()
    again = subprocess.run(command, cwd=PROJECT_ROOT, capture_output=True, text=True, timeout=HANG_SECONDS)
    assert again.stdout.split() == ["a", "kept", "b", "done"], again.stderr
    assert (folder / "out" / "b.mp4").read_bytes() == b"a result"


def test_concurrent_runs_and_unwritable_folders_are_refused(folder, pipeline, capsys):
    with output_folder(folder / "out"):
        assert call(folder) == 1
        assert "another run is writing there" in capsys.readouterr().err
    assert call(folder, "--output_dir", str(folder / "list.csv")) == 1
    assert "cannot be written to" in capsys.readouterr().err
    (folder / "out" / "inference.csv").mkdir()
    assert call(folder) == 1
    assert "inference.csv: cannot be written" in capsys.readouterr().err


def test_invalid_lists_and_models(folder, capsys):
    assert call(folder, "--model", "embeded") == 1
    assert "did you mean embedded?" in capsys.readouterr().err
    (folder / "list.csv").write_text("video\n")
    assert call(folder) == 1
    assert "has no rows" in capsys.readouterr().err


def test_the_real_pipeline_on_a_tiny_model(media, tiny_files, shared_detector, tmp_path):
    (tmp_path / "list.csv").write_text(f"video,audio,id\n{media / 'clip.mp4'},{media / 'voice.wav'},one\n")
    settings = GenerationOptions(model="embedded", inference_steps=1, guidance_scale=1.0)
    opener = partial(load_pipeline, ModelPaths(**vars(tiny_files)), "cpu")
    (row,) = BatchInference(settings, tmp_path / "out", opener)(read_pairs(tmp_path / "list.csv"))
    assert (row.status, row.frames) == ("done", 10) and row.seconds > 0
    assert probe_video(tmp_path / "out" / "one.mp4").num_frames == 10


def test_fingerprints_differ_between_weights(tmp_path, monkeypatch):
    (tmp_path / "vae").mkdir()
    parts = ("unet", "whisper", "unet_config", "scheduler_config")
    paths = {name: tmp_path / name for name in parts} | {"weights": tmp_path / "vae" / "weights.safetensors"}
    for path in paths.values():
        path.write_bytes(b"a")
    files = SimpleNamespace(vae=tmp_path / "vae", **{name: paths[name] for name in parts})
    monkeypatch.setattr(inference_videos, "resolve", lambda name: files)
    found = {inference_videos.weights_fingerprint("embedded")}
    for path in paths.values():
        for content in (b"b", b"a" * (1 << 21), b"a" * ((1 << 21) - 1) + b"b"):
            path.write_bytes(content)
            found.add(inference_videos.weights_fingerprint("embedded"))
    assert len(found) == 1 + 3 * len(paths)
    with pytest.raises(UserError):
        monkeypatch.undo()
        inference_videos.weights_fingerprint("unknown")
