"""Windows of FVD over whole clips, with a small TorchScript network in the place of I3D."""

import hashlib

import numpy as np
import pytest
import torch

from latentsync.metrics import fvd
from latentsync.metrics.fvd import ClipFeatures, VideoFeatures
from latentsync.utils.errors import UserError
from tests.metrics.i3d import first_and_last, write_i3d


@pytest.fixture(scope="module")
def network(tmp_path_factory) -> VideoFeatures:
    return VideoFeatures.from_pretrained(write_i3d(tmp_path_factory.mktemp("i3d") / "i3d.pt"), trust=True)


def windows(network: VideoFeatures, count: int, stride: int, ends: tuple[int, ...] = ()) -> list[tuple[int, int]]:
    clip = ClipFeatures(network, stride)
    for number in range(count):
        if number in ends:
            clip.end_track()
        clip.add(np.full((224, 224, 3), number, np.uint8))
    return first_and_last(clip.features())


def test_windows_cover_the_whole_clip(network):
    assert windows(network, 16, 8) == [(0, 15)]
    assert windows(network, 40, 8) == [(0, 15), (8, 23), (16, 31), (24, 39)]
    assert windows(network, 40, 16) == [(0, 15), (16, 31), (24, 39)]  # the last ends at the last face
    assert windows(network, 20, 100) == [(0, 15), (4, 19)]


def test_no_window_spans_two_tracks(network):
    assert windows(network, 50, 8, ends=(18, 30)) == [(0, 15), (2, 17), (30, 45), (34, 49)]
    assert windows(network, 34, 8, ends=(17, 17)) == [(0, 15), (1, 16), (17, 32), (18, 33)]


def test_a_short_clip_has_no_windows(network):
    assert windows(network, 15, 8) == []
    with pytest.raises(ValueError, match="stride"):
        ClipFeatures(network, 0)


def test_invalid_files_are_refused(tmp_path):
    with pytest.raises(UserError, match="is missing"):
        VideoFeatures.from_pretrained(tmp_path / "none.pt")
    (tmp_path / "bad.pt").write_bytes(b"no archive")
    with pytest.raises(UserError, match="damaged or not a TorchScript"):
        VideoFeatures.from_pretrained(tmp_path / "bad.pt", trust=True)


def test_only_published_code_is_executed(tmp_path, monkeypatch):
    path = write_i3d(tmp_path / "i3d.pt")
    loaded = []
    monkeypatch.setattr(
        torch.jit, "load", lambda *args, _load=torch.jit.load, **kw: loaded.append(1) or _load(*args, **kw)
    )
    with pytest.raises(UserError, match="SHA-256 is unknown.*--trust"):
        VideoFeatures.from_pretrained(path)
    assert not loaded
    monkeypatch.setattr(fvd, "known_digests", lambda: {hashlib.sha256(path.read_bytes()).hexdigest()})
    VideoFeatures.from_pretrained(path)
    assert loaded
