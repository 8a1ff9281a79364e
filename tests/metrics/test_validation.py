"""Sync of a finished video: its faces are found and aligned again, frame by frame."""

import pytest
import torch

from latentsync.metrics import validation
from latentsync.metrics.sync import OFFSET_REACH, SyncScorer
from latentsync.metrics.validation import VideoSyncScorer, aligned_faces
from latentsync.utils.errors import UserError
from tests.media.synthetic import write_clip
from tests.pipelines.scenes import clip
from tests.training.tiny_unet import FRAMES, tiny_syncnet


@pytest.fixture(autouse=True)
def one_detector(detector, monkeypatch):
    detector.reset()
    monkeypatch.setattr(detector, "close", lambda: None)
    monkeypatch.setattr(validation, "create_detector", lambda name: detector)


def test_confidence_of_a_video(tmp_path):
    frames = FRAMES + OFFSET_REACH
    path = clip(tmp_path / "clip.mp4", frames, tone_seconds=frames / 25)
    faces = aligned_faces(path, 64)
    assert faces.shape == (frames, 3, 64, 64) and -1 <= faces.min() and faces.max() <= 1 and faces.std() > 0.1
    scorer = VideoSyncScorer(SyncScorer(tiny_syncnet(), FRAMES, 64))
    measures = scorer(path)
    assert measures["sync_confidence"] >= 0 and abs(measures["sync_offset"]) <= OFFSET_REACH
    assert torch.isfinite(torch.tensor(list(measures.values()))).all()


def test_a_video_without_a_face_is_named(tmp_path):
    path = write_clip(tmp_path / "blank.mp4", 3)
    with pytest.raises(UserError, match="blank.mp4: 3 of 3 frames show no face"):
        aligned_faces(path, 64)
