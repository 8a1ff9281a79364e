"""Faces of a result paired with those of its source."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from eval.frames import PairedFaces, rescaled
from latentsync.faces import video
from latentsync.media.probe import probe_video
from latentsync.media.timeline import pingpong_index
from latentsync.metrics import faces
from latentsync.metrics.faces import aligned_tracks
from latentsync.utils.errors import UserError
from preprocess.write import write_faces
from tests.pipelines.scenes import clip, draw_scene


@pytest.fixture(autouse=True)
def lent(detector, monkeypatch) -> None:
    def create(name: str, device: str = "cpu", static: bool = False):
        detector.reset()
        detector.static = static
        return detector

    monkeypatch.setattr(detector, "close", lambda: None)
    for module in (video, faces):
        monkeypatch.setattr(module, "create_detector", create)


def gather(source: Path, result: Path) -> tuple[np.ndarray, ...]:
    chunks = list(PairedFaces(source, result, 96))
    return tuple(
        np.concatenate([getattr(c, name) for c in chunks]) for name in ("indices", "starts", "result", "source")
    )


def test_frames_without_a_face_are_skipped_and_end_a_track(tmp_path):
    empty = np.full((120, 160, 3), 90, np.uint8)
    source = clip(tmp_path / "s.mp4", 20, lambda index: empty if 5 <= index < 8 else draw_scene(((16, 0),)))
    indices, starts, result, faces = gather(source, source)
    assert set(indices) == set(range(20)) - {5, 6, 7} and np.array_equal(result, faces)
    assert [int(i) for i in indices[starts]][0] == 0 and 8 in indices[starts] and len(indices[starts]) == 2


def test_a_result_of_another_size_is_cropped_to_the_same_region(tmp_path):
    source = clip(tmp_path / "s.mp4", 4)
    large = clip(
        tmp_path / "l.mp4",
        4,
        lambda index: cv2.resize(draw_scene(((16 + index, 0),)), (320, 240), interpolation=cv2.INTER_CUBIC),
    )
    _, _, result, faces = gather(source, large)
    assert len(result) == 4 and np.abs(result.astype(int) - faces).mean() < 6
    assert np.allclose(rescaled(np.eye(2, 3), 0.5, 0.5) @ [0.5, 0.5, 1], [0, 0])  # the center of 2 x 2 pixels


def test_a_longer_result_is_compared_with_the_looped_source(tmp_path):
    source = clip(tmp_path / "s.mp4", 5, lambda index: draw_scene(((10 + 4 * index, 0),)))
    longer = clip(tmp_path / "l.mp4", 9, lambda index: draw_scene(((10 + 4 * pingpong_index(index, 5), 0),)))
    assert PairedFaces(source, longer, 96).num_frames == 9
    indices, _, result, faces = gather(source, longer)
    assert indices.tolist() == list(range(9)) and np.abs(result.astype(int) - faces).mean() < 4


def test_mismatched_files_are_refused(tmp_path):
    source, wide = clip(tmp_path / "s.mp4", 2), clip(tmp_path / "w.mp4", 2, lambda index: draw_scene(width=240))
    with pytest.raises(UserError, match="is 240x120, its source 160x120; give results of the whole frame"):
        PairedFaces(source, wide, 96)
    cv2.imwrite(str(tmp_path / "p.png"), draw_scene())
    with pytest.raises(UserError, match="is an image"):
        PairedFaces(source, tmp_path / "p.png", 96)


def test_a_clip_of_aligned_faces_is_not_aligned_again(tmp_path):
    ((_, aligned),) = aligned_tracks(probe_video(clip(tmp_path / "s.mp4", 4)), 96)
    for name, images in {"a": aligned, "b": np.stack([cv2.GaussianBlur(face, (0, 0), 2) for face in aligned])}.items():
        write_faces(tmp_path / f"{name}.mp4", images, None, crf=0)
    indices, starts, result, source = gather(tmp_path / "a.mp4", tmp_path / "b.mp4")
    assert indices.tolist() == [0, 1, 2, 3] and starts.tolist() == [True, False, False, False]
    assert np.abs(source.astype(int) - aligned).mean() < 2 < np.abs(result.astype(int) - source).mean()
