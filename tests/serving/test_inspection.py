"""Refusals before queueing: inputs just above each limit are refused, those at it accepted; headers are not trusted."""

import os
import struct
from pathlib import Path

import pytest
from PIL import Image

from latentsync.serving.inspection import inspect_file
from latentsync.serving.settings import ServingSettings
from latentsync.utils.errors import UserError
from tests.media.synthetic import tone, write_audio, write_clip
from tests.media.untrusted import write_gaps, write_raw_wav, write_webp
from tests.serving.hostile_inputs import GOOD, SOURCES, Input, count, mutated, outcome, table


def settings(tmp_path: Path, **limits: object) -> ServingSettings:
    return ServingSettings(tmp_path / "workspace", **limits)


def image(path: Path, width: int, height: int) -> Path:
    Image.new("RGB", (width, height)).save(path)
    return path


def header_of_two_seconds(path: Path) -> Path:
    """A FLAC of 5 s whose header states 2 s."""
    write_audio(path, tone(8000, 5.0), 8000, codec="flac")
    data = bytearray(path.read_bytes())
    data[22:26] = struct.pack(">I", 2 * 8000)  # total samples, in STREAMINFO
    path.write_bytes(data)
    return path


# role, limits, and a writer of a file that reaches them exactly (0) or exceeds them (1).
CASES = {
    "bytes": ("audio", {"max_upload_bytes": 16_044}, lambda p, n: write_raw_wav(p / "a.wav", 1, 8000, 8000 + n)),
    "pixels of an image": ("video", {"max_pixels": 4096}, lambda p, n: image(p / "a.png", 64, 64 + n)),
    "pixels of an animation": ("video", {"max_pixels": 4096}, lambda p, n: write_webp(p / "a.webp", 64, 64 + n, [40])),
    "pixels of a video": (
        "video",
        {"max_pixels": 4096},
        lambda p, n: write_clip(p / "a.mp4", 2, size=(64, 64 + 2 * n)),
    ),
    "seconds of a video": ("video", {"max_video_seconds": 1}, lambda p, n: write_clip(p / "a.mp4", 25 + n)),
    "seconds of an animation": (
        "video",
        {"max_video_seconds": 1},
        lambda p, n: write_webp(p / "a.webp", 8, 8, [40] * (25 + n)),
    ),
    "seconds of audio": (
        "audio",
        {"max_audio_seconds": 1},
        lambda p, n: write_raw_wav(p / "a.wav", 1, 8000, 8000 + 2000 * n),
    ),
    "seconds with gaps": ("audio", {"max_audio_seconds": 1000.1}, lambda p, n: write_gaps(p / "a.mkv", 3, 500 + n)),
}


@pytest.mark.parametrize("case", CASES)
def test_just_above_each_limit(tmp_path, case):
    role, limits, write = CASES[case]
    inspect_file(role, "mine.x", write(tmp_path, 0), settings(tmp_path, **limits))
    with pytest.raises(UserError, match=f"^{role}: mine.x: .* accepted"):
        inspect_file(role, "mine.x", write(tmp_path, 1), settings(tmp_path, **limits))


def test_far_too_many_pixels(tmp_path):
    path = write_webp(tmp_path / "a.webp", 13_000, 13_000, [40])
    with pytest.raises(UserError, match="13000x13000 pixels"):
        inspect_file("video", "a.webp", path, settings(tmp_path))
    Image.new("L", (4, 4)).save(tmp_path / "a.gif")
    data = bytearray((tmp_path / "a.gif").read_bytes())
    data[6:10] = struct.pack("<HH", 65535, 65535)
    (tmp_path / "a.gif").write_bytes(data)
    with pytest.raises(UserError, match="pixels"):
        inspect_file("video", "a.gif", tmp_path / "a.gif", settings(tmp_path))


def test_a_header_that_states_less_than_there_is(tmp_path):
    path = header_of_two_seconds(tmp_path / "a.flac")
    inspect_file("audio", "a.flac", path, settings(tmp_path, max_audio_seconds=5.1))
    with pytest.raises(UserError, match="at most 3 s"):
        inspect_file("audio", "a.flac", path, settings(tmp_path, max_audio_seconds=3))


def test_files_that_would_block_or_recurse(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "video").write_text("ffconcat version 1.0\nfile video\n")
    (tmp_path / "live").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\npipe\n")
    for name in ("pipe", "video", "live"):
        for role in ("video", "audio"):
            with pytest.raises(UserError, match=f"^{role}: it: ") as caught:
                inspect_file(role, "it", tmp_path / name, settings(tmp_path))
            assert "\n" not in str(caught.value) and str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize("name", SOURCES)
def test_mutated_files_are_taken_or_refused_in_one_line(tmp_path, name):
    role = "audio" if name.endswith(".flac") else "video"
    for path in mutated(tmp_path / name, 20, seed=3):
        assert outcome(Input("", role, path, refuse=False), settings(tmp_path)) in GOOD


@pytest.mark.slow
def test_the_catalog_of_hostile_inputs():
    """No decoder crashes or hangs, all that must be refused is, and each error is one line."""
    counts = count(mutations=500)
    bad = {(group, name): number for group, found in counts.items() for name, number in found.items()}
    assert not [key for key in bad if key[1] not in GOOD], table(counts)
    assert sum(bad.values()) > 3500
