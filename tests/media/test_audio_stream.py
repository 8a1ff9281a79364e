"""Choice of audio streams, and the times of their samples."""

import logging
import shutil
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.stream import Disposition

from latentsync.media.audio import SpooledAudio, audio_duration, load_audio
from latentsync.media.audio_stream import AudioSource, audio_delay, select_audio
from latentsync.media.probe import probe_video
from latentsync.utils.errors import UserError
from tests.media.synthetic import click_track, numbered_rgb, onsets, tone, write_audio, write_frames
from tests.media.test_media_writer import FPS, numbered, packet_stamps, write

RATE = 48_000
CLICKS = (0.1, 0.5, 1.3)


def write_tracks(path: Path, tracks: list[tuple[str, float]], default: int | None) -> Path:
    """An audio file with tones of (language, frequency), one of them flagged as the default track."""
    with av.open(str(path), "w") as container:
        streams = []
        for index, (language, _) in enumerate(tracks):
            stream = container.add_stream("flac", rate=16000, layout="mono")
            stream.metadata["language"] = language
            stream.disposition = Disposition.default if index == default else Disposition(0)
            streams.append(stream)
        for stream, (_, frequency) in zip(streams, tracks, strict=True):
            write_frames(container, stream, tone(16000, 0.5, frequency)[None], 16000, "mono")
    return path


def frequency_of(samples: np.ndarray) -> float:
    return float(np.argmax(np.abs(np.fft.rfft(samples[:8000]))) * 2)


def write_moved(path: Path, codec: str, start: float, seconds: float = 1.5, slow: float = 1.0) -> Path:
    """Clicks whose packets have their stamps moved by `start` seconds; mp4 hides what is before 0 by an edit list.

    slow: factor of the time between two stamps.
    """
    samples = click_track(RATE, seconds, CLICKS) + tone(RATE, seconds, 200, 0.02)
    plain = write_audio(path.with_name(f"plain{path.suffix}"), samples, RATE, codec=codec)
    with av.open(str(plain)) as source, av.open(str(path), "w") as target:
        stream = source.streams.audio[0]
        copy = target.add_stream_from_template(stream, opaque=True)
        for packet in source.demux(stream):
            if packet.pts is not None:
                packet.pts = packet.dts = round(packet.pts * slow + start / stream.time_base)
                packet.stream = copy
                target.mux(packet)
    return path


