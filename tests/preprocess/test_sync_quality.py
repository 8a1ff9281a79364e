"""Audio is shifted to match the lips; unsynchronized and blurred clips are dropped."""

import re
from dataclasses import replace
from fractions import Fraction
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from latentsync.metrics.clip_sync import ClipSync
from latentsync.metrics.image_quality import SharpnessMetric, center_crop, open_quality_metric
from latentsync.utils.errors import UserError
from preprocess.clip import Clip
from preprocess.settings import ProcessSettings
from preprocess.steps.quality import quality
from preprocess.steps.sync import shift_audio, sync
from preprocess.tools import Tools
from tests.pipelines.scenes import head

SETTINGS = ProcessSettings(min_seconds=0.4)


class FixedScorer:
    """Reads the offset off the clip: both count frames. `shuffled`: share of the windows that see something else."""

    name, min_frames, default_threshold, default_preference = "fixed", 5, 1.0, 0.9

    def __init__(self, confidence: float = 2.0, shuffled: float = 0.0, off: int = 0):
        self.confidence, self.shuffled, self.off = confidence, shuffled, off

    def score_faces(self, faces: np.ndarray, wave: np.ndarray) -> ClipSync:
        # the audio is early by the difference of the two numbers
        face_times, audio_times = faces[:, 0, 0, 0].astype(int), np.rint(wave[::640] * 1000).astype(int)
        offset = int(audio_times[0] - face_times[0]) + self.off
        rng = np.random.default_rng(0)
        face_times = (
            np.where(rng.random(len(face_times)) < self.shuffled, rng.permutation(face_times), face_times) - self.off
        )
        vision, audio = np.eye(128)[face_times], np.eye(128)[audio_times]
        return ClipSync("fixed", offset, self.confidence, 0.5, np.zeros(1), 0, len(faces), vision, audio)


def tools(scorer: FixedScorer, second: FixedScorer | None = None) -> SimpleNamespace:
    return SimpleNamespace(scorer=scorer, second_scorer=second)


def clip(offset: int = 0, frames: int = 30) -> Clip:
    """Frame i shows the number i + 20; its audio encodes i + 20 + offset."""
    faces = np.broadcast_to(np.arange(20, 20 + frames, dtype=np.uint8)[:, None, None, None], (frames, 4, 4, 3))
    wave = np.repeat(np.arange(20, 20 + frames) + offset, 640).astype(np.float32) / 1000
    return Clip("a.mp4", 0, 0, Fraction(2), faces, wave)


def test_shifting_aligns_frames_and_audio():
    for offset in (-4, -1, 0, 3, 6):
        moved = shift_audio(clip(offset), offset)
        face_times = moved.faces[:, 0, 0, 0].astype(int)
        audio_times = np.rint(moved.wave[::640] * 1000).astype(int)
        assert face_times.tolist() == audio_times.tolist() and len(face_times) == 30 - abs(offset)
        assert len(moved.wave) == 640 * len(face_times)
        assert moved.start == 2 + Fraction(int(face_times[0]) - 20, 25)


def test_offset_is_corrected_and_recorded():
    mended = sync(clip(4), SETTINGS, tools(FixedScorer()))
    assert mended.drop is None
    assert mended.figures == {
        "offset": 4,
        "confidence": 2.0,
        "sync_scorer": "fixed",
        "preference": 1.0,
        "offset_halves": "+4 and +4",
    }
    assert FixedScorer().score_faces(mended.faces, mended.wave).offset == 0


@pytest.mark.parametrize(
    ("made", "scorer", "changes", "reason"),
    [
        (clip(7), FixedScorer(), {}, r"audio is \+7 frames early, the limit is 6"),
        (clip(0), FixedScorer(0.9), {}, "sync confidence 0.90, 1 is needed"),
        (clip(0), FixedScorer(2.0), {"sync_conf_threshold": 3.0}, "sync confidence 2.00, 3 is needed"),
        (clip(0), FixedScorer(2.0, 0.3), {}, r"sync preference \d\d.\d%, 90.0% is needed"),
        (clip(0), FixedScorer(), {"min_preference": 1.1}, "sync preference 100.0%, 110.0% is needed"),
        (clip(0, 4), FixedScorer(), {}, "4 frames are too few"),
        (clip(5, 13), FixedScorer(), {}, "8 frames are left in sync, 10 are needed"),
        (replace(clip(), wave=np.zeros(30 * 640, np.float32)), FixedScorer(), {}, "no audio"),
    ],
)
def test_reasons_to_drop_a_clip(made, scorer, changes, reason):
    dropped = sync(made, replace(SETTINGS, **changes), tools(scorer))
    assert dropped.drop.step == "sync" and dropped.faces is None and dropped.wave is None
    assert re.search(reason, dropped.drop.reason)


