"""Other codecs, 10-bit samples and HDR through the writer."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from latentsync.media.color import ColorTags
from latentsync.media.convert import plane_samples
from latentsync.media.deep_frame import DeepFrame
from latentsync.media.frame import VideoFrame, split_planes
from latentsync.media.probe import probe_video
from latentsync.media.timeline import open_timeline
from latentsync.media.tone_map import to_hdr, tone_map
from latentsync.media.writer import VideoWriter
from latentsync.options import parse_options
from latentsync.utils.errors import UserError

PQ, HLG = 16, 18
WIDTH, HEIGHT, COUNT = 64, 48, 4
FPS = Fraction(25)


def write_ten_bits(path: Path, transfer: int = 1, matrix: int = 1) -> Path:
    """A lossless clip of 10-bit ramps."""
    ramp = np.linspace(200, 600, WIDTH).astype(np.uint16)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p10le"
        codec = stream.codec_context
        codec.colorspace, codec.color_primaries, codec.color_trc, codec.color_range = matrix, matrix, transfer, 1
        for index in range(COUNT):
            frame = av.VideoFrame(WIDTH, HEIGHT, "yuv420p10le")
            for plane, samples in zip(frame.planes, (ramp + index, ramp[::2] + 100, ramp[::2] + 50), strict=True):
                plane_samples(plane, np.uint16)[:] = samples
            frame.pts = index
            frame.colorspace, frame.color_primaries, frame.color_trc, frame.color_range = matrix, matrix, transfer, 1
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def deep_frames(path: Path, keep_hdr: bool = False) -> list[DeepFrame]:
    info = probe_video(path).with_ten_bits(keep_hdr)
    return list(open_timeline(info, COUNT / FPS, FPS))


def decoded(path: Path, pixel_format: str | None = None) -> list[av.VideoFrame]:
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    return [frame.reformat(format=pixel_format) if pixel_format else frame for frame in frames]


def gray_frames(count: int = COUNT) -> list[VideoFrame]:
    return [VideoFrame.from_rgb(np.full((HEIGHT, WIDTH, 3), 60 + 20 * index, np.uint8)) for index in range(count)]


@pytest.mark.parametrize(
    ("codec", "suffix", "name", "pixel_format"),
    [("h264", ".mp4", "h264", "yuv420p"), ("hevc", ".mp4", "hevc", "yuv420p"), ("hevc", ".mkv", "hevc", "yuv420p")]
    + [("prores", ".mov", "prores", "yuv422p10le"), ("ffv1", ".mkv", "ffv1", "yuv420p")],
)
def test_codecs(tmp_path, codec, suffix, name, pixel_format):
    path = tmp_path / f"out{suffix}"
    color = ColorTags(1, 1, 1, 1)
    with VideoWriter(path, WIDTH, HEIGHT, FPS, codec=codec, color=color, crf=10) as writer:
        for frame in gray_frames():
            writer.write(frame)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == name and stream.codec_context.pix_fmt == pixel_format
        assert stream.average_rate == 25
        if codec == "hevc" and suffix == ".mp4":
            assert stream.codec_context.codec_tag == "hvc1"
    info = probe_video(path)
    assert (info.color.matrix, info.color.transfer) == (1, 1)
    for new, old in zip(open_timeline(info, COUNT / FPS, FPS), gray_frames(), strict=True):
        assert np.abs(new.planes[0].astype(int) - old.planes[0]).max() <= 3


@pytest.mark.parametrize(("codec", "suffix"), [("prores", ".mp4"), ("ffv1", ".mov"), ("vp9", ".mp4")])
def test_a_codec_in_a_wrong_container_is_refused(tmp_path, codec, suffix):
    with pytest.raises(UserError, match="codec"):
        VideoWriter(tmp_path / f"out{suffix}", WIDTH, HEIGHT, FPS, codec=codec)
    assert not list(tmp_path.iterdir())


def test_hevc_can_be_lossless(tmp_path):
    with VideoWriter(tmp_path / "out.mkv", WIDTH, HEIGHT, FPS, codec="hevc", crf=0) as writer:
        for frame in gray_frames():
            writer.write(frame)
    for new, old in zip(decoded(tmp_path / "out.mkv"), gray_frames(), strict=True):
        np.testing.assert_array_equal(new.to_ndarray(), old.i420)


@pytest.mark.parametrize(("codec", "suffix", "crf"), [("ffv1", ".mkv", 18), ("hevc", ".mp4", 0), ("h264", ".mov", 0)])
def test_ten_bits_pass_unchanged_and_edits_are_made_in_them(tmp_path, codec, suffix, crf):
    frames = deep_frames(write_ten_bits(tmp_path / "in.mkv"))
    edit = np.full((16, 20, 3), 200.0, np.float32)
    edited = [frame.blend_rgb(10, 8, edit, np.ones((16, 20), np.float32)) for frame in frames]
    out = tmp_path / f"out{suffix}"
    with VideoWriter(out, WIDTH, HEIGHT, FPS, codec=codec, pixel_format="yuv420p10le", crf=crf) as writer:
        for frame in edited:
            writer.write(frame)
    source = decoded(tmp_path / "in.mkv")
    for new, old, frame in zip(decoded(out), source, edited, strict=True):
        assert new.format.name == "yuv420p10le"
        samples, before = (plane_samples(item.planes[0], np.uint16).astype(int) for item in (new, old))
        changed = samples != before
        changed[8:24, 10:30] = False
        assert not changed.any()
        assert (samples[8:24, 10:30] == round(64 + 876 * 200 / 255)).all()
        assert np.abs(frame.planes[0].astype(int) * 4 - samples).max() <= 4  # what the networks see


def test_eight_bit_frames_are_scaled_to_ten(tmp_path):
    with VideoWriter(tmp_path / "out.mkv", WIDTH, HEIGHT, FPS, codec="ffv1", pixel_format="yuv420p10le") as writer:
        for frame in gray_frames():
            writer.write(frame)
    for new, old in zip(decoded(tmp_path / "out.mkv"), gray_frames(), strict=True):
        for plane, samples in zip(new.planes, old.planes, strict=True):
            np.testing.assert_array_equal(plane_samples(plane, np.uint16), samples.astype(np.uint16) * 4)


@pytest.mark.parametrize("transfer", [PQ, HLG])
def test_hdr_can_be_kept(tmp_path, transfer):
    source = write_ten_bits(tmp_path / "in.mkv", transfer, 9)
    frames = deep_frames(source, keep_hdr=True)
    color = probe_video(source).with_ten_bits(True).output_color
    assert (color.matrix, color.transfer) == (9, transfer)
    out = tmp_path / "out.mp4"
    with VideoWriter(out, WIDTH, HEIGHT, FPS, codec="hevc", pixel_format="yuv420p10le", crf=0, color=color) as writer:
        for frame in frames:
            writer.write(frame)
    for new, old in zip(decoded(out), decoded(source), strict=True):
        assert (int(new.colorspace), int(new.color_trc), int(new.color_primaries)) == (9, transfer, 9)
        np.testing.assert_array_equal(new.to_ndarray(), old.to_ndarray())


@pytest.mark.parametrize("transfer", [PQ, HLG])
def test_pasting_unchanged_pixels_back_keeps_hdr(tmp_path, transfer):
    """Tone mapping and its inverse agree within the rounding of 8 bits."""
    for frame in deep_frames(write_ten_bits(tmp_path / "in.mkv", transfer, 9), keep_hdr=True)[:1]:
        box = frame.crop_rgb(8, 8, 40, 40)
        inside = (box.min(axis=2) > 8) & (box.max(axis=2) < 250)  # not clipped by SDR
        pasted = frame.blend_rgb(8, 8, box.astype(np.float32), np.ones((32, 32), np.float32))
        new, old = (split_planes(item.samples)[0][8:40, 8:40].astype(int) for item in (pasted, frame))
        assert np.abs(new - old)[inside].max() <= 12  # of 1024


@pytest.mark.parametrize("transfer", [PQ, HLG])
def test_tone_mapping_can_be_inverted(transfer):
    levels = np.linspace(20, 250, 40, dtype=np.float32)
    rgb = np.stack([levels, levels * 0.8, levels * 0.6 + 20], axis=-1)[None]
    codes = np.rint(to_hdr(rgb, transfer) / 255 * 65535).astype(np.uint16)
    np.testing.assert_allclose(tone_map(codes, transfer) / 257, rgb, atol=1.0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"codec": "prores", "crf": 20}, "crf has no effect on prores"),
        ({"hdr": "keep"}, "hdr has no effect without codec hevc"),
        ({"codec": "prores", "pix_fmt": "yuv420p"}, "leave it out"),
    ],
)
def test_options_that_contradict_each_other(given, message):
    with pytest.raises(UserError, match=message):
        parse_options(given)


def test_the_depth_and_the_container_follow_from_the_options():
    assert [parse_options({"codec": codec}).suffix for codec in ("h264", "hevc", "prores", "ffv1")] == [
        ".mp4", ".mp4", ".mov", ".mkv",
    ]  # fmt: skip
    assert parse_options({"codec": "prores"}).is_ten_bit and parse_options({"codec": "hevc", "hdr": "keep"}).is_ten_bit
    assert not parse_options({"codec": "hevc"}).is_ten_bit
