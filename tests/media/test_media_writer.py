import os
import stat
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from latentsync.media import writer as writer_module
from latentsync.media.audio import audio_duration, load_audio
from latentsync.media.color import ColorTags
from latentsync.media.frame import VideoFrame
from latentsync.media.paths import check_output_path
from latentsync.media.probe import probe_video
from latentsync.media.timeline import open_timeline
from latentsync.media.writer import VideoWriter
from latentsync.utils.errors import UserError
from tests.media.synthetic import click_track, numbered_rgb, numbers_of, onsets, tone, write_audio, write_clip

FPS = Fraction(25)


def numbered(count: int, color: ColorTags | None = None) -> list[VideoFrame]:
    return [VideoFrame.from_rgb(numbered_rgb(index), color) for index in range(count)]


def write(path: Path, frames: list[VideoFrame], fps: Fraction = FPS, **options) -> Path:
    with VideoWriter(path, frames[0].width, frames[0].height, fps, **options) as writer:
        for frame in frames:
            writer.write(frame)
    return path


def packet_stamps(path: Path, kind: str = "video") -> list[Fraction]:
    with av.open(str(path)) as container:
        stream = container.streams.get(**{kind: 0})[0]
        return sorted(p.pts * p.time_base for p in container.demux(stream) if p.pts is not None)


@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv", "MP4"])
@pytest.mark.parametrize("fps", [FPS, Fraction(30000, 1001), Fraction(24000, 1001), Fraction(60), Fraction(1350, 61)])
def test_frames_and_times_are_exact(tmp_path, suffix, fps):
    path = write(tmp_path / f"a.{suffix}", numbered(20), fps)
    info = probe_video(path)
    assert info.fps == fps and not info.variable_frame_rate
    stamps = packet_stamps(path)
    expected = [index / fps for index in range(20)]
    tolerance = Fraction(1, 1000) if suffix == "mkv" else 0  # Matroska counts in milliseconds
    assert all(abs(stamp - wanted) <= tolerance for stamp, wanted in zip(stamps, expected, strict=True))
    assert numbers_of(open_timeline(info, 20 / fps, fps)) == list(range(20))


def test_untouched_samples_are_encoded_once(tmp_path):
    """At crf 0 the file holds the very samples that were read: nothing is converted on the way."""
    source = write_clip(tmp_path / "a.mp4", 8, color={"colorspace": 1, "color_range": 1})
    with open_timeline(source, 0.32, FPS) as timeline:
        frames = list(timeline)
    path = write(tmp_path / "b.mp4", frames, crf=0, color=probe_video(source).color)
    with open_timeline(path, 0.32, FPS) as timeline:
        for before, after in zip(frames, timeline, strict=True):
            np.testing.assert_array_equal(before.i420, after.i420)


@pytest.mark.parametrize(
    "tags", [ColorTags(), ColorTags(1, 1, 1, 1), ColorTags(5, 2, 5, 6), ColorTags(9, 1, 9, 14), ColorTags(6, 1, 6, 13)]
)
@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_color_tags_and_colors_survive(tmp_path, tags, suffix):
    image = np.full((48, 64, 3), (200, 90, 60), np.float32)
    path = write(tmp_path / f"a.{suffix}", [VideoFrame.from_rgb(image, tags)] * 3, color=tags)
    info = probe_video(path)
    assert (info.color.matrix, info.color.primaries, info.color.transfer) == (
        tags.matrix,
        tags.primaries,
        tags.transfer,
    )
    assert info.color.is_full_range == tags.is_full_range
    with open_timeline(info, 0.04, FPS) as timeline:
        assert np.abs(next(timeline).rgb().astype(int) - (200, 90, 60)).max() <= 3


def test_aspect_ratio_is_kept(tmp_path):
    path = write(tmp_path / "a.mp4", numbered(3), sample_aspect_ratio=Fraction(16, 15))
    assert probe_video(path).sample_aspect_ratio == Fraction(16, 15)


def test_rotated_source_gives_an_upright_file_without_tag(tmp_path):
    source = write_clip(tmp_path / "a.mp4", 3, rotation=90)
    info = probe_video(source)
    with open_timeline(info, 0.12, FPS) as timeline:
        write(tmp_path / "b.mp4", list(timeline))
    result = probe_video(tmp_path / "b.mp4")
    assert (result.width, result.height, result.rotation) == (48, 64, 0)


@pytest.mark.parametrize("size", [(2, 2), (2, 64), (64, 2), (50, 34), (66, 30), (480, 270)])
def test_sizes(tmp_path, size):
    """Sides that are even but not multiples of 4 or 16, and the smallest ones."""
    ramp = np.add.outer(np.arange(size[1]), np.arange(size[0])) * (200 / sum(size))
    image = np.stack([ramp, ramp / 2 + 60, 200 - ramp], axis=-1).astype(np.float32)
    frame = VideoFrame.from_rgb(image)
    path = write(tmp_path / "a.mp4", [frame] * 3, crf=0)
    info = probe_video(path)
    assert (info.width, info.height, info.num_frames) == (*size, 3)
    with open_timeline(info, 0.04, FPS) as timeline:
        np.testing.assert_array_equal(next(timeline).i420, frame.i420)


