import logging
import math
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest

from latentsync.media import timeline as timeline_module
from latentsync.media.frame import VideoFrame
from latentsync.media.probe import probe_video
from latentsync.media.reader import VideoReader
from latentsync.media.timeline import frame_count, nearest_samples, open_timeline, pingpong_index
from latentsync.utils.errors import UserError
from tests.media.synthetic import damage, numbered_rgb, numbers_of, write_clip

FPS = Fraction(25)
B_FRAMES = {"crf": "12", "preset": "veryfast", "bf": "3", "b-adapt": "0"}


def pingpong(length: int, count: int) -> list[int]:
    return [pingpong_index(index, length) for index in range(count)]


def stamps(times, last_duration):
    """Timed items whose durations reach to the next one."""
    times = [Fraction(time) for time in times]
    ends = [*times[1:], times[-1] + Fraction(last_duration)]
    return [SimpleNamespace(time=time, duration=end - time) for time, end in zip(times, ends, strict=True)]


@pytest.mark.parametrize(
    ("duration", "fps", "count"),
    [
        (2.96, FPS, 74),  # 2.96 * 25 is 74.00000000000001 in floats
        (0.28, FPS, 7),
        (3.0, FPS, 75),
        (3.00001, FPS, 76),
        (47360 / 16000, FPS, 74),
        (1234567 / 44100, FPS, math.ceil(Fraction(1234567, 44100) * 25)),
        (600.0, Fraction(30000, 1001), 17983),
        (Fraction(1001, 1000), Fraction(30000, 1001), 30),
        (0.01, FPS, 1),
    ],
)
def test_frame_count(duration, fps, count):
    assert frame_count(duration, fps) == count


def test_frame_count_equals_the_definition_for_whole_samples():
    rng = np.random.default_rng(0)
    for rate in (8000, 16000, 22050, 44100, 48000, 96000):
        for samples in rng.integers(1, 600 * rate, 200):
            for fps in (FPS, Fraction(30000, 1001)):
                assert frame_count(int(samples) / rate, fps) == math.ceil(Fraction(int(samples), rate) * fps)


def test_pingpong_index():
    assert pingpong(3, 14) == [0, 1, 2, 2, 1, 0, 0, 1, 2, 2, 1, 0, 0, 1]
    assert pingpong(1, 3) == [0, 0, 0]


@pytest.mark.parametrize(
    ("source_fps", "count", "expected"),
    [
        (25, 5, [0, 1, 2, 3, 4]),
        (50, 10, [0, 2, 4, 6, 8]),
        (100, 12, [0, 4, 8]),
        (12.5, 3, [0, 0, 1, 1, 2, 2]),  # a tie: the earlier frame
        (30, 6, [0, 1, 2, 4, 5]),
    ],
)
def test_nearest_samples_of_constant_rates(source_fps, count, expected):
    step = 1 / Fraction(source_fps)
    items = stamps([index * step for index in range(count)], step)
    assert [items.index(item) for item in nearest_samples(items, FPS)] == expected


def test_nearest_samples_of_uneven_times():
    items = stamps(["0", "0.039", "0.082", "0.3", "0.32"], "0.04")
    picked = [items.index(item) for item in nearest_samples(items, FPS)]
    assert picked == [0, 1, 2, 2, 2, 2, 2, 2, 4]
    assert len(list(nearest_samples(items, FPS, 3))) == 3


