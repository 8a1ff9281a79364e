"""Reconstruction from another part of the clip, with a tiny model."""

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from eval import metrics, reconstruction
from eval.reconstruction import METHODS, main, rebuild, reference_frames, reference_start
from latentsync.faces import video
from latentsync.faces.mask import load_mask
from latentsync.loading import ModelPaths, load_pipeline
from latentsync.metrics import faces
from latentsync.metrics.clip_sync import ClipSync
from latentsync.options import GenerationOptions
from latentsync.utils.errors import UserError
from tests.pipelines.scenes import clip, draw_scene
from tests.tiny_model import RESOLUTION

FRAMES = 34
OPTIONS = GenerationOptions(model="embedded", inference_steps=1, guidance_scale=1.0)


@pytest.fixture(scope="module")
def pipeline(tiny_files):
    return load_pipeline(ModelPaths(**vars(tiny_files)), "cpu")


@pytest.mark.parametrize("total", [32, 34, 75, 100])
def test_reference_never_overlaps_its_chunk(total):
    for start in range(0, total, 16):
        count = min(16, total - start)
        begin = reference_start(start, count, total)
        assert 0 <= begin and begin + count <= total and abs(begin - start) >= count
    assert len(reference_frames(total)) == total


def test_a_clip_too_short_for_a_reference_is_refused():
    with pytest.raises(UserError, match="no reference"):
        reference_start(0, 16, 31)


def test_only_the_masked_region_changes(pipeline):
    rng = np.random.default_rng(0)
    real = rng.integers(0, 256, (FRAMES, RESOLUTION, RESOLUTION, 3), dtype=np.uint8)
    results = rebuild(pipeline, real, np.zeros(FRAMES * 640, np.float32), OPTIONS)
    assert tuple(results) == METHODS
    mask = load_mask(RESOLUTION)[0, 0].numpy()
    for result in results.values():
        assert result.shape == real.shape and result.dtype == np.uint8
        assert np.array_equal(result[:, mask == 1], real[:, mask == 1])
        assert not np.array_equal(result[:, mask == 0], real[:, mask == 0])
    pasted = results["reference pasted"]
    for frame, other in enumerate(reference_frames(FRAMES)):
        assert np.array_equal(pasted[frame][mask == 0], real[other][mask == 0])


def test_the_model_sees_the_reference_and_not_the_mouth(pipeline, monkeypatch):
    """Other pixels in the masked region of the faces change nothing; other reference frames do."""
    monkeypatch.setattr(pipeline, "match_color", False)  # it compares with the faces
    rng = np.random.default_rng(1)
    real = rng.integers(0, 256, (FRAMES, RESOLUTION, RESOLUTION, 3), dtype=np.uint8)
    wave = np.zeros(FRAMES * 640, np.float32)
    reference = real[reference_frames(FRAMES)]
    hidden = load_mask(RESOLUTION)[0, 0].numpy() == 0
    other = real.copy()
    other[:, hidden] = 0
    made = pipeline.speak(real, wave, reference, OPTIONS)
    assert torch.equal(made[:, hidden], pipeline.speak(other, wave, reference, OPTIONS)[:, hidden])
    assert not torch.equal(made[:, hidden], pipeline.speak(real, wave, real, OPTIONS)[:, hidden])


def test_command(pipeline, detector, tmp_path: Path, monkeypatch, capsys):
    def create(*args, **options):
        detector.reset()
        return detector

    class Silent:
        name, files = "silent", ()

        def score_video(self, *args) -> list[ClipSync]:
            raise AssertionError("sync is not scored here")

    monkeypatch.setattr(detector, "close", lambda: None)
    for module in (video, faces):
        monkeypatch.setattr(module, "create_detector", create)
    monkeypatch.setattr(metrics, "open_sync_scorer", lambda *args: Silent())
    monkeypatch.setattr(reconstruction, "open_pipeline", lambda *args: pipeline)
    clip(tmp_path / "a.mp4", FRAMES, lambda index: draw_scene(((16 + index % 8, 0),)), tone_seconds=FRAMES / 25)
    clip(tmp_path / "short.mp4", 20, tone_seconds=0.8)
    (tmp_path / "list.csv").write_text("video\na.mp4\nshort.mp4\n")
    out = tmp_path / "out"
    words = ["--pairs", str(tmp_path / "list.csv"), "--output_dir", str(out), "--model", "embedded", "--device", "cpu"]
    assert main([*words, "--inference_steps", "1", "--guidance_scale", "1"]) == 0
    assert capsys.readouterr().out.strip() == str(out / "index.html")
    with (out / "summary.csv").open(newline="") as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    assert float(rows["reference pasted"]["psnr_mouth"]) > float(rows["model"]["psnr_mouth"])  # random weights
    with (out / "clips.csv").open(newline="") as file:
        failed = [row["reason"] for row in csv.DictReader(file) if row["status"] == "failed"]
    assert len(failed) == 3 and "no reference" in failed[0]
    assert (out / "results" / "model" / "a.mp4").is_file()
    shutil.rmtree(out)
    (tmp_path / "list.csv").write_text("video\nshort.mp4\n")
    assert main(words) == 1
    assert "no clip could be evaluated" in capsys.readouterr().err
