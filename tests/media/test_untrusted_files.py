"""Files made to mislead: playlists that refer to files, wrong headers, formats outside the allow-lists."""

import os
import tracemalloc
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from latentsync.media import audio
from latentsync.media.audio import SpooledAudio, audio_duration, load_audio
from latentsync.media.paths import ACCEPTED_DEMUXERS, open_image
from latentsync.media.probe import probe_video
from latentsync.media.timeline import open_timeline
from latentsync.media.webp import read_animated_webp
from latentsync.utils.errors import UserError
from tests.media.synthetic import tone, write_audio, write_clip
from tests.media.untrusted import write_gaps, write_raw_wav, write_webp
from tests.serving.hostile_inputs import NAMES, PLAYLISTS


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", PLAYLISTS)
def test_no_file_refers_to_another(tmp_path, monkeypatch, kind, name):
    write_clip(tmp_path / "clip.mp4", 2)
    os.mkfifo(tmp_path / "pipe")
    path = tmp_path / name
    path.write_text(PLAYLISTS[kind].format(name=name))
    opened = []
    monkeypatch.setattr(
        av, "open", lambda *args, _open=av.open, **kw: opened.append(kw["options"]) or _open(*args, **kw)
    )
    before = len(os.listdir("/proc/self/fd"))
    for use in (probe_video, load_audio):
        with pytest.raises(UserError) as caught:
            use(path)
        assert "\n" not in str(caught.value)
    assert len(os.listdir("/proc/self/fd")) <= before + 4  # of attempts that wait to be collected
    assert opened and all(options["format_whitelist"] and options["protocol_whitelist"] for options in opened)


def test_the_allow_list_names_demuxers_that_exist_and_none_that_opens_files():
    known = {name for entry in av.formats_available for name in entry.split(",")}
    assert set(ACCEPTED_DEMUXERS) <= known
    referring = {
        "concat",
        "hls",
        "dash",
        "imf",
        "image2",
        "lavfi",
        "rtsp",
        "rtp",
        "sdp",
        "tty",
        "svg_pipe",
        "vapoursynth",
    }
    assert not referring & set(ACCEPTED_DEMUXERS)


@pytest.mark.parametrize("suffix", [".txt", ".jpg", ".m3u8", ".ffconcat", ".tga", ""])
def test_content_counts_not_the_suffix(tmp_path, suffix):
    clip = write_clip(tmp_path / "clip.mp4", 3)
    path = clip.rename(tmp_path / f"clip{suffix}")
    assert probe_video(path).num_frames == 3


