"""One interface to both scorers: signs, faces of a video, unusable videos."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from latentsync.metrics import clip_sync
from latentsync.metrics.clip_sync import EmbeddedScorer, PublishedScorer, open_sync_scorer
from latentsync.pretrained.syncnet_v2 import SyncNetV2
from latentsync.utils.errors import UserError
from tests.conformance.seeded import fill_
from tests.pipelines.scenes import clip, draw_scene


@pytest.fixture(scope="module")
def published_path(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("syncnet") / "syncnet_v2.model"
    torch.save(fill_(SyncNetV2(), 0).state_dict(), path)
    return path


def with_sound(path: Path, frames: int) -> Path:
    """A clip of the test head, 150 pixels of face, with a tone."""
    large = cv2.resize(draw_scene(), (480, 360))
    return clip(path, frames, lambda index: large, tone_seconds=frames / 25)


def test_which_scorer_is_opened(published_path, tmp_path, monkeypatch):
    (tmp_path / "auxiliary").mkdir()
    monkeypatch.setattr(clip_sync, "EmbeddedScorer", lambda device: "embedded")
    assert open_sync_scorer("auto", checkpoints=tmp_path) == "embedded"
    with pytest.raises(UserError, match=r"syncnet_v2\.model\); run `latentsync download"):
        open_sync_scorer("syncnet_v2", checkpoints=tmp_path)
    with pytest.raises(UserError, match="choose one of auto, syncnet_v2, embedded"):
        open_sync_scorer("lse")
    scorer = open_sync_scorer("auto", model_path=published_path, checkpoints=tmp_path)
    assert scorer.name == "syncnet_v2 (MediaPipe faces)" and scorer.files == (published_path,)


def test_offsets_of_the_embedded_scorer_have_the_published_sign(monkeypatch):
    """Embeddings that are the frame's number, on a circle: audio that is three frames early."""
    scorer = EmbeddedScorer()
    angles = torch.linspace(0, 3, 60)
    circle = torch.stack([angles.cos(), angles.sin()], dim=1)
    monkeypatch.setattr(scorer.scorer, "embed", lambda faces, wave: (circle[:-3], circle[3:]))
    result = scorer.score_faces(np.zeros((60, 8, 8, 3), np.uint8), np.zeros(60 * 640, np.float32))
    assert result.offset == 3
    assert result.window_confidences.shape == (57,)
    assert np.nanmin(result.window_confidences) > 0


def test_a_video_is_scored_face_by_face(published_path, tmp_path):
    video = with_sound(tmp_path / "two words.mp4", 55)
    (result,) = PublishedScorer(published_path).score_video(video)
    assert (result.start, result.frames) == (0, 55)
    assert len(result.window_confidences) == 50
    assert result.confidence >= 0 and result.min_distance > 0


def test_unusable_videos_are_refused(published_path, tmp_path):
    scorer = PublishedScorer(published_path)
    with pytest.raises(UserError, match="no face of 100 pixels is in view for 50 frames"):
        scorer.score_video(with_sound(tmp_path / "short.mp4", 12))
    with pytest.raises(UserError, match=r"no\.mp4"):
        scorer.score_video(clip(tmp_path / "no.mp4", 12))  # no audio
    with pytest.raises(UserError, match="sync needs 6 with audio"):
        scorer.score_faces(np.zeros((5, 64, 64, 3), np.uint8), np.zeros(6400, np.float32))


def test_audio_shorter_than_the_video(published_path, tmp_path):
    scorer, video = PublishedScorer(published_path), with_sound(tmp_path / "a.mp4", 55)
    (result,) = scorer.score_video(video, np.zeros(20 * 640, np.float32))
    assert (result.start, result.frames) == (0, 20)
    for wave in (np.zeros(0, np.float32), np.zeros(5 * 640, np.float32)):
        with pytest.raises(UserError, match="no face is in view for 6 frames with audio"):
            scorer.score_video(video, wave)


def test_clips_too_short_for_the_embedded_scorer():
    scorer = EmbeddedScorer()
    assert scorer.min_frames == 31
    with pytest.raises(UserError, match="has 30 frames, sync needs 31 with audio"):
        scorer.score_faces(np.zeros((30, 64, 64, 3), np.uint8), np.zeros(40 * 640, np.float32))


def test_a_long_aligned_clip_is_scored_with_its_own_part_of_the_audio(published_path, monkeypatch):
    """Faces of aligned clips are read in parts, of which each has its audio."""
    scorer, wave = PublishedScorer(published_path), np.arange(100 * 640, dtype=np.float32)
    parts = [(0, np.zeros((60, 8, 8, 3), np.uint8)), (60, np.zeros((40, 8, 8, 3), np.uint8))]
    monkeypatch.setattr(clip_sync, "probe_video", lambda path: type("Info", (), {"is_still": False}))
    monkeypatch.setattr(clip_sync, "is_aligned_clip", lambda info: True)
    monkeypatch.setattr(clip_sync, "aligned_tracks", lambda info, side: iter(parts))
    starts = []
    score = scorer.score_faces
    monkeypatch.setattr(scorer, "score_faces", lambda faces, part: starts.append(part[0]) or score(faces, part))
    assert [(found.start, found.frames) for found in scorer.score_video("a.mp4", wave)] == [(0, 60), (60, 40)]
    assert starts == [0, 60 * 640]
