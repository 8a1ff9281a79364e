"""Networks in an actor give the same results as in the worker; the actor is called directly here."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from latentsync.faces.detector import Face
from latentsync.metrics.clip_sync import ClipSync
from latentsync.utils.errors import UserError
from preprocess import remote_tools
from preprocess.remote_tools import Networks, RemoteDetector, RemoteTools
from preprocess.settings import ProcessSettings
from preprocess.steps.faces import faces
from preprocess.tools import Tools
from tests.preprocess.test_face_steps import NONE, ONE, segment

SETTINGS = ProcessSettings(resolution=64, min_seconds=0.2, quality_measure="sharpness")


class Batches:
    """The shared detector without state between frames; remembers the sizes of the batches."""

    batch_size = 3

    def __init__(self, detector):
        self._detector, self.sizes = detector, list[int]()

    def detect(self, image: np.ndarray) -> list[Face]:
        self._detector.reset()
        return self._detector.detect(image)

    def detect_batch(self, images: Sequence[np.ndarray]) -> list[list[Face]]:
        self.sizes.append(len(images))
        return [self.detect(image) for image in images]

    def reset(self) -> None:
        pass

    def close(self) -> None:
        pass


class FixedScorer:
    name, files, min_frames, default_threshold, default_preference = "fixed", (), 5, 0.1, None

    def score_faces(self, faces: np.ndarray, wave: np.ndarray) -> ClipSync:
        if len(faces) < 5:
            raise UserError("too short")
        return ClipSync("fixed", len(faces), float(wave.sum()), 1.0, np.ones(1))


@pytest.fixture
def batches(detector, monkeypatch) -> Batches:
    batches = Batches(detector)
    monkeypatch.setattr("preprocess.tools.create_detector", lambda *args, **options: batches)
    monkeypatch.setattr("preprocess.tools.open_sync_scorer", lambda *args: FixedScorer())
    monkeypatch.setattr(remote_tools, "_call", lambda method, *arguments: method(*arguments))
    return batches


def test_faces_are_detected_in_batches(batches, detector, monkeypatch):
    remote = RemoteTools(SETTINGS, Networks(SETTINGS))
    scenes = [ONE] * 6 + [NONE] * 2
    found = faces(segment(scenes), SETTINGS, remote)
    assert batches.sizes == [3, 3, 2] and isinstance(remote.detector, RemoteDetector)
    assert remote.still_detector is remote.detector
    monkeypatch.setattr(Batches, "batch_size", 1)
    alone = faces(segment(scenes), SETTINGS, Tools(SETTINGS))
    assert len(found) == len(alone) == 2  # a clip and a gap
    assert np.array_equal(found[0].faces, alone[0].faces) and found[0].figures == alone[0].figures
    assert replace(found[1], figures={}) == replace(alone[1], figures={})


def test_a_detector_with_state_stays_in_the_worker(batches, monkeypatch):
    monkeypatch.delattr(Batches, "detect_batch")
    remote = RemoteTools(SETTINGS, Networks(SETTINGS))
    assert remote.detector is batches and remote.still_detector is batches


def test_sync_and_quality(batches):
    remote, own = RemoteTools(SETTINGS, Networks(SETTINGS)), Tools(SETTINGS)
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    assert remote.quality.compute(image) == own.quality.compute(image)
    assert (remote.quality.name, remote.quality.default_threshold) == (own.quality.name, own.quality.default_threshold)
    clip, wave = np.repeat(image[None], 6, axis=0), np.ones(6 * 640, np.float32)
    for scorer in (remote.scorer, remote.second_scorer):
        assert scorer is not None
        assert (scorer.name, scorer.min_frames, scorer.default_threshold) == ("fixed", 5, 0.1)
        assert (scorer.score_faces(clip, wave).offset, scorer.score_faces(clip, wave).confidence) == (6, 3840)
        with pytest.raises(UserError, match="too short"):
            scorer.score_faces(clip[:2], wave)