@pytest.mark.parametrize(("due", "shown_from"), [("1.92", 48), ("4", 100), ("1.93", 48), ("1.94", 49), ("1.95", 49)])
@pytest.mark.parametrize("fps", [FPS, Fraction(50)])
def test_a_freeze_lasts_until_the_next_frame_is_due(due, shown_from, fps):
    """At most half an output interval early: never the nearest of two that are far apart."""
    items = stamps(["0", "0.04", due], "0.04")
    picked = [items.index(item) for item in nearest_samples(items, fps)]
    first = picked.index(2)
    assert first == (shown_from if fps == FPS else math.floor(Fraction(due) * 50 + Fraction(1, 2)))
    assert set(picked[2 * fps // 25 : first]) == {1}


@pytest.mark.parametrize("fps", [Fraction(24000, 1001), FPS, Fraction(30000, 1001), Fraction(60)])
@pytest.mark.parametrize("unit", [1000, 90_000])
def test_rounded_stamps_of_a_constant_rate_are_one_to_one(fps, unit):
    times = [Fraction(round(index / fps * unit), unit) for index in range(500)]
    items = stamps(times, 1 / fps)
    assert list(nearest_samples(items, fps)) == items


def test_exact_frames_one_pass(tmp_path):
    path = write_clip(tmp_path / "a.mp4", 40, options=B_FRAMES)
    assert numbers_of(open_timeline(path, 1.6, FPS)) == list(range(40))
    assert numbers_of(open_timeline(path, 1.0, FPS)) == list(range(25))
    assert len(open_timeline(path, 1.001, FPS)) == 26


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi", "ts", "mov", "h264"])
@pytest.mark.parametrize("gop", ["12", "250"])
def test_pingpong_is_exact(tmp_path, monkeypatch, suffix, gop):
    """Backward passes in windows smaller than a group of pictures, with B-frames, in every kind of container."""
    monkeypatch.setattr(timeline_module, "_WINDOW_FRAMES", (9, 9))
    path = write_clip(tmp_path / f"a.{suffix}", 50, options={**B_FRAMES, "g": gop, "keyint_min": gop})
    frames = numbers_of(open_timeline(path, 6.0, FPS))
    assert frames == pingpong(50, 150)


@pytest.mark.parametrize("options", [{"x264-params": "open-gop=1:keyint=10:min-keyint=10:bframes=3:b-adapt=0"},
                                     {"x264-params": "intra-refresh=1:keyint=10"}])  # fmt: skip
@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
def test_pingpong_samples_are_identical_in_every_pass(tmp_path, monkeypatch, options, suffix):
    """Open groups of pictures: frames before a keyframe need the group before, and must not come out broken."""
    monkeypatch.setattr(timeline_module, "_WINDOW_FRAMES", (7, 7))
    rng = np.random.default_rng(0)
    images = [np.roll(rng.integers(0, 255, (48, 64, 3), dtype=np.uint8), i, axis=1) for i in range(40)]
    path = write_clip(tmp_path / f"a.{suffix}", 40, options={"crf": "25", **options}, images=images)
    frames = list(open_timeline(path, 4.8, FPS))
    for index, original in enumerate(pingpong(40, 120)):
        np.testing.assert_array_equal(frames[index].i420, frames[original].i420)


def test_pingpong_of_a_resampled_variable_rate(tmp_path, monkeypatch):
    monkeypatch.setattr(timeline_module, "_WINDOW_FRAMES", (4, 4))
    times = [0, 33, 66, 200, 233, 400, 420, 440, 460, 480, 600, 640]
    path = write_clip(tmp_path / "a.mp4", 12, stamps=times, time_base=Fraction(1, 1000), options={**B_FRAMES, "g": "5"})
    one_pass = numbers_of(open_timeline(path, 0.68, FPS))
    assert one_pass == [0, 1, 2, 2, 2, 3, 4, 4, 4, 4, 5, 7, 9, 9, 9, 10, 11]
    assert numbers_of(open_timeline(path, 2.72, FPS)) == (one_pass + one_pass[::-1]) * 2


def test_higher_output_rate(tmp_path):
    path = write_clip(tmp_path / "a.mp4", 10, fps=Fraction(30000, 1001))
    same = numbers_of(open_timeline(path, Fraction(1001, 3000), Fraction(30000, 1001)))
    assert same == list(range(10))
    double = numbers_of(open_timeline(path, Fraction(1001, 3000), Fraction(60000, 1001)))
    assert double == [index // 2 for index in range(20)]


def test_freeze(tmp_path):
    path = write_clip(tmp_path / "a.mp4", 10)
    assert numbers_of(open_timeline(path, 0.6, FPS, "freeze")) == [*range(10), 9, 9, 9, 9, 9]


def test_error_comes_before_any_work(tmp_path):
    path = write_clip(tmp_path / "a.mp4", 10)
    with pytest.raises(UserError, match=r"lasts 0\.40 s, the audio 0\.50 s"):
        open_timeline(path, 0.5, FPS, "error")
    assert numbers_of(open_timeline(path, 0.4, FPS, "error")) == list(range(10))


def test_unknown_choice(tmp_path):
    with pytest.raises(UserError, match="bounce, loop, freeze, error"):
        open_timeline(write_clip(tmp_path / "a.mp4", 3), 0.1, FPS, "back")


def test_one_frame_and_stills_repeat_the_same_object(tmp_path):
    path = write_clip(tmp_path / "a.mp4", 1)
    frames = list(open_timeline(path, 0.4, FPS))
    assert len(frames) == 10 and all(frame is frames[0] for frame in frames)


def test_clip_that_starts_late(tmp_path):
    path = write_clip(
        tmp_path / "a.mkv", 20, stamps=[5000 + 40 * i for i in range(20)], time_base=Fraction(1, 1000), options=B_FRAMES
    )
    assert numbers_of(open_timeline(path, 1.6, FPS)) == pingpong(20, 40)


def test_damaged_packets_are_skipped_and_counted(tmp_path, caplog):
    path = damage(write_clip(tmp_path / "a.avi", 60, codec="mpeg4", options={"g": "5"}), 0.5, 700)
    with caplog.at_level(logging.WARNING):
        frames = numbers_of(open_timeline(path, 2.4, FPS, "freeze"))
    assert len(frames) == 60
    assert frames[:20] == list(range(20))
    assert frames[-1] == 59


def test_undecodable_packets_are_reported(tmp_path, caplog):
    path = write_clip(tmp_path / "a.mov", 40, codec="png", pix_fmt="rgb24")
    data = bytearray(path.read_bytes())
    first = data.index(b"\x89PNG", len(data) // 2)
    data[first : first + 4] = b"\0\0\0\0"
    path.write_bytes(bytes(data))
    with caplog.at_level(logging.WARNING):
        frames = numbers_of(open_timeline(path, 1.6, FPS, "freeze"))
    assert len(frames) == 40
    assert len(set(range(40)) - set(frames)) == 1
    assert caplog.text.count("1 damaged packets were skipped") == 1


def test_nothing_decodes(tmp_path):
    path = write_clip(tmp_path / "a.mov", 10, codec="png", pix_fmt="rgb24")
    path.write_bytes(path.read_bytes().replace(b"\x89PNG", b"\0\0\0\0"))
    with pytest.raises(UserError, match="no frame that can be decoded"):
        probe_video(path)


@pytest.mark.parametrize(("suffix", "share"), [("mkv", 0.6), ("mp4", 0.8), ("ts", 0.6)])
def test_a_truncated_file_yields_its_intact_frames(tmp_path, monkeypatch, caplog, suffix, share):
    monkeypatch.setattr(timeline_module, "_WINDOW_FRAMES", (9, 9))
    front = {"movflags": "+faststart"} if suffix == "mp4" else {}
    path = write_clip(tmp_path / f"a.{suffix}", 100, options={**B_FRAMES, "g": "10"}, container_options=front)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with caplog.at_level(logging.WARNING):
        frames = numbers_of(open_timeline(path, 6.0, FPS))
    last = max(frames)
    length = next(index for index in range(150) if frames[index] == frames[index + 1] == last) + 1
    assert len(frames) == 150 and 20 < length < 100
    # The last frames may lack their reference frames: neighbors replace them.
    assert frames[: length - 3] == list(range(length - 3))
    assert frames[length - 3 : length] == sorted(frames[length - 3 : length])
    assert frames == [frames[index] for index in pingpong(length, 150)]
    assert suffix == "ts" or "truncated" in caplog.text
    with pytest.raises(UserError):
        list(open_timeline(path, 4.0, FPS, "error"))


def test_edit_list_is_applied(tmp_path):
    """Frames before the edit's start are decoded but not shown, forward and backward."""
    path = write_clip(tmp_path / "a.mp4", 40, stamps=[i - 8 for i in range(40)], options={**B_FRAMES, "g": "20"})
    frames = numbers_of(open_timeline(path, 3.2, FPS))
    first = frames[0]
    assert frames[: 40 - first] == list(range(first, 40))
    assert frames[40 - first : 80 - 2 * first] == list(range(39, first - 1, -1))


def test_few_frames_are_alive_at_a_time(tmp_path, monkeypatch):
    alive, peak = 0, 0

    class CountedFrame(VideoFrame):
        def __init__(self, *args):
            nonlocal alive, peak
            super().__init__(*args)
            alive += 1
            peak = max(peak, alive)

        def __del__(self):
            nonlocal alive
            alive -= 1

    monkeypatch.setattr("latentsync.media.convert.VideoFrame", CountedFrame)
    monkeypatch.setattr(timeline_module, "_WINDOW_FRAMES", (10, 10))
    path = write_clip(tmp_path / "a.mp4", 60, options={**B_FRAMES, "g": "250"})
    shown = 0
    for _ in open_timeline(path, 9.6, FPS):
        shown += 1
    assert shown == 240
    assert peak <= 13


def test_closing_early_lets_go_of_the_file(tmp_path):
    path = write_clip(tmp_path / "a.mp4", 20)
    timeline = open_timeline(path, 5.0, FPS)
    next(timeline)
    timeline.close()
    with pytest.raises(StopIteration):
        next(timeline)


@pytest.mark.parametrize(("suffix", "limit"), [("mp4", 150), ("mkv", 150), ("ts", 175)])
def test_backward_passes_decode_nothing_twice(tmp_path, monkeypatch, suffix, limit):
    """With keyframes closer than a window, a pass backward costs what a pass forward does."""
    decoded = 0
    original = VideoReader._decoded

    def counted(self):
        nonlocal decoded
        for frame in original(self):
            decoded += 1
            yield frame

    monkeypatch.setattr(VideoReader, "_decoded", counted)
    monkeypatch.setattr(timeline_module, "_WINDOW_FRAMES", (20, 20))
    path = write_clip(tmp_path / f"a.{suffix}", 50, options={**B_FRAMES, "g": "10"})
    assert numbers_of(open_timeline(path, 6.0, FPS)) == pingpong(50, 150)
    assert decoded <= limit


def test_change_of_size_on_the_way(tmp_path):
    write_clip(tmp_path / "a.ts", 20)
    images = [np.kron(numbered_rgb(20 + i), np.ones((2, 2, 1), np.uint8)) for i in range(20)]
    write_clip(tmp_path / "b.ts", 20, size=(128, 96), images=images, stamps=list(range(20, 40)))
    (tmp_path / "c.ts").write_bytes((tmp_path / "a.ts").read_bytes() + (tmp_path / "b.ts").read_bytes())
    with open_timeline(tmp_path / "c.ts", 1.6, FPS, "freeze") as timeline:
        frames = list(timeline)
    assert {(frame.width, frame.height) for frame in frames} == {(64, 48)}
    numbers = numbers_of(frames)
    assert numbers[:16] == list(range(16)) and numbers[22:40] == list(range(22, 40))