def test_halves_of_a_clip_must_agree():
    made = clip(0, 40)
    wave = made.wave.copy()
    wave[20 * 640 :] += 0.004  # from frame 20 on, the audio is 4 frames early
    two = replace(made, wave=wave)
    dropped = sync(two, SETTINGS, tools(FixedScorer()))
    assert re.search(r"halves is \+0 and \+4 frames early", dropped.drop.reason)
    assert sync(two, replace(SETTINGS, min_preference=0.0), tools(FixedScorer())).drop is None


def test_a_second_scorer_vetoes_only_if_it_is_sure():
    made = clip(0, 40)
    agreed = sync(made, SETTINGS, tools(FixedScorer(), FixedScorer(off=1)))
    assert agreed.drop is None and agreed.figures["offset_second"] == 1
    vetoed = sync(made, SETTINGS, tools(FixedScorer(), FixedScorer(off=5)))
    assert "audio is +0 frames early, but +5 by the SyncNet fixed" in vetoed.drop.reason
    assert sync(made, SETTINGS, tools(FixedScorer(), FixedScorer(off=5, shuffled=0.5))).drop is None


def test_blurred_faces_are_dropped():
    sharp = cv2.resize(head(), (128, 128), interpolation=cv2.INTER_CUBIC)
    blurred = cv2.GaussianBlur(sharp, (0, 0), 2)
    tools = SimpleNamespace(quality=SharpnessMetric())
    good = quality(replace(clip(), faces=np.stack([sharp] * 3)), SETTINGS, tools)
    assert good.drop is None and good.figures["quality_measure"] == "sharpness" and good.figures["quality"] > 0.45
    bad = quality(replace(clip(), faces=np.stack([blurred] * 3)), SETTINGS, tools)
    assert bad.drop.step == "quality" and "0.45 is needed" in bad.drop.reason
    assert (
        quality(replace(clip(), faces=np.stack([blurred] * 3)), replace(SETTINGS, min_quality=0.01), tools).drop is None
    )


def test_sharpness_is_independent_of_light_and_contrast():
    face = cv2.resize(head(), (128, 128)).astype(float)
    metric = SharpnessMetric()
    whole, dim = (metric.compute(np.rint(image).astype(np.uint8)) for image in (face, face * 0.5 + 20))
    assert dim == pytest.approx(whole, rel=0.15)


def test_quality_metric_by_name(tmp_path):
    assert open_quality_metric("auto", checkpoints=tmp_path).name == "sharpness"
    with pytest.raises(UserError, match=r"koniq_pretrained\.pkl\); run"):
        open_quality_metric("hyperiqa", checkpoints=tmp_path)
    with pytest.raises(UserError, match="choose one of auto, hyperiqa, sharpness"):
        open_quality_metric("niqe")


@pytest.mark.parametrize("shape", [(300, 400, 3), (128, 128, 3), (224, 224, 3)])
def test_center_crop(shape):
    assert center_crop(np.zeros(shape, np.uint8), 224).shape == (224, 224, 3)


def test_scorer_weights_change_the_tool_names(tmp_path):
    weights = tmp_path / "syncnet.safetensors"
    opened = Tools(ProcessSettings(steps=("faces", "sync")))
    opened._detector, opened._scorer = SimpleNamespace(), SimpleNamespace(name="fixed", files=(weights,))
    names = []
    for content in (b"a", b"b"):
        weights.write_bytes(content)
        names.append(opened.names())
    assert names[0] != names[1] and names[0]["sync_scorer"].startswith("fixed ")
