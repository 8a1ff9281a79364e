"""HDR, interlaced and black-and-white sources."""

import logging
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from latentsync.media.frame import VideoFrame
from latentsync.media.probe import probe_video
from latentsync.media.rgb_frame import RGBFrame
from latentsync.media.timeline import open_timeline, pingpong_index
from latentsync.media.tone_map import PEAK, WHITE, tone_map
from tests.media.synthetic import write_clip

FPS = Fraction(25)
PQ, HLG = 16, 18


def pq_code(light: float) -> int:
    """16-bit PQ code of cd/m2, by SMPTE ST 2084."""
    y = (light / 10_000) ** 0.1593017578125
    return round(((0.8359375 + 18.8515625 * y) / (1 + 18.6875 * y)) ** 78.84375 * 65535)


def hlg_code(light: float) -> int:
    """16-bit HLG code of gray light on a display of 1000 cd/m2."""
    scene = (light / 1000) ** (1 / 1.2)
    code = np.sqrt(3 * scene) if scene <= 1 / 12 else 0.17883277 * np.log(12 * scene - 0.28466892) + 0.55991073
    return round(float(code) * 65535)


def gray(code: int) -> np.ndarray:
    return np.full((4, 4, 3), code, np.uint16)


@pytest.mark.parametrize(("transfer", "code"), [(PQ, pq_code), (HLG, hlg_code)])
def test_light_below_the_knee_is_kept_and_highlights_are_compressed(transfer, code):
    for light in (1.0, 10.0, 50.0, 90.0):
        mapped = tone_map(gray(code(light)), transfer) / 65535
        np.testing.assert_allclose(mapped**2.4 * WHITE, light, rtol=0.02)
        assert np.ptp(mapped) < 2e-3  # gray stays gray
    levels = [int(tone_map(gray(code(light)), transfer)[0, 0, 0]) for light in (0, 90, 203, 400, 800, PEAK)]
    assert levels == sorted(set(levels)) and levels[0] == 0 and levels[-1] > 65_400
    assert levels[2] > 0.85 * 65535


def test_hue_is_kept():
    """BT.2020 red within the gamut of BT.709 stays red; brightness does not change the ratio of channels."""
    ratios = []
    for light in (20.0, 80.0, 400.0):
        rgb = np.array([[[pq_code(light), pq_code(light * 0.6), pq_code(light * 0.5)]]], np.uint16)
        linear = (tone_map(rgb, PQ)[0, 0] / 65535) ** 2.4
        ratios.append(linear / linear.max())
    np.testing.assert_allclose(ratios, [ratios[0]] * 3, atol=0.01)


@pytest.mark.parametrize(("transfer", "name", "code"), [(PQ, "PQ", pq_code), (HLG, "HLG", hlg_code)])
def test_hdr_files_become_sdr_and_a_line_says_so(tmp_path, caplog, transfer, name, code):
    """10-bit BT.2020: SDR of the light that the file stands for, tagged BT.709."""
    luma = round(64 + 876 * code(80.0) / 65535)
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx265", rate=25, options={"x265-params": "log-level=none"})
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p10le"
        codec = stream.codec_context
        codec.colorspace, codec.color_primaries, codec.color_trc, codec.color_range = 9, 9, transfer, 1
        for _ in range(3):
            frame = av.VideoFrame(64, 64, "yuv420p10le")
            for plane, value in zip(frame.planes, (luma, 512, 512), strict=True):
                plane.update(np.full(plane.buffer_size // 2, value, "<u2").tobytes())
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    info = probe_video(path)
    assert info.hdr == name and (info.color.matrix, info.color.primaries, info.color.transfer) == (1, 1, 1)
    with caplog.at_level(logging.INFO):
        frames = list(open_timeline(info, 0.12, FPS))
    assert caplog.text.count("\n") == 1 and f"HDR ({name}) is tone-mapped to SDR" in caplog.text
    wanted = (80.0 / WHITE) ** (1 / 2.4) * 255
    assert np.abs(frames[0].rgb() - wanted).max() < 4


def write_interlaced(path: Path, count: int) -> Path:
    """A bar that moves from field to field."""
    with av.open(str(path), "w") as container:
        options = {"preset": "ultrafast", "flags": "+ildct+ilme", "x264-params": "tff=1:keyint=10:bframes=2:b-adapt=0"}
        stream = container.add_stream("libx264", rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = 64, 96, "yuv420p"
        for index in range(count):
            image = np.full((96, 64, 3), 60, np.uint8)
            for field in (0, 1):
                left = (4 * index + 2 * field) % 44
                image[field::2, left : left + 16] = 220
            frame = av.VideoFrame.from_ndarray(image, "rgb24")
            frame.pts = index
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def combing(luma: np.ndarray) -> float:
    """How much odd rows differ from the mean of their neighbors."""
    luma = luma.astype(np.float32)
    return float(np.abs(luma[1:-1:2] - (luma[:-2:2] + luma[2::2]) / 2).mean())


def test_interlaced_video_is_deinterlaced_and_a_line_says_so(tmp_path, caplog):
    path = write_interlaced(tmp_path / "a.mp4", 40)
    with av.open(str(path)) as container:
        raw = combing(list(container.decode(video=0))[5].to_ndarray(format="gray"))
    info = probe_video(path)
    assert info.num_frames == 40
    with caplog.at_level(logging.INFO):
        frames = list(open_timeline(info, 3.2, FPS))
    assert caplog.text.count("\n") == 1 and "deinterlaced" in caplog.text
    assert combing(frames[5].planes[0]) < raw / 4
    for index, frame in enumerate(frames):  # one frame per frame, the same in every pass
        np.testing.assert_array_equal(frame.i420, frames[pingpong_index(index, 40)].i420)


def test_progressive_video_is_not(tmp_path, caplog):
    info = probe_video(write_clip(tmp_path / "a.mp4", 3))
    with caplog.at_level(logging.INFO):
        list(open_timeline(info, 0.12, FPS))
    assert not caplog.text and info.hdr is None


def test_black_and_white_frames_stay_so():
    data = np.full((72, 64), 128, np.uint8)
    data[:48] = np.arange(64)
    frame = VideoFrame(data)
    paste = np.full((20, 20, 3), (220, 120, 90), np.float32)
    assert frame.is_gray
    result = frame.blend_rgb(5, 7, paste, np.ones((20, 20)), luma_only=True)
    assert (result.i420[48:] == 128).all() and (result.i420[8:26, 6:24] > 100).all()
    colored = frame.blend_rgb(5, 7, paste, np.ones((20, 20)))
    assert not colored.is_gray
    np.testing.assert_array_equal(colored.planes[0], result.planes[0])


def test_black_and_white_frames_in_memory():
    pixels = np.repeat(np.arange(48 * 64, dtype=np.uint8).reshape(48, 64, 1), 3, axis=2)
    frame = RGBFrame(pixels)
    paste = np.full((20, 20, 3), (220, 120, 90), np.float32)
    assert frame.is_gray and not frame.blend_rgb(5, 7, paste, np.ones((20, 20))).is_gray
    assert frame.blend_rgb(5, 7, paste, np.ones((20, 20)), luma_only=True).is_gray