AUDIO_FORMATS = [
    ("m4a", "aac", 44100, "stereo"),
    ("mp3", "libmp3lame", 48000, "stereo"),
    ("wav", "pcm_s16le", 8000, "mono"),
    ("wav", "pcm_s16le", 96000, "mono"),
    ("wav", "pcm_f32le", 48000, "5.1"),
    ("wav", "pcm_s24le", 44100, "stereo"),
    ("wav", "pcm_s16le", 192000, "stereo"),
    ("wav", "pcm_s16le", 48000, "5.1(side)"),
    ("wav", "pcm_s16le", 48000, "7.1"),
    ("wav", "pcm_s16le", 16000, "2.1"),
    ("flac", "flac", 48000, "stereo"),
    ("opus", "libopus", 48000, "stereo"),
    ("mka", "aac", 16000, "mono"),
    ("mp4", "aac", 48000, "stereo"),
    ("ts", "aac", 48000, "stereo"),
    ("ac3", "ac3", 48000, "5.1"),
    ("m4a", "alac", 44100, "stereo"),
]


@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv"])
@pytest.mark.parametrize("audio_format", AUDIO_FORMATS, ids=lambda values: "-".join(map(str, values)))
def test_audio_is_complete_and_in_place(tmp_path, suffix, audio_format):
    extension, codec, rate, layout = audio_format
    clicks = click_track(rate, 1.37, [0.1, 0.5, 1.3])
    channels = av.AudioLayout(layout).nb_channels
    source = write_audio(tmp_path / f"s.{extension}", np.repeat(clicks[None], channels, axis=0), rate, layout, codec)
    path = write(tmp_path / f"a.{suffix}", numbered(35), audio=source)

    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        assert stream.codec_context.sample_rate == min(rate, 96000 if codec != "pcm_s24le" else rate) or (
            suffix != "mp4" and codec.startswith("pcm")
        )
        assert stream.codec_context.channels == channels
        first_video = min(packet_stamps(path))
    # The distance of the first frame and the first sample is kept (Matroska may shift both by the encoder's delay).
    wanted = onsets(load_audio(source), 16000)
    found = np.array(onsets(load_audio(path), 16000)) + float(audio_start(path)) - float(first_video)
    assert len(found) == len(wanted) == 3
    np.testing.assert_allclose(found, wanted, atol=0.0025)
    assert audio_duration(path) >= audio_duration(source) - 0.0005


def audio_start(path: Path) -> Fraction:
    """Time stamp of the first sample decoded."""
    with av.open(str(path)) as container:
        frame = next(container.decode(audio=0))
        return frame.pts * frame.time_base


def test_compatible_audio_is_copied(tmp_path):
    source = write_audio(tmp_path / "s.m4a", tone(44100, 1.0), 44100, codec="aac")
    path = write(tmp_path / "a.mp4", numbered(25), audio=source)

    def packets(file: Path) -> list[bytes]:
        with av.open(str(file)) as container:
            return [bytes(packet) for packet in container.demux(audio=0) if packet.size]

    assert packets(path) == packets(source)


def test_audio_of_a_video_longer_than_the_frames(tmp_path):
    source = write_clip(tmp_path / "s.mp4", 5, tone_seconds=2.0)
    path = write(tmp_path / "a.mp4", numbered(10), audio=source)
    assert audio_duration(path) >= 2.0
    assert probe_video(path).num_frames == 10


def test_audio_that_starts_late_in_its_file(tmp_path):
    """The first audible sample belongs to the first frame, as it does for the models."""
    path = tmp_path / "s.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("flac", rate=16000, layout="mono")
        clicks = np.round(click_track(16000, 1.0, [0.2, 0.8]) * 32767).astype(np.int16)
        for begin in range(0, 16000, 4000):
            frame = av.AudioFrame.from_ndarray(clicks[None, begin : begin + 4000], "s16", "mono")
            frame.sample_rate = 16000
            frame.pts = 5 * 16000 + begin
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    for suffix in ("mkv", "mp4"):
        out = write(tmp_path / f"a.{suffix}", numbered(25), audio=path)
        np.testing.assert_allclose(onsets(load_audio(out), 16000), [0.2, 0.8], atol=0.002)
        assert abs(audio_start(out) - min(packet_stamps(out))) < Fraction(1, 100)


def test_audio_and_frames_are_interleaved(tmp_path):
    source = write_audio(tmp_path / "s.m4a", tone(16000, 8.0), 16000, codec="aac")
    path = write(tmp_path / "a.mp4", numbered(200), audio=source)
    with av.open(str(path)) as container:
        order = [packet.stream.type for packet in container.demux() if packet.size]
    runs = max(len(run) for run in "".join(kind[0] for kind in order).split("v"))
    assert runs < 40


