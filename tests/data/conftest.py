"""Clips of 64x64 numbered frames with a tone, and a tiny audio encoder."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from latentsync.data.clips import Clip
from latentsync.whisper.audio2feature import Audio2Feature
from tests.media.synthetic import read_number, write_clip
from tests.tiny_model import TinyFiles

SIDE, NUM_FRAMES, CLIP_FRAMES = 64, 4, 30


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Clip]:
    """Three clips of 30 frames (1.2 s): two of anna, one of ben."""
    folder = tmp_path_factory.mktemp("clips")
    paths = [folder / name for name in ("a.mp4", "b.mp4", "c.mp4")]
    for number, path in enumerate(paths):
        seconds = CLIP_FRAMES / 25 + number / 100  # no two files are equal
        write_clip(path, CLIP_FRAMES, size=(SIDE, SIDE), tone_seconds=seconds)
    return [Clip(paths[0], "anna"), Clip(paths[1], "anna"), Clip(paths[2], "ben")]


@pytest.fixture(scope="session")
def audio(tiny_files: TinyFiles, tmp_path_factory: pytest.TempPathFactory) -> Audio2Feature:
    return Audio2Feature(tiny_files.whisper, "cpu", tmp_path_factory.mktemp("states"), NUM_FRAMES)


@pytest.fixture
def broken(tmp_path: Path, clips: list[Clip]) -> Clip:
    """A clip whose header is whole and whose images are not."""
    data = bytearray(clips[0].path.read_bytes())
    begin = data.index(b"mdat") + 4
    data[begin : data.index(b"moov")] = bytes(data.index(b"moov") - begin)
    path = tmp_path / "broken.mp4"
    path.write_bytes(data)
    return Clip(path, "anna")


def numbers(pixels: Tensor) -> list[int]:
    """What the frames (F, 3, 64, 64) in [-1, 1] show."""
    gray = ((pixels.mean(1) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).numpy()
    return [read_number(image) for image in gray]


def same(first: dict, second: dict) -> bool:
    """Whether two items are equal in every value."""
    assert first.keys() == second.keys()
    return all(np.array_equal(first[name], second[name]) for name in first)
