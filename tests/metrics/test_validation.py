"""Sync of a finished video: its faces are found and aligned again, unless it is a clip of aligned faces."""

import numpy as np
import pytest
import torch

from latentsync.faces import video
from latentsync.media.probe import probe_video
from latentsync.metrics import faces
from latentsync.metrics.faces import aligned_tracks
from latentsync.metrics.sync import OFFSET_REACH, SyncScore, SyncScorer
from latentsync.metrics.validation import VideoSyncScorer
from latentsync.utils.errors import UserError
from tests.media.synthetic import write_clip
from tests.pipelines.scenes import clip, picture
from tests.training.tiny_unet import FRAMES, tiny_syncnet


@pytest.fixture(autouse=True)
def one_detector(detector, monkeypatch):
    detector.reset()
    monkeypatch.setattr(detector, "close", lambda: None)
    for module in (video, faces):
        monkeypatch.setattr(module, "create_detector", lambda *args, **options: detector)


def test_confidence_of_a_video(tmp_path):
    frames = FRAMES + OFFSET_REACH
    path = clip(tmp_path / "clip.mp4", frames, tone_seconds=frames / 25)
    ((start, found),) = aligned_tracks(probe_video(path), 64)
    assert start == 0 and found.shape == (frames, 64, 64, 3) and found.std() > 12
    scorer = VideoSyncScorer(SyncScorer(tiny_syncnet(), FRAMES, 64))
    measures = scorer(path)
    assert measures["sync_confidence"] >= 0 and abs(measures["sync_offset"]) <= OFFSET_REACH
    assert torch.isfinite(torch.tensor(list(measures.values()))).all()


def test_a_video_without_a_face_is_named(tmp_path):
    path = write_clip(tmp_path / "blank.mp4", 3, tone_seconds=0.12)
    with pytest.raises(UserError, match="blank.mp4: no frame shows a face"):
        VideoSyncScorer(SyncScorer(tiny_syncnet(), FRAMES, 64))(path)


def test_frames_without_a_face_are_left_out(tmp_path):
    """The longest run counts; audio and frames stay in step."""
    frames = FRAMES + OFFSET_REACH
    empty = np.full((120, 160, 3), 90, np.uint8)
    path = clip(tmp_path / "c.mp4", frames + 6, lambda i: empty if i < 6 else picture(), tone_seconds=(frames + 6) / 25)
    calls = []
    scorer = SyncScorer(tiny_syncnet(), FRAMES, 64)
    scorer.score = lambda faces, wave: calls.append((len(faces), len(wave))) or SyncScore(np.array([1.0, 0.5, 1.0]))
    assert VideoSyncScorer(scorer)(path) == {"sync_confidence": 0.5, "sync_offset": 0.0}
    assert calls == [(frames, frames * 640)]
