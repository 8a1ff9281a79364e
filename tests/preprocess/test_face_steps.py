"""Faces of a segment, their size and place: one clip per person; gaps and cuts end it."""

from dataclasses import replace
from fractions import Fraction

import cv2
import numpy as np
import pytest

from latentsync.media.frame import VideoFrame
from preprocess.clip import Clip, Segment
from preprocess.manifest import ClipRow
from preprocess.settings import ProcessSettings
from preprocess.steps.alignment import alignment
from preprocess.steps.face_size import face_size
from preprocess.steps.faces import faces
from preprocess.tools import Tools
from tests.pipelines.scenes import draw_scene

ONE, TWO, NONE = ((20, 0),), ((10, 0), (150, 0)), ()
SETTINGS = ProcessSettings(resolution=64, min_seconds=0.2, min_face_size=20)


@pytest.fixture(scope="module")
def tools(detector):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tools, "close", lambda self: None)
        tools = Tools(SETTINGS)
        tools._detector = tools._still_detector = detector
        yield tools


def segment(scenes: list[tuple], width: int = 290, background=(90, 110, 130)) -> Segment:
    """A segment whose audio at frame i is i / 1000, and which starts one second into the source."""
    frames = (
        VideoFrame.from_rgb(cv2.resize(draw_scene(places, background, width), None, fx=2, fy=2)) for places in scenes
    )

    def read_audio(start: Fraction, samples: int) -> np.ndarray:
        first = int(start * 25)
        return np.repeat(np.arange(first, first + samples // 640) / 1000, 640).astype(np.float32)

    return Segment("a.mp4", 3, Fraction(1), frames, read_audio)


def run(scenes: list[tuple], tools: Tools, **changes) -> list[Clip]:
    return faces(segment(scenes), replace(SETTINGS, **changes), tools)


def test_one_person(tools):
    (clip,) = run([ONE] * 8, tools)
    assert clip.drop is None and clip.faces.shape == (8, 64, 64, 3) and clip.faces.dtype == np.uint8
    assert (clip.source, clip.segment, clip.person, clip.start) == ("a.mp4", 3, 0, 1)
    assert len(clip.wave) == 8 * 640 and clip.wave[640] == pytest.approx(0.026)
    assert clip.figures["faces"] == 1 and 60 < clip.figures["face_size"] < 130 and clip.figures["jitter"] < 0.01


def test_a_gap_ends_the_clip_and_the_next_has_its_own_audio(tools):
    first, second, gap = run([ONE] * 6 + [NONE] * 3 + [ONE] * 7, tools)
    assert (first.num_frames, second.num_frames) == (6, 7) or (first.num_frames, second.num_frames) == (6, 6)
    offset = second.start - 1
    assert offset >= Fraction(9, 25)
    assert second.wave[0] == pytest.approx(float(25 + offset * 25) / 1000)
    assert gap.is_gap and gap.drop.reason == "no face in view"
    assert first.num_frames + gap.num_frames + second.num_frames == 16
    assert gap.start == first.start + Fraction(first.num_frames, 25) and ClipRow.of(gap).is_gap


def test_many_faces(tools):
    clips = run([TWO] * 8, tools)
    assert [clip.person for clip in clips] == [0, 1] and all(clip.drop is None for clip in clips)
    assert clips[0].figures["faces"] == 2
    assert {clip.drop.reason for clip in run([TWO] * 8, tools, many_faces="drop")} == {"2 faces at once"}
    reasons = [clip.drop and clip.drop.reason for clip in run([TWO] * 8, tools, many_faces="largest")]
    assert sorted(reasons, key=str) == [None, "not the largest face"]


def test_a_cut_that_the_shot_detector_missed_ends_the_clip(tools):
    scenes = [VideoFrame.from_rgb(draw_scene(ONE, (10, 200, 20), 290))] * 6
    scenes += [VideoFrame.from_rgb(draw_scene(ONE, (200, 10, 220), 290))] * 6
    found = faces(
        Segment("a.mp4", 0, Fraction(0), iter(scenes), lambda start, n: np.zeros(n, np.float32)), SETTINGS, tools
    )
    assert [clip.num_frames for clip in found] == [6, 6]


def test_missing_faces_and_short_tracks_are_dropped(tools):
    (nobody,) = run([NONE] * 5, tools)
    assert (nobody.drop.step, nobody.drop.reason) == ("faces", "no face in view")
    (short,) = run([ONE] * 3, tools)
    assert short.drop.reason == "a face in view for 3 frames, 5 are needed" and short.faces is None


def test_small_faces(tools):
    (clip,) = run([ONE] * 6, tools)
    assert face_size(clip, SETTINGS, tools) is clip
    dropped = face_size(clip, replace(SETTINGS, min_face_size=500), tools)
    assert dropped.drop.step == "face_size" and "500 are needed" in dropped.drop.reason


def test_alignment_step(tools):
    (clip,) = run([ONE] * 6, tools, resolution=128)
    good = alignment(clip, SETTINGS, tools)
    assert good.drop is None and good.figures["alignment_error"] < 0.05
    moved = replace(clip, faces=np.roll(clip.faces, 20, axis=2))
    assert "allowed" in alignment(moved, SETTINGS, tools).drop.reason
    empty = replace(clip, faces=np.full_like(clip.faces, 90))
    assert "no face in the aligned frame" in alignment(empty, SETTINGS, tools).drop.reason
