import logging
import wave

import av
import numpy as np
import pytest

from latentsync.media.audio import audio_duration, decoded_frames, is_silent, load_audio
from latentsync.utils.errors import UserError
from tests.media.synthetic import click_track, onsets, tone, write_audio, write_clip, write_frames


def write_wav(path, int16: np.ndarray, rate: int = 16000) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(int16.shape[1] if int16.ndim == 2 else 1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(int16.tobytes())


def test_int16_mono_is_read_exactly(tmp_path):
    samples = np.random.default_rng(0).integers(-32768, 32768, 20_001, dtype=np.int16)
    write_wav(tmp_path / "a.wav", samples)
    audio = load_audio(tmp_path / "a.wav")
    assert audio.dtype == np.float32
    np.testing.assert_array_equal(audio, samples.astype(np.float32) / 32768)
    assert audio_duration(tmp_path / "a.wav") == 20_001 / 16000


def test_stereo_is_the_mean(tmp_path):
    samples = np.random.default_rng(0).integers(-20000, 20000, (8000, 2), dtype=np.int16)
    write_wav(tmp_path / "a.wav", samples)
    np.testing.assert_allclose(load_audio(tmp_path / "a.wav"), samples.mean(axis=1) / 32768, atol=1e-6)


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000, 96000, 192000])
def test_rates(tmp_path, rate):
    write_audio(tmp_path / "a.wav", tone(rate, 1.0), rate)
    audio = load_audio(tmp_path / "a.wav")
    assert abs(len(audio) - 16000) <= 1
    assert audio_duration(tmp_path / "a.wav") == 1.0
    np.testing.assert_allclose(audio[500:-500], tone(16000, 1.0)[500 : len(audio) - 500], atol=5e-3)


@pytest.mark.parametrize(("layout", "channels"), [("5.1", 6), ("5.1(side)", 6), ("7.1", 8), ("quad", 4), ("2.1", 3)])
@pytest.mark.parametrize(("suffix", "codec"), [("wav", "pcm_s16le"), ("m4a", "aac"), ("flac", "flac")])
def test_many_channels(tmp_path, layout, channels, suffix, codec):
    samples = np.repeat(tone(48000, 0.5)[None], channels, axis=0)
    try:
        path = write_audio(tmp_path / f"a.{suffix}", samples, 48000, layout, codec)
    except ValueError:
        pytest.skip(f"the {codec} encoder has no {layout}")
    audio = load_audio(path)
    assert 0.3 < np.abs(audio[1000:7000]).max() <= (0.75 if codec == "aac" else 0.55)
    assert len(audio) >= 8000


def test_channels_without_a_layout(tmp_path):
    samples = np.repeat(np.round(tone(16000, 0.5) * 32767).astype(np.int16)[:, None], 3, axis=1)
    write_wav(tmp_path / "a.wav", samples)
    assert np.abs(load_audio(tmp_path / "a.wav")).max() > 0.2


@pytest.mark.parametrize(
    ("suffix", "codec"),
    [
        ("m4a", "aac"),
        ("mp3", "libmp3lame"),
        ("flac", "flac"),
        ("opus", "libopus"),
        ("ac3", "ac3"),
    ],
)
def test_compressed_audio_starts_on_time(tmp_path, suffix, codec):
    clicks = click_track(48000, 1.5, [0.1, 0.7, 1.3])
    write_audio(tmp_path / f"a.{suffix}", clicks, 48000, codec=codec)
    found = onsets(load_audio(tmp_path / f"a.{suffix}"), 16000)
    # AC-3 files do not say how much their encoder delays (256 samples).
    np.testing.assert_allclose(found, [0.1, 0.7, 1.3], atol=0.007 if codec == "ac3" else 0.002)


def test_first_stream_of_a_video(tmp_path):
    write_clip(tmp_path / "a.mp4", 25, tone_seconds=1.0)
    audio = load_audio(tmp_path / "a.mp4")
    assert len(audio) >= 16000
    assert np.abs(audio[:15000] - tone(16000, 1.0)[:15000]).max() < 0.15


def test_holes_are_filled_with_silence(tmp_path):
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=16000, layout="mono")
        for start in (0.0, 1.0):
            frame = av.AudioFrame.from_ndarray(np.full((1, 8000), 9000, np.int16), "s16", "mono")
            frame.sample_rate = 16000
            frame.pts = round(start * 16000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    audio = load_audio(path)
    assert len(audio) == 24000 and audio_duration(path) == 1.5
    assert not audio[8000:16000].any() and audio[:8000].all() and audio[16000:].all()


def test_numbers_that_are_none(tmp_path, caplog):
    samples = tone(16000, 0.5)
    samples[100:110] = np.nan
    samples[200] = np.inf
    write_audio(tmp_path / "a.wav", samples, codec="pcm_f32le")
    with caplog.at_level(logging.WARNING):
        audio = load_audio(tmp_path / "a.wav")
    assert np.isfinite(audio).all() and not audio[100:110].any() and audio[200] == 0
    assert "11 audio samples that are not numbers" in caplog.text and caplog.text.count("\n") == 1
    assert all(np.isfinite(frame.to_ndarray()).all() for frame in decoded_frames(tmp_path / "a.wav"))


def test_clipped(tmp_path, caplog):
    write_audio(tmp_path / "a.wav", tone(16000, 0.5, amplitude=3.0), codec="pcm_f32le")
    with caplog.at_level(logging.WARNING):
        audio = load_audio(tmp_path / "a.wav")
    assert np.abs(audio).max() == 1.0
    assert "clipped" in caplog.text and caplog.text.count("\n") == 1


def test_silent():
    assert is_silent(np.zeros(16000, np.float32))
    assert is_silent(tone(16000, 0.2, amplitude=5e-4))
    assert not is_silent(tone(16000, 0.2, amplitude=0.01))


@pytest.mark.parametrize(
    "name", ["missing.wav", "folder", "empty.wav", "header.wav", "text.wav", "mute.mp4", "0.05s.wav"]
)
def test_bad_audio(tmp_path, name):
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty.wav").touch()
    (tmp_path / "text.wav").write_text("no audio here\n" * 100)
    write_wav(tmp_path / "header.wav", np.zeros(0, np.int16))
    write_wav(tmp_path / "0.05s.wav", np.ones(800, np.int16))
    if name == "mute.mp4":
        write_clip(tmp_path / name, 5)
    with pytest.raises(UserError) as caught:
        load_audio(tmp_path / name)
    assert "\n" not in str(caught.value) and name in str(caught.value)


def test_damaged_audio_keeps_its_length(tmp_path):
    path = write_audio(tmp_path / "a.m4a", tone(16000, 3.0), codec="aac")
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 300] = b"\xff" * 300
    path.write_bytes(bytes(data))
    assert abs(len(load_audio(path)) - 48000) < 3200


def test_change_of_rate_on_the_way(tmp_path):
    """MPEG-TS joined from two recordings: the second half has another rate."""
    for name, rate in (("a.ts", 16000), ("b.ts", 48000)):
        with av.open(str(tmp_path / name), "w") as container:
            stream = container.add_stream("mp2", rate=rate, layout="mono")
            write_frames(container, stream, tone(rate, 1.0)[None], rate, "mono")
    (tmp_path / "c.ts").write_bytes((tmp_path / "a.ts").read_bytes() + (tmp_path / "b.ts").read_bytes())
    audio = load_audio(tmp_path / "c.ts")
    assert 1.9 < len(audio) / 16000 < 2.2
