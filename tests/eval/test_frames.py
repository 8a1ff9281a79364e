"""A result's faces beside its source's, and results with the voice that drove them."""

from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from eval import frames
from eval.frames import PairedFaces, rescaled, with_voice
from latentsync.media.audio import load_audio
from latentsync.media.frame import VideoFrame
from latentsync.media.probe import probe_video
from latentsync.media.timeline import pingpong_index
from latentsync.utils.errors import UserError
from tests.media.synthetic import numbers_of, tone, write_clip
from tests.pipelines.scenes import clip, picture


@pytest.fixture(autouse=True)
def lent(detector, monkeypatch) -> None:
    def lend(name: str, device: str = "cpu", static: bool = False):
        detector.reset()
        detector.static = static
        return detector

    monkeypatch.setattr(detector, "close", lambda: None)
    monkeypatch.setattr(frames, "create_detector", lend)


def gather(source: Path, result: Path) -> tuple[np.ndarray, ...]:
    chunks = list(PairedFaces(source, result, 96))
    return tuple(
        np.concatenate([getattr(c, name) for c in chunks]) for name in ("indices", "starts", "result", "source")
    )


def test_frames_without_a_face_are_left_out_and_begin_a_new_stretch(tmp_path):
    empty = np.full((120, 160, 3), 90, np.uint8)
    source = clip(tmp_path / "s.mp4", 20, lambda index: empty if 5 <= index < 8 else picture(((16, 0),)))
    indices, starts, result, faces = gather(source, source)
    assert set(indices) == set(range(20)) - {5, 6, 7} and np.array_equal(result, faces)
    assert [int(i) for i in indices[starts]][0] == 0 and 8 in indices[starts] and len(indices[starts]) == 2


def test_a_result_of_another_size_is_cut_alike(tmp_path):
    source = clip(tmp_path / "s.mp4", 4)
    large = clip(
        tmp_path / "l.mp4",
        4,
        lambda index: cv2.resize(picture(((16 + index, 0),)), (320, 240), interpolation=cv2.INTER_CUBIC),
    )
    _, _, result, faces = gather(source, large)
    assert len(result) == 4 and np.abs(result.astype(int) - faces).mean() < 6
    assert np.allclose(rescaled(np.eye(2, 3), 0.5, 0.5) @ [0.5, 0.5, 1], [0, 0])  # the centre of 2 x 2 pixels


def test_a_longer_result_is_held_against_the_source_there_and_back(tmp_path):
    source = clip(tmp_path / "s.mp4", 5, lambda index: picture(((10 + 4 * index, 0),)))
    longer = clip(tmp_path / "l.mp4", 9, lambda index: picture(((10 + 4 * pingpong_index(index, 5), 0),)))
    assert PairedFaces(source, longer, 96).num_frames == 9
    indices, _, result, faces = gather(source, longer)
    assert indices.tolist() == list(range(9)) and np.abs(result.astype(int) - faces).mean() < 4


def test_files_that_do_not_belong_together(tmp_path):
    source, wide = clip(tmp_path / "s.mp4", 2), clip(tmp_path / "w.mp4", 2, lambda index: picture(width=240))
    with pytest.raises(UserError, match="is 240x120, its source 160x120; give results of the whole frame"):
        PairedFaces(source, wide, 96)
    cv2.imwrite(str(tmp_path / "p.png"), picture())
    with pytest.raises(UserError, match="is a picture"):
        PairedFaces(source, tmp_path / "p.png", 96)


@pytest.mark.parametrize("rotation", [0, 90])
def test_a_video_gets_the_samples_that_drove_it(tmp_path, rotation):
    video = write_clip(tmp_path / "a\nb.mp4", 60, tone_seconds=2.4, rotation=rotation)
    wave = np.random.default_rng(0).uniform(-0.5, 0.5, 16000 * 2 + 123).astype(np.float32)
    with with_voice(video, wave, tmp_path) as voiced:
        assert np.array_equal(load_audio(voiced, 16000), wave)
        before, after = probe_video(video), probe_video(voiced)
        assert (after.width, after.height, after.fps) == (before.width, before.height, before.fps)
    assert not voiced.exists()


def test_a_matroska_result_keeps_all_its_pictures(tmp_path):
    """Where frames are predicted from later ones, its first packets have no decoding time."""
    video = write_clip(tmp_path / "v.mkv", 30, options={"crf": "12", "preset": "fast", "bf": "2", "b-adapt": "0"})
    with with_voice(video, tone(16000, 1.2), tmp_path) as voiced, av.open(str(voiced)) as container:
        frames = [VideoFrame.from_rgb(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    assert numbers_of(frames) == list(range(30))


def test_a_short_voice_and_a_file_that_is_no_video(tmp_path):
    video = write_clip(tmp_path / "v.mp4", 5)
    with with_voice(video, tone(16000, 0.12), tmp_path) as voiced:
        assert len(load_audio(voiced, 16000)) == 1920
    (tmp_path / "bad.mp4").write_bytes(b"text")
    with (
        pytest.raises(UserError, match="not a video"),
        with_voice(tmp_path / "bad.mp4", np.zeros(9, np.float32), tmp_path),
    ):
        pass