def test_index_is_at_the_front(tmp_path):
    data = write(tmp_path / "a.mp4", numbered(10)).read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")


def test_output_appears_only_when_complete(tmp_path):
    target = tmp_path / "a.mp4"
    target.write_bytes(b"old")
    with VideoWriter(target, 64, 48, FPS) as writer:
        for frame in numbered(80):  # enough for the encoder to let the first one go
            writer.write(frame)
        assert target.read_bytes() == b"old"
        names = [name for name in os.listdir(tmp_path) if name != "a.mp4"]
        assert len(names) == 1 and names[0].startswith(".")
    assert probe_video(target).num_frames == 80
    assert os.listdir(tmp_path) == ["a.mp4"]
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(target.stat().st_mode) == 0o666 & ~umask


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, GeneratorExit])
def test_any_exception_leaves_nothing_and_keeps_the_old_file(tmp_path, error):
    target = tmp_path / "a.mp4"
    target.write_bytes(b"old")
    source = write_audio(tmp_path / "s.wav", tone(16000, 1.0))
    with pytest.raises(error), VideoWriter(target, 64, 48, FPS, audio=source) as writer:
        for frame in numbered(60):
            writer.write(frame)
        raise error
    assert sorted(os.listdir(tmp_path)) == ["a.mp4", "s.wav"]
    assert target.read_bytes() == b"old"


def test_failure_at_the_very_end_leaves_nothing(tmp_path, monkeypatch):
    def refuse(source, target):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(writer_module.os, "replace", refuse)
    with pytest.raises(UserError, match="Permission denied"):
        write(tmp_path / "a.mp4", numbered(3))
    assert os.listdir(tmp_path) == []


def test_audio_without_a_stream_leaves_no_file(tmp_path):
    mute = write_clip(tmp_path / "s.mp4", 3)
    with pytest.raises(UserError, match="no audio stream"):
        VideoWriter(tmp_path / "a.mp4", 64, 48, FPS, audio=mute)
    assert os.listdir(tmp_path) == ["s.mp4"]


def test_no_frame_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no frame"), VideoWriter(tmp_path / "a.mp4", 64, 48, FPS):
        pass
    assert os.listdir(tmp_path) == []


def test_wrong_size_is_an_error(tmp_path):
    with (
        pytest.raises(ValueError, match="64x48 in a video of 66x48"),
        VideoWriter(tmp_path / "a.mp4", 66, 48, FPS) as w,
    ):
        w.write(numbered(1)[0])


@pytest.mark.parametrize("options", [{"crf": 99}, {"crf": -1}, {"preset": "warp"}])
def test_bad_options(tmp_path, options):
    with pytest.raises(UserError, match="choose"):
        VideoWriter(tmp_path / "a.mp4", 64, 48, FPS, **options)


@pytest.mark.parametrize(
    "name", ["a.avi", "a.webm", "a", "a.mp4.txt", "folder.mp4", "missing/a.mp4", "file.txt/a.mp4", ""]
)
def test_bad_output(tmp_path, name):
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "file.txt").touch()
    with pytest.raises(UserError) as caught:
        check_output_path(f"{tmp_path}/{name}" if name else "")
    assert "\n" not in str(caught.value)
    assert sorted(os.listdir(tmp_path)) == ["file.txt", "folder.mp4"]


def test_unwritable_folder():
    if not Path("/proc/self").is_dir():
        pytest.skip("needs a folder that refuses even the superuser")
    with pytest.raises(UserError, match="cannot write"):
        check_output_path("/proc/self/a.mp4")


def test_output_that_is_an_input(tmp_path):
    clip = write_clip(tmp_path / "a.mp4", 2)
    (tmp_path / "link.mp4").symlink_to(clip)
    os.link(clip, tmp_path / "hard.mp4")
    for name in ("a.mp4", "link.mp4", "hard.mp4", "./x/../a.mp4"):
        (tmp_path / "x").mkdir(exist_ok=True)
        with pytest.raises(UserError, match="also an input"):
            check_output_path(tmp_path / name, [tmp_path / "other.wav", clip])
    assert check_output_path(tmp_path / "new.mp4", [clip]) == tmp_path / "new.mp4"


@pytest.mark.parametrize("name", ["-o.mp4", "a b'\"$(x);`.mp4", "唇%03d.mp4", "pipe:1.mp4", "x" * 240 + ".mkv"])
def test_any_output_name(tmp_path, monkeypatch, name):
    folder = tmp_path / "fol%d der:1"
    folder.mkdir()
    monkeypatch.chdir(folder)
    write(name, numbered(2))
    assert os.listdir(folder) == [name]
    assert probe_video(name).duration == pytest.approx(0.08)