def test_images_outside_the_list_are_not_opened(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.eps")  # which Pillow would hand to Ghostscript
    with pytest.raises(OSError):
        open_image(tmp_path / "a.eps")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with open_image(tmp_path / "a.png") as image:
        assert image.size == (8, 8)


def test_an_animation_is_counted_without_decoding(tmp_path, monkeypatch):
    path = write_webp(tmp_path / "a.webp", 64, 48, [40] * 20_000)
    decoded = []
    monkeypatch.setattr(
        Image.Image, "convert", lambda self, mode, _c=Image.Image.convert: decoded.append(1) or _c(self, mode)
    )
    info = probe_video(path)
    assert (info.num_frames, info.duration, info.width, info.height) == (20_000, 800.0, 64, 48)
    assert len(decoded) == 1
    assert sum(1 for _ in open_timeline(info, Fraction(2, 25), Fraction(25))) == 2
    assert len(decoded) <= 5


@pytest.mark.parametrize("keep", [0, 30, 31, 60])
def test_animations_that_are_cut_short(tmp_path, keep):
    path = write_webp(tmp_path / "a.webp", 64, 48, [40, 40])
    path.write_bytes(path.read_bytes()[:keep] or b"RIFF")
    with pytest.raises(UserError):
        probe_video(path)


def test_animation_durations(tmp_path):
    images = [Image.new("RGB", (10, 6), (50 * i, 0, 0)) for i in range(4)]
    images[0].save(tmp_path / "a.webp", save_all=True, append_images=images[1:], duration=[10, 20, 30, 40])
    found = read_animated_webp(tmp_path / "a.webp")
    assert (found.width, found.height, found.durations) == (10, 6, (10, 20, 30, 40))
    images[0].save(tmp_path / "still.webp")
    assert read_animated_webp(tmp_path / "still.webp") is None


@pytest.mark.parametrize(
    ("channels", "rate", "message"),
    [
        (200, 16000, "200 audio channels"),
        (9, 16000, "9 audio channels of unknown positions"),
        (1, 2**31 - 1, "sample rate of 2147483647"),
        (1, 1, "sample rate of 1 Hz"),
        (1, 999, "sample rate of 999 Hz"),
        (1, 768_001, "sample rate of 768001 Hz"),
    ],
)
def test_sample_rates_and_channels_out_of_range(tmp_path, channels, rate, message):
    path = write_raw_wav(tmp_path / "a.wav", channels, rate)
    with pytest.raises(UserError, match=message):
        load_audio(path)
    with pytest.raises(UserError):
        audio_duration(path)


@pytest.mark.parametrize(("channels", "rate"), [(24, 16000), (1, 1000), (1, 768_000)])
def test_sample_rates_and_channels_at_the_limits(tmp_path, channels, rate):
    path = write_raw_wav(tmp_path / "a.wav", channels, rate, samples=rate)
    assert abs(len(load_audio(path)) - 16000) < 50


def test_spooled_audio_is_the_same_audio(tmp_path):
    path = write_audio(tmp_path / "a.flac", tone(44100, 3.0), 44100, codec="flac")
    whole, spooled = load_audio(path), SpooledAudio(path)
    assert len(spooled) == len(whole) and spooled.peak == np.abs(whole).max() and not spooled.is_silent
    for part in (slice(None), slice(5, 10), slice(-7, None), slice(40000, 10**9), slice(10, 5)):
        np.testing.assert_array_equal(spooled[part], whole[part])
    with pytest.raises(ValueError, match="step"):
        spooled[::2]
    np.testing.assert_array_equal(load_audio(path, max_seconds=0.5), whole[:8000])
    np.testing.assert_array_equal(SpooledAudio(path, max_seconds=0.5)[:], whole[:8000])
    spooled.close()


def test_decoding_stops_at_the_budget(tmp_path, monkeypatch):
    path = write_audio(tmp_path / "a.flac", np.zeros(8000 * 600, np.float32), 8000, codec="flac")
    seconds = []
    frames = audio.decoded_frames

    def counted(*source):
        for frame in frames(*source):
            seconds.append(frame.samples / frame.sample_rate)
            yield frame

    monkeypatch.setattr(audio, "decoded_frames", counted)
    assert len(load_audio(path, max_seconds=2)) == 32000
    assert sum(seconds) < 4


def test_memory_does_not_grow_with_the_audio(tmp_path):
    peaks = []
    for seconds in (10, 300):
        path = write_audio(tmp_path / "a.flac", np.zeros(8000 * seconds, np.float32), 8000, codec="flac")
        tracemalloc.start()
        assert len(SpooledAudio(path)) == 16000 * seconds
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 2 * peaks[0] < 4 * 10 * 16000 * 4


def test_gaps_are_bounded_in_total(tmp_path):
    path = write_gaps(tmp_path / "a.mkv", count=10, gap_seconds=500)
    assert len(load_audio(path, max_seconds=2)) == 32000
    with pytest.raises(UserError, match="gaps of more than 3600 s in total"):
        audio_duration(path)
    path = write_gaps(tmp_path / "b.mkv", count=7, gap_seconds=500)
    assert audio_duration(path) == pytest.approx(6 * 500 + 0.1, abs=1)


def test_a_full_temporary_folder(tmp_path, monkeypatch):
    path = write_audio(tmp_path / "a.wav", tone(16000, 1.0))

    class Full:
        def write(self, data: bytes) -> None:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(audio.tempfile, "TemporaryFile", Full)
    with pytest.raises(UserError, match="No space left"):
        SpooledAudio(path)


def test_an_image_decoder_that_fails_in_its_own_way(tmp_path, monkeypatch):
    """Pillow's AVIF plugin raises RuntimeError for damaged data, also when only the orientation is asked for."""

    def broken(image):
        raise RuntimeError("Failed to decode image: Not implemented")

    path = tmp_path / "still.png"
    Image.new("RGB", (64, 48)).save(path)
    monkeypatch.setattr(Image.Image, "getexif", broken)
    assert probe_video(path).orientation == 1
