"""Metrics of validation videos: the scorer of the evaluation, frames without a face, the reconstructed mouth."""

import logging
from pathlib import Path

import numpy as np
import pytest

from eval import metrics
from eval.validation import OF_RECONSTRUCTION, OF_RESULT, Validation
from latentsync.faces import video
from latentsync.loading import ModelPaths, load_pipeline
from latentsync.metrics import faces
from latentsync.metrics.clip_sync import ClipSync
from latentsync.utils.errors import UserError
from tests.media.synthetic import tone, write_audio, write_clip
from tests.pipelines.scenes import clip, draw_scene

FRAMES = 16  # of a clip; chunks of 4, so that its other half is the reference


class FixedScorer:
    """Sync by the length of the audio: scoring itself is tested elsewhere."""

    name = "fixed"

    def __init__(self, files: tuple[Path, ...] = ()):
        self.files = files

    def score_video(self, path: Path, wave: np.ndarray) -> list[ClipSync]:
        if path.stem == "blank":
            raise UserError("no face is in view for long enough")
        return [ClipSync("fixed", -2, len(wave) / 16000, 1.0, np.ones(1))]


@pytest.fixture
def scorer(detector, monkeypatch) -> FixedScorer:
    def create(*args, **options):
        detector.reset()
        return detector

    scorer = FixedScorer()
    monkeypatch.setattr(detector, "close", lambda: None)
    for module in (video, faces):
        monkeypatch.setattr(module, "create_detector", create)
    monkeypatch.setattr(metrics, "open_sync_scorer", lambda *args: scorer)
    return scorer


@pytest.fixture(scope="module")
def pipeline(tiny_files):
    loaded = load_pipeline(ModelPaths(**vars(tiny_files)), "cpu")
    loaded.num_inference_steps, loaded.guidance_scale = 1, 1.0
    return loaded


@pytest.fixture
def source(tmp_path) -> Path:
    return clip(tmp_path / "source.mp4", FRAMES, lambda i: draw_scene(((16 + i % 8, 0),)), tone_seconds=FRAMES / 25)


@pytest.fixture
def voice(tmp_path) -> Path:
    write_audio(tmp_path / "voice.wav", np.concatenate([tone(16000, 0.32), np.zeros(8000)]).astype(np.float32))
    return tmp_path / "voice.wav"


def all_metrics(validation: Validation, pipeline, result: Path) -> dict[str, float]:
    return {**validation.result_metrics(pipeline, result), **validation.reconstruction_metrics(pipeline)}


def test_all_metrics_of_a_result(scorer, pipeline, source, voice):
    found = all_metrics(Validation(source, voice, 4), pipeline, source)
    assert found["sync_confidence"] == pytest.approx(0.82) and found["sync_offset"] == -2
    assert found["sharpness"] == 1 and found["boundary"] == 0  # the result is the source itself
    assert found["psnr_mouth"] < 30 and found["ssim_mouth"] < 1  # but its reconstruction is by random weights
    assert set(found) <= {"sync_confidence", "sync_offset", *OF_RESULT, *OF_RECONSTRUCTION}
    assert np.isfinite(list(found.values())).all()


def test_frames_without_a_face_are_left_out(scorer, pipeline, tmp_path, voice):
    empty = np.full((120, 160, 3), 90, np.uint8)
    path = clip(tmp_path / "gap.mp4", FRAMES, lambda i: empty if 6 <= i < 9 else draw_scene(), tone_seconds=FRAMES / 25)
    found = all_metrics(Validation(path, voice, 4), pipeline, path)
    assert found["sharpness"] == 1 and "psnr_mouth" not in found  # seven faces in a row are too few to rebuild


def test_a_result_without_a_face_keeps_the_rest(scorer, pipeline, source, tmp_path, voice, caplog):
    blank = write_clip(tmp_path / "blank.mp4", FRAMES, size=(160, 120))
    found = all_metrics(Validation(source, voice, 4), pipeline, blank)
    assert "validation without sync: no face" in caplog.text
    assert "sync_confidence" not in found and {"sharpness", "psnr_mouth"} <= set(found)


def test_a_silent_source_has_no_reconstruction(scorer, pipeline, tmp_path, voice, caplog):
    caplog.set_level(logging.INFO)
    path = clip(tmp_path / "silent.mp4", FRAMES)
    validation = Validation(path, voice, 4)
    assert not set(OF_RECONSTRUCTION) & set(all_metrics(validation, pipeline, path))
    assert not set(OF_RECONSTRUCTION) & set(all_metrics(validation, pipeline, path))
    assert caplog.text.count("validation without a reconstruction") == 1


def test_the_loss_as_its_own_scorer_is_named(scorer, pipeline, source, voice, tmp_path, caplog):
    scorer.files = (tmp_path / "syncnet.safetensors",)
    Validation(source, voice, 4, tmp_path / "other.pt").result_metrics(pipeline, source)
    assert "is also the sync loss" not in caplog.text
    Validation(source, voice, 4, tmp_path / "syncnet.safetensors").result_metrics(pipeline, source)
    assert "is also the sync loss" in caplog.text
