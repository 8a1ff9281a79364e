import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from latentsync.media.convert import FrameConverter, converted_tags, upright
from latentsync.media.probe import probe_video
from latentsync.media.timeline import open_timeline
from latentsync.utils.errors import UserError
from tests.media.synthetic import numbered_rgb, numbers_of, tone, write_audio, write_clip

# Quadrants: upper left red, upper right green, lower left blue, lower right white.
QUADRANTS = np.zeros((48, 64, 3), np.uint8)
QUADRANTS[:24, :32] = (220, 30, 30)
QUADRANTS[:24, 32:] = (30, 200, 30)
QUADRANTS[24:, :32] = (30, 30, 220)
QUADRANTS[24:, 32:] = (235, 235, 235)


def corners(rgb: np.ndarray) -> str:
    """First letters of the colors in the four corners, row by row."""
    names = {"r": (220, 30, 30), "g": (30, 200, 30), "b": (30, 30, 220), "w": (235, 235, 235)}
    height, width = rgb.shape[:2]
    spots = [
        (height // 5, width // 5),
        (height // 5, -width // 5),
        (-height // 5, width // 5),
        (-height // 5, -width // 5),
    ]
    return "".join(min(names, key=lambda n: np.abs(rgb[y, x].astype(int) - names[n]).sum()) for y, x in spots)


def first_frame(path: Path):
    info = probe_video(path)
    with open_timeline(info, 0.04, Fraction(25)) as timeline:
        return info, next(timeline)


def test_plain_clip(tmp_path):
    path = write_clip(tmp_path / "a.mp4", 30, fps=Fraction(30000, 1001))
    info = probe_video(path)
    assert (info.width, info.height, info.num_frames) == (64, 48, 30)
    assert info.fps == Fraction(30000, 1001)
    assert info.duration == pytest.approx(1.001, abs=1e-3)
    assert not info.is_still and not info.variable_frame_rate and not info.has_alpha
    assert (info.bit_depth, info.rotation, info.sample_aspect_ratio) == (8, 0, 1)


@pytest.mark.parametrize(
    "name", ["missing.mp4", "folder", "empty.mp4", "text.mp4", "text.txt", "bytes.mp4", "\0.mp4", ""]
)
def test_not_a_video(tmp_path, name):
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("this is not a video\n" * 50)
    (tmp_path / "a.txt").write_text("this is not a video either\n" * 50)
    (tmp_path / "bytes.mp4").write_bytes(np.random.default_rng(0).bytes(20_000))
    with pytest.raises(UserError) as caught:
        probe_video(tmp_path / name if name else "")
    assert "\n" not in str(caught.value)


def test_fifo_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(UserError, match="regular file"):
        probe_video(tmp_path / "pipe.mp4")


def test_playlists_are_refused(tmp_path):
    clip = write_clip(tmp_path / "a.mp4", 5)
    (tmp_path / "list.m3u8").write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{clip}\n#EXT-X-ENDLIST\n")
    (tmp_path / "list.mp4").write_text("ffconcat version 1.0\nfile a.mp4\n")
    for name in ("list.m3u8", "list.mp4"):
        with pytest.raises(UserError):
            probe_video(tmp_path / name)


def test_audio_alone(tmp_path):
    path = write_audio(tmp_path / "a.wav", tone(16000, 0.5))
    with pytest.raises(UserError, match="only audio"):
        probe_video(path)


def test_cover_image_is_no_video(tmp_path):
    path = tmp_path / "a.mp3"
    with av.open(str(path), "w") as container:
        audio = container.add_stream("libmp3lame", rate=16000, layout="mono")
        cover = container.add_stream("png", rate=1)
        cover.width, cover.height, cover.pix_fmt = 64, 48, "rgb24"
        cover.disposition = av.stream.Disposition.attached_pic
        container.mux(cover.encode(av.VideoFrame.from_ndarray(QUADRANTS, "rgb24")))
        container.mux(cover.encode(None))
        frame = av.AudioFrame.from_ndarray(tone(16000, 1)[None], "fltp", "mono")
        frame.sample_rate = 16000
        container.mux(audio.encode(frame))
        container.mux(audio.encode(None))
    with pytest.raises(UserError, match="only audio"):
        probe_video(path)


def test_video_without_frames(tmp_path):
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.start_encoding()
    with pytest.raises(UserError):
        probe_video(path)


def test_truncated_before_the_index(tmp_path):
    path = write_clip(tmp_path / "a.mp4", 30)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match="truncated"):
        probe_video(path)


NAMES = [
    "-i.mp4",
    "a b'c\"d;e$(touch x)`y`&|<>.mp4",
    "юникод 唇 é.mp4",
    "concat:a.mp4",
    "http:__x.mp4",
    "frame%03d.mp4",
    "frame*[1]?{a}.mp4",
    "\udcff.mp4",
]


@pytest.mark.parametrize("name", NAMES)
def test_any_name_is_a_plain_local_file(tmp_path, monkeypatch, name):
    write_clip(tmp_path / "plain.mp4", 5)
    monkeypatch.chdir(tmp_path)
    os.rename("plain.mp4", name)
    info = probe_video(name)  # relative on purpose
    assert numbers_of(open_timeline(info, 0.2, Fraction(25))) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("name", ["a%03d.png", "b*?.jpg", "-c.png"])
def test_any_name_of_a_still(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(QUADRANTS).save("plain" + name[-4:])
    os.rename("plain" + name[-4:], name)
    info, frame = first_frame(Path(name))
    assert info.is_still and corners(frame.rgb()) == "rgbw"


@pytest.mark.parametrize(("degrees", "expected"), [(90, "gwrb"), (180, "wbgr"), (-90, "brwg"), (270, "brwg")])
def test_rotated_video_is_delivered_upright(tmp_path, degrees, expected):
    """`degrees` counter-clockwise, as libav counts."""
    path = write_clip(tmp_path / "a.mp4", 3, images=[QUADRANTS] * 3, rotation=degrees)
    info, frame = first_frame(path)
    assert info.rotation == -degrees % 360
    assert (info.width, info.height) == (frame.width, frame.height) == ((64, 48) if degrees == 180 else (48, 64))
    assert corners(frame.rgb()) == expected


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
@pytest.mark.parametrize(
    ("code", "expected"),
    [(1, "rgbw"), (2, "grwb"), (3, "wbgr"), (4, "bwrg"), (5, "rbgw"), (6, "brwg"), (7, "wgbr"), (8, "gwrb")],
)
def test_exif_orientation_of_stills(tmp_path, suffix, code, expected):
    exif = Image.Exif()
    exif[0x0112] = code
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(QUADRANTS).save(path, exif=exif)
    info, frame = first_frame(path)
    assert info.is_still and info.num_frames == 1 and info.fps == 25
    assert corners(frame.rgb()) == expected


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "jpg", "webp", "gif"])
def test_still_formats_keep_their_colors(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(QUADRANTS).save(path)
    _, frame = first_frame(path)
    difference = np.abs(frame.rgb()[8:16, 8:16].astype(int) - QUADRANTS[8:16, 8:16])
    assert difference.max() <= 6


def test_gray_stills_keep_their_samples(tmp_path):
    ramp = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (48, 1))
    Image.fromarray(ramp).save(tmp_path / "a.png")
    Image.fromarray(ramp.astype(np.uint16) * 257).save(tmp_path / "b.png")
    for name in ("a.png", "b.png"):
        info, frame = first_frame(tmp_path / name)
        assert np.abs(frame.rgb()[..., 1].astype(int) - ramp).max() <= 1
        assert info.bit_depth == (16 if name == "b.png" else 8)


def test_transparent_still_is_laid_over_black(tmp_path):
    rgba = np.dstack([QUADRANTS, np.full((48, 64), 255, np.uint8)])
    rgba[:, 32:, 3] = 0
    rgba[24:, :32, 3] = 128
    Image.fromarray(rgba).save(tmp_path / "a.png")
    info, frame = first_frame(tmp_path / "a.png")
    rgb = frame.rgb().astype(int)
    assert info.has_alpha
    assert np.abs(rgb[10, 10] - (220, 30, 30)).max() <= 4
    assert np.abs(rgb[40, 10] - np.array((30, 30, 220)) / 2).max() <= 4
    assert rgb[:, 34:].max() <= 2


def test_huge_still_is_scaled_down(tmp_path):
    Image.new("RGB", (7680, 4320), (200, 100, 50)).save(tmp_path / "a.png", compress_level=1)
    info, frame = first_frame(tmp_path / "a.png")
    assert (info.width, info.height) == (frame.width, frame.height) == (4096, 2304)
    assert np.abs(frame.crop_rgb(100, 100, 110, 110).astype(int) - (200, 100, 50)).max() <= 2


@pytest.mark.parametrize("size", [(1, 1), (63, 47), (2, 2), (65, 48)])
def test_odd_sizes_are_padded_to_even(tmp_path, size):
    Image.fromarray(np.full((size[1], size[0], 3), (200, 100, 50), np.uint8)).save(tmp_path / "a.png")
    info, frame = first_frame(tmp_path / "a.png")
    assert (info.width, info.height) == (frame.width, frame.height) == (size[0] + size[0] % 2, size[1] + size[1] % 2)
    assert np.abs(frame.rgb().astype(int) - (200, 100, 50)).max() <= 3


@pytest.mark.parametrize("kind", ["gif", "webp", "png"])
def test_animations_are_videos(tmp_path, kind):
    images = [Image.fromarray(numbered_rgb(i)) for i in range(5)]
    options = {"lossless": True} if kind == "webp" else {}
    path = tmp_path / f"a.{kind}"
    images[0].save(path, save_all=True, append_images=images[1:], duration=[100, 200, 100, 100, 100], **options)
    info = probe_video(path)
    assert not info.is_still
    assert numbers_of(open_timeline(info, 1.2, Fraction(10))) == [0, 1, 1, 2, 3, 4, 4, 3, 2, 1, 1, 0]


def test_variable_rate_is_noticed(tmp_path):
    stamps = [0, 40, 80, 200, 240, 400, 440, 480]
    path = write_clip(tmp_path / "a.mp4", 8, stamps=stamps, time_base=Fraction(1, 1000))
    assert probe_video(path).variable_frame_rate


def test_missing_duration_is_counted(tmp_path):
    path = write_clip(tmp_path / "a.h264", 20)
    info = probe_video(path)
    assert info.num_frames == 20
    assert info.duration == pytest.approx(0.8, abs=0.05)


FORMATS = {
    "yuv422p": ("libx264", ".mkv", 8),
    "yuv444p": ("libx264", ".mkv", 8),
    "yuv420p10le": ("libx264", ".mkv", 10),
    "yuv422p10le": ("libx264", ".mkv", 10),
    "yuvj420p": ("mjpeg", ".mkv", 8),
    "yuvj444p": ("mjpeg", ".mkv", 8),
    "bgr0": ("ffv1", ".mkv", 8),
    "bgra": ("ffv1", ".mkv", 8),
    "gray": ("ffv1", ".mkv", 8),
    "gbrp": ("libx264rgb", ".mkv", 8),
    "yuva444p10le": ("prores_ks", ".mov", 12),
}


@pytest.mark.parametrize("pix_fmt", FORMATS)
def test_pixel_formats(tmp_path, pix_fmt):
    codec, suffix, depth = FORMATS[pix_fmt]
    options = {"crf": "5"} if codec.startswith("libx264") else {"qmin": "1", "qmax": "2"} if codec == "mjpeg" else {}
    if codec == "libx264rgb":
        pix_fmt = "bgr24"
    path = tmp_path / f"a{suffix}"
    write_clip(path, 2, codec=codec, pix_fmt=pix_fmt, images=[QUADRANTS] * 2, options=options)
    info, frame = first_frame(path)
    assert info.bit_depth == depth
    expected = QUADRANTS
    if pix_fmt == "gray":
        expected = np.repeat(np.round(QUADRANTS @ (0.299, 0.587, 0.114))[..., None], 3, axis=2)
    rgb = frame.rgb().astype(int)
    for y, x in ((10, 10), (10, 50), (38, 10), (38, 50)):
        assert np.abs(rgb[y, x] - expected[y, x]).max() <= 8


@pytest.mark.parametrize("color_range", [1, 2])
@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv422p", "yuv444p10le", "gray"])
def test_conversion_keeps_matrix_and_range(pix_fmt, color_range):
    """Luma goes through unchanged (to a rounding step where bits are dropped), whatever the tags."""
    ramp = np.tile(np.arange(16, 236, dtype=np.uint16)[:192], (32, 1))
    frame = av.VideoFrame(192, 32, pix_fmt)
    for index, plane in enumerate(frame.planes):
        samples = ramp[: plane.height, : plane.width] if index == 0 else np.full((plane.height, plane.width), 128)
        deep = "10" in pix_fmt
        padded = np.zeros((plane.height, plane.line_size // (2 if deep else 1)), np.uint16 if deep else np.uint8)
        padded[:, : plane.width] = samples * (4 if deep else 1)
        plane.update(padded.tobytes())
    frame.color_range, frame.colorspace = color_range, 9
    tags = converted_tags(frame)
    assert (tags.matrix, tags.range) == (9, color_range)
    converted = FrameConverter(192, 32, 1, tags)(frame)
    assert np.abs(converted.planes[0].astype(int) - ramp).max() <= (1 if "10" in pix_fmt else 0)
    assert np.abs(converted.planes[1].astype(int) - 128).max() <= 1


def test_orientations_are_the_inverse_of_pillow():
    image = np.arange(12, dtype=np.uint8).reshape(3, 4)
    for code, method in {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}.items():
        expected = np.asarray(Image.fromarray(image).transpose(Image.Transpose(method)))
        np.testing.assert_array_equal(upright(image, code), expected)


@pytest.mark.parametrize(
    ("size", "codec", "pix_fmt", "suffix"),
    [
        ((1, 1), "png", "rgb24", "mov"),
        ((1, 1), "ffv1", "yuv420p", "mkv"),
        ((63, 47), "mjpeg", "yuvj420p", "mkv"),
        ((65, 49), "ffv1", "yuva420p", "mkv"),
        ((65, 49), "libx264", "yuv444p", "mp4"),
        ((67, 49), "gif", "bgr8", "gif"),
    ],
)
@pytest.mark.parametrize("rotation", [0, 90])
def test_odd_sizes_of_videos(tmp_path, size, codec, pix_fmt, suffix, rotation):
    image = np.full((size[1], size[0], 3), (200, 100, 50), np.uint8)
    options = {"size": size, "codec": codec, "pix_fmt": pix_fmt, "images": [image] * 2, "rotation": rotation}
    info, frame = first_frame(write_clip(tmp_path / f"a.{suffix}", 2, **options))
    expected = (size[0] + size[0] % 2, size[1] + size[1] % 2)
    if info.rotation:
        expected = expected[::-1]
    assert (info.width, info.height) == (frame.width, frame.height) == expected
    difference = frame.rgb().astype(int) - (200, 100, 50)
    if codec == "gif":  # 256 fixed colors, dithered: right on average
        difference = difference.mean(axis=(0, 1))
    assert np.abs(difference).max() <= 6


def test_titles_in_an_old_encoding(tmp_path):
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "XXXX"
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(QUADRANTS, "rgb24")))
        container.mux(stream.encode(None))
    assert b"XXXX" in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(b"XXXX", b"\xe9\xff\xfe\xe8"))
    assert probe_video(path).width == 64
