"""Faces of a video for metrics: clips of aligned faces are recognized and not aligned again."""

import numpy as np
import pytest

from latentsync.faces import video
from latentsync.media.probe import probe_video
from latentsync.metrics import faces
from latentsync.metrics.faces import aligned_tracks, alignment_error, is_aligned_clip, read_clip_faces, square_template
from preprocess.write import write_faces
from tests.pipelines.scenes import clip, draw_scene

SIDE = 128


@pytest.fixture(autouse=True)
def one_detector(detector, monkeypatch):
    detector.reset()
    monkeypatch.setattr(detector, "close", lambda: None)
    for module in (video, faces):
        monkeypatch.setattr(module, "create_detector", lambda *args, **options: detector)


@pytest.fixture
def aligned(tmp_path):
    """The faces of a clip, written as data processing does: path and frames."""
    source = clip(tmp_path / "source.mp4", 6)
    ((_, found),) = aligned_tracks(probe_video(source), SIDE)
    write_faces(tmp_path / "aligned.mp4", found, np.zeros(6 * 640, np.float32), crf=0)
    return tmp_path / "aligned.mp4", found


def test_an_aligned_clip_is_recognized(aligned, tmp_path):
    path, _ = aligned
    assert is_aligned_clip(probe_video(path))
    square = clip(tmp_path / "square.mp4", 3, lambda index: draw_scene(width=120))
    assert not is_aligned_clip(probe_video(square))
    assert not is_aligned_clip(probe_video(tmp_path / "source.mp4"))


def test_its_faces_are_its_frames(aligned):
    path, found = aligned
    items = list(read_clip_faces(probe_video(path), SIDE))
    assert [item.face.starts for item in items] == [True] + [False] * 5
    assert np.abs(np.stack([item.face.pixels for item in items]).astype(int) - found).mean() < 2
    half = next(iter(read_clip_faces(probe_video(path), SIDE // 2))).face.pixels
    assert half.shape == (64, 64, 3)
    longer = list(read_clip_faces(probe_video(path), SIDE, num_frames=9))
    assert len(longer) == 9 and np.array_equal(longer[6].face.pixels, items[5].face.pixels)  # played backward


def test_error_of_the_anchors(detector, aligned):
    _, found = aligned
    assert alignment_error(found[0], detector) < 0.03
    moved = np.roll(found[0], SIDE // 8, axis=0)
    assert alignment_error(moved, detector) == pytest.approx(1 / 8, abs=0.04)
    assert alignment_error(np.full((SIDE, SIDE, 3), 90, np.uint8), detector) == np.inf
    assert square_template(256)[0] == pytest.approx([17 * 2.8 * 256 / 210, 20 * 2.8 * 256 / 280])