def write_late_audio(path: Path, delay: float, first_frame: float = 0.0) -> Path:
    """A video of 2 s whose audio starts `delay` seconds after its first frame, and that itself starts late."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        audio = container.add_stream("pcm_s16le", rate=RATE, layout="mono")
        for index in range(50):
            frame = av.VideoFrame.from_ndarray(numbered_rgb(index), "rgb24")
            frame.pts = index + round(first_frame * 25)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        samples = np.round(click_track(RATE, 1.5, CLICKS) * 32767).astype(np.int16)
        for begin in range(0, len(samples), 1024):
            frame = av.AudioFrame.from_ndarray(samples[None, begin : begin + 1024], "s16", "mono")
            frame.sample_rate, frame.pts = RATE, begin + round((first_frame + delay) * RATE)
            container.mux(audio.encode(frame))
        container.mux(audio.encode(None))
    return path


# Choice of the track


@pytest.mark.parametrize(
    ("default", "track", "frequency"),
    [
        (1, None, 880),
        (0, None, 440),
        (None, None, 440),
        (1, "0", 440),
        (0, "2", 1320),
        (0, "deu", 880),
        (0, "FRA", 1320),
    ],
)
def test_the_track_that_is_used(tmp_path, caplog, default, track, frequency):
    path = write_tracks(tmp_path / "a.mkv", [("eng", 440), ("deu", 880), ("fra", 1320)], default)
    with caplog.at_level(logging.INFO):
        source = select_audio(path, track)
    assert frequency_of(SpooledAudio(source)[:]) == frequency
    assert (
        caplog.text.count("\n") == 1 and f"uses audio track {source.track} of 0 (eng), 1 (deu), 2 (fra)" in caplog.text
    )
    if track is None:
        assert frequency_of(load_audio(path)) == frequency
        out = write(tmp_path / "o.mp4", numbered(10), audio=path)
    else:
        out = write(tmp_path / "o.mp4", numbered(10), audio=source)
    assert frequency_of(load_audio(out)) == frequency


def test_a_single_track_needs_no_line(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        select_audio(write_audio(tmp_path / "a.wav", tone(16000, 0.5)))
    assert caplog.text == ""


@pytest.mark.parametrize(("track", "message"), [("2", "no audio track 2, only 2"), ("fra", r"there is eng, deu")])
def test_tracks_that_are_missing(tmp_path, track, message):
    path = write_tracks(tmp_path / "a.mkv", [("eng", 440), ("deu", 880)], 0)
    with pytest.raises(UserError, match=message):
        select_audio(path, track)


# Edit lists and encoder delay


@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv"])
@pytest.mark.parametrize("start", [-1.0, -0.3, 0.0, 0.7])
@pytest.mark.parametrize(
    ("codec", "container"), [("aac", "m4a"), ("alac", "m4a"), ("libmp3lame", "mov"), ("ac3", "mp4"), ("libopus", "mkv")]
)
def test_the_first_audible_sample_is_at_0(tmp_path, codec, container, start, suffix):
    if start < 0 and container == "mkv":
        pytest.skip("Matroska has no edit list")
    source = write_moved(tmp_path / f"s.{container}", codec, start)
    out = write(tmp_path / f"o.{suffix}", numbered(38), audio=source)
    assert min(packet_stamps(out)) == 0
    with av.open(str(out)) as file:
        first = next(file.decode(audio=0))
        assert abs(first.pts * first.time_base) < Fraction(2, 1000)
        hidden = min(p.pts * p.time_base for p in file.streams.audio[0].container.demux(audio=0) if p.pts is not None)
    assert -Fraction(1, 20) < hidden  # encoder delay, none of what was cut away
    wanted, found = load_audio(source), load_audio(out)
    np.testing.assert_allclose(onsets(found, 16000), onsets(wanted, 16000), atol=0.002)
    clicks = [at + min(start, 0) for at in CLICKS if at + min(start, 0) >= 0]
    # Without an edit list the encoder delay is audible.
    np.testing.assert_allclose(onsets(wanted, 16000), clicks, atol=0.025 if start > 0 else 0.008)
    assert abs(len(found) - len(wanted)) <= 16 * 48  # a block of padding


@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv"])
@pytest.mark.parametrize(
    ("codec", "container"), [("aac", "m4a"), ("pcm_s16le", "wav"), ("flac", "flac"), ("ac3", "ac3")]
)
def test_audio_ends_at_the_limit(tmp_path, codec, container, suffix):
    source = write_audio(tmp_path / f"s.{container}", tone(RATE, 2.0), RATE, codec=codec)
    out = write(tmp_path / f"o.{suffix}", numbered(25), audio=source, max_audio_seconds=1)
    with av.open(str(out)) as file:
        assert file.duration / av.time_base == 1
    assert probe_video(out).num_frames in (25, None)
    exact = codec in ("aac", "flac") or (codec == "pcm_s16le" and suffix != "mp4")
    assert abs(audio_duration(out) - 1) <= (0.001 if exact else 1536 / RATE)


def test_padding_of_the_last_block_is_not_audio(tmp_path):
    for seconds in (0.5, 1.0, 1.001):
        path = write_audio(tmp_path / "a.m4a", tone(RATE, seconds), RATE, codec="aac")
        assert audio_duration(path) == seconds
        assert abs(len(load_audio(path)) - seconds * 16000) <= 1


# Audio that starts late or early in its file


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
@pytest.mark.parametrize("delay", [0.576, 0.0, -0.2])
@pytest.mark.parametrize("first_frame", [0.0, 2.0])
def test_audio_of_the_video_stays_where_it_is(tmp_path, caplog, delay, first_frame, suffix):
    path = write_late_audio(tmp_path / "a.mkv", delay, max(first_frame, -delay))
    copy = Path(shutil.copy(path, tmp_path / "copy.mkv"))
    assert abs(audio_delay(path) - Fraction(delay)) < Fraction(2, 1000)
    wanted = [at + delay for at in CLICKS if at + delay >= 0]
    with caplog.at_level(logging.INFO):
        for video in (path, copy):
            source = select_audio(path, video=video)
            np.testing.assert_allclose(onsets(SpooledAudio(source)[:], 16000), wanted, atol=0.002)
            out = write(tmp_path / f"o.{suffix}", numbered(50), audio=source)
            found = onsets(load_audio(out), 16000)
            with av.open(str(out)) as file:
                first = next(file.decode(audio=0))
            np.testing.assert_allclose([at + float(first.pts * first.time_base) for at in found], wanted, atol=0.002)
            assert min(packet_stamps(out)) == 0
    assert caplog.text == ""


def test_audio_of_another_file_starts_at_0_and_a_line_says_so(tmp_path, caplog):
    path = write_late_audio(tmp_path / "a.mkv", 0.576)
    other = write_late_audio(tmp_path / "b.mkv", 0.1)
    with caplog.at_level(logging.INFO):
        source = select_audio(path, video=other)
    assert source == AudioSource(path, 0)
    np.testing.assert_allclose(onsets(SpooledAudio(source)[:], 16000), CLICKS, atol=0.002)
    assert "starts 0.576 s after the video" in caplog.text and caplog.text.count("\n") == 1


def test_a_limit_counts_from_the_first_frame(tmp_path):
    source = select_audio(path := write_late_audio(tmp_path / "a.mkv", 0.576), video=path)
    assert len(SpooledAudio(source, 16000, 1)) == 16000
    out = write(tmp_path / "o.mp4", numbered(25), FPS, audio=source, max_audio_seconds=1)
    with av.open(str(out)) as file:
        assert file.duration / av.time_base == 1


# Time stamps against the count of samples


@pytest.mark.parametrize(
    ("slow", "rate"), [(1.0043, 16000), (0.9957, 16000), (1.002, 16000), (0.99, 16000), (0.99, 192_000)]
)
def test_samples_follow_time_stamps(tmp_path, slow, rate):
    seconds = 12
    at = np.arange(0.5, seconds, 1.0)
    samples = np.round(click_track(rate, seconds, at) * 32767).astype(np.int16)
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=rate, layout="mono")
        for begin in range(0, len(samples), 512):
            frame = av.AudioFrame.from_ndarray(samples[None, begin : begin + 512], "s16", "mono")
            frame.sample_rate, frame.pts = rate, round(begin * slow)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    np.testing.assert_allclose(onsets(load_audio(path), 16000), at * slow, atol=0.021)
    assert abs(audio_duration(path) - seconds * slow) < 0.021


def test_jitter_of_time_stamps_changes_nothing(tmp_path):
    samples = np.random.default_rng(0).integers(-9000, 9000, 16000).astype(np.int16)
    shifts = np.random.default_rng(1).uniform(-0.012, 0.012, 40)
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=16000, layout="mono")
        for index, begin in enumerate(range(0, 16000, 400)):
            frame = av.AudioFrame.from_ndarray(samples[None, begin : begin + 400], "s16", "mono")
            frame.sample_rate, frame.pts = 16000, begin + round(16000 * shifts[index] * (index > 0) * 0.9)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    np.testing.assert_array_equal(load_audio(path), samples.astype(np.float32) / 32768)
