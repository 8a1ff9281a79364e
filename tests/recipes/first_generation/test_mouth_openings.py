"""Mouth openings of clips are measured once."""

import numpy as np
import pytest

from latentsync.data.clips import Clip, read_frames
from recipes.embedded.first_generation import silence
from recipes.embedded.first_generation.silence import MouthOpenings


class Counting:
    """Stands in for the mesh network: how bright each frame is, and how often it was asked."""

    asked = 0

    def openings(self, faces: np.ndarray) -> np.ndarray:
        Counting.asked += 1
        return faces.mean(axis=(1, 2, 3)) / 255

    def close(self) -> None:
        pass


def test_a_clip_is_measured_once_whatever_its_name(tmp_path, clips, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(silence, "OpeningEstimator", Counting)
    monkeypatch.setattr(Counting, "asked", 0)
    found = MouthOpenings(tmp_path / "cache")(clips[0])
    assert np.array_equal(found, read_frames(clips[0].path).mean(axis=(1, 2, 3)) / 255)
    renamed = tmp_path / "renamed.mp4"
    renamed.write_bytes(clips[0].path.read_bytes())
    assert np.array_equal(MouthOpenings(tmp_path / "cache")(Clip(renamed, "anna")), found) and Counting.asked == 1
    MouthOpenings(tmp_path / "cache")(clips[1])
    assert Counting.asked == 2
