"""Inputs that are not files: arrays, tensors, iterators, file objects, waveforms."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from latentsync.media.audio import load_audio
from latentsync.media.frame import VideoFrame
from latentsync.media.probe import probe_video
from latentsync.media.rgb_frame import RGBFrame
from latentsync.media.sources import audio_file, open_video, to_rgb
from latentsync.media.timeline import open_timeline
from latentsync.utils.errors import UserError
from tests.media.synthetic import numbered_rgb, numbers_of, tone, write_audio, write_clip

FPS = Fraction(25)


def numbered(count: int) -> np.ndarray:
    return np.stack([numbered_rgb(number) for number in range(count)])


def numbers(video, count: int, on_short: str = "bounce", fps: Fraction = FPS) -> list[int]:
    with open_video(video) as source:
        return numbers_of(source.open(count / fps, fps, on_short))


def test_an_array_plays_as_a_file_does(tmp_path):
    path = write_clip(tmp_path / "clip.mp4", 5)
    for on_short in ("bounce", "loop", "freeze"):
        assert numbers((numbered(5), 25), 13, on_short) == numbers(path, 13, on_short)
    assert numbers((numbered(5), 25), 3) == [0, 1, 2]
    assert numbers((numbered(6), 50), 3) == [0, 2, 4]
    assert numbers((numbered(3), 12.5), 6) == numbers_of(
        open_timeline(write_clip(tmp_path / "slow.mp4", 3, fps=Fraction(25, 2)), 6 / FPS, FPS)
    )


def test_repeated_frames_are_one_object():
    with open_video((numbered(1), 25)) as source:
        frames = list(source.open(Fraction(3, 25), FPS, "bounce"))
        assert source.info.is_still and all(frame is frames[0] for frame in frames)


def test_an_iterator_is_read_as_frames_are_needed():
    taken = []
    frames = (taken.append(index) or frame for index, frame in enumerate(numbered(100)))
    with open_video((frames, 25)) as source:
        shown = source.open(Fraction(40, 25), FPS, "bounce")
        assert numbers_of([next(shown) for _ in range(3)]) == [0, 1, 2]
        assert len(taken) <= 5
    assert numbers((iter(numbered(2)), 25), 4, "freeze") == [0, 1, 1, 1]
    with pytest.raises(UserError, match="the video lasts 0.08 s, the audio 0.16 s; an iterator cannot"):
        numbers((iter(numbered(2)), 25), 4)


@pytest.mark.parametrize("make", [
    lambda rgb: rgb,
    lambda rgb: torch.from_numpy(rgb),
    lambda rgb: rgb.astype(np.float64) / 255,
    lambda rgb: torch.from_numpy(rgb).float().permute(2, 0, 1) / 255,
    lambda rgb: torch.from_numpy(rgb).float() / 255 + 1e-4,
])  # fmt: skip
def test_frames_of_any_kind(make):
    rgb = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
    assert np.array_equal(to_rgb(make(rgb)), rgb)


@pytest.mark.parametrize(
    ("video", "message"),
    [
        ((np.zeros((0, 4, 4, 3), np.uint8), 25), "no frames"),
        ((iter([]), 25), "no frames"),
        ((np.zeros((4, 4, 3), np.uint8), 25), "no frames"),
        ((np.zeros((2, 4, 4, 4), np.uint8), 25), r"\(height, width, 3\)"),
        ((np.zeros((2, 4, 4, 3), np.int64), 25), "uint8, or float"),
        ((numbered(1), 0), "fps must be above 0"),
        ((numbered(1), "x"), "fps must be a number"),
        ((numbered(1),), r"give \(frames, fps\)"),
        (numbered(1), "not ndarray"),
        ("none.mp4", "none.mp4: no such video file"),
    ],
)
def test_videos_that_are_refused(video, message):
    with pytest.raises(UserError, match=message), open_video(video) as source:
        list(source.open(Fraction(1, 25), FPS, "bounce"))


def test_file_objects(tmp_path):
    path = write_clip(tmp_path / "clip.mp4", 4)
    with path.open("rb") as file:
        assert numbers(file, 4) == [0, 1, 2, 3]
    audio = write_audio(tmp_path / "a.wav", tone(16000, 0.2))
    with audio.open("rb") as file, audio_file(file) as copy:
        assert np.array_equal(load_audio(copy), load_audio(audio))
    with audio_file(audio) as same:
        assert same == audio


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_waveforms(kind):
    wave = tone(16000, 1.5).astype(np.float32)
    with audio_file((kind(wave), 16000)) as path:
        assert np.array_equal(load_audio(path), wave)
    assert not path.exists()
    with audio_file((kind(np.stack([wave, 0 * wave])), 16000)) as path:
        np.testing.assert_allclose(load_audio(path), wave / 2, atol=1e-6)
    with audio_file((kind((wave * 32767).astype(np.int16)), 16000)) as path:
        np.testing.assert_allclose(load_audio(path), wave, atol=1e-4)
    with audio_file((kind(wave), 48000)) as path:
        assert len(load_audio(path)) == pytest.approx(len(wave) / 3, abs=32)


@pytest.mark.parametrize(
    ("audio", "message"),
    [
        ((np.zeros(3), 0), "sample_rate must be above 0"),
        ((np.zeros((3, 4)), 16000), "waveform must be"),
        ((np.zeros(3, np.int64), 16000), "float from -1 to 1"),
        (3.0, "give a path"),
    ],
)
def test_audio_that_is_refused(audio, message):
    with pytest.raises(UserError, match=message), audio_file(audio):
        pass


def test_edits_of_rgb_frames_touch_nothing_else():
    rgb = np.random.default_rng(0).integers(0, 256, (8, 10, 3), np.uint8)
    frame = RGBFrame(rgb)
    alpha = np.zeros((4, 4), np.float32)
    alpha[1:3, 1:3] = (0.5, 1.0)
    edited = np.asarray(frame.blend_rgb(7, 2, np.full((4, 4, 3), 255.0), alpha))
    expected = rgb.copy()
    expected[3:5, 8] = np.rint((rgb[3:5, 8].astype(float) + 255) / 2)
    expected[3:5, 9] = 255
    assert np.abs(edited.astype(int) - expected).max() <= 1 and np.array_equal(frame.rgb(), rgb)
    assert np.array_equal(edited[:, :8], rgb[:, :8])
    assert np.array_equal(frame.crop_rgb(1, 2, 5, 6), rgb[2:6, 1:5])
    assert RGBFrame(rgb[:7, :9]).rgb().shape == (8, 10, 3) and frame.rgb(5).shape == (4, 5, 3)
    assert np.array_equal(frame.i420, VideoFrame.from_rgb(rgb, frame.color).i420)


def test_np_asarray_of_a_decoded_frame(tmp_path):
    info = probe_video(write_clip(tmp_path / "clip.mp4", 1))
    (frame,) = open_timeline(info, Fraction(1, 25), FPS)
    assert np.array_equal(np.asarray(frame), frame.rgb())
