"""Files whose content or time stamps begin anew on the way, as broadcasts and joined recordings do."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from latentsync.media.audio import audio_duration, load_audio
from latentsync.media.audio_stream import select_audio
from latentsync.media.probe import probe_video
from latentsync.media.timeline import available_frames, open_timeline, pingpong_index
from latentsync.media.writer import VideoWriter
from tests.media.synthetic import numbered_rgb, numbers_of, tone, write_audio, write_clip
from tests.media.test_tone_map import combing, write_interlaced

FPS = Fraction(25)
INTRA = {"crf": "12", "preset": "ultrafast", "g": "1", "bf": "0"}


def recording(path: Path, first: int, offset: float = 0.0, seconds: float = 1.0) -> bytes:
    """An MPEG-TS of 25 frames, numbered from `first` on, with a tone."""
    images = [numbered_rgb(first + index) for index in range(25)]
    options = {"output_ts_offset": str(offset)}
    write_clip(path, 25, images=images, options=INTRA, tone_seconds=seconds, container_options=options)
    return path.read_bytes()


@pytest.mark.parametrize("offsets", [(0, 0), (30, 0), (0, 50_000)], ids=["again", "earlier", "much later"])
def test_joined_recordings_play_one_after_the_other(tmp_path, offsets):
    """Time stamps that go back, or on by more than an hour, are those of another recording; nothing is dropped."""
    parts = [recording(tmp_path / f"{index}.ts", 25 * index, offset) for index, offset in enumerate(offsets)]
    path = tmp_path / "joined.ts"
    path.write_bytes(b"".join(parts))
    info = probe_video(path)
    with open_timeline(info, Fraction(4), FPS) as timeline:
        shown = numbers_of(timeline)
    missing = set(range(50)) - set(shown)  # libav gives up a frame at the joint, whose end it does not see
    assert missing <= {23, 24} and len(missing) <= 1
    passes = 50 if 23 in missing else 50 - len(missing)  # before the joint, the frame before it stays
    assert shown == [shown[pingpong_index(index, passes)] for index in range(100)]
    assert shown[:passes] == sorted(shown[:passes]) and available_frames(info, FPS) == 50
    assert audio_duration(path) == pytest.approx(2.0, abs=0.2)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_copied_audio_of_joined_recordings_is_complete(tmp_path, suffix):
    path = tmp_path / "joined.ts"
    path.write_bytes(recording(tmp_path / "0.ts", 0) + recording(tmp_path / "1.ts", 0))
    out = tmp_path / f"out{suffix}"
    source = select_audio(path)
    frame = next(open_timeline(write_clip(tmp_path / "a.mp4", 1), Fraction(1), FPS))
    with VideoWriter(out, frame.width, frame.height, FPS, audio=source) as writer:
        assert writer._audio.is_copied
        for _ in range(55):
            writer.write(frame)
    decoded, expected = load_audio(out), load_audio(path)
    assert abs(len(decoded) - len(expected)) < 2400
    assert np.abs(decoded[16000 + 8000 : 16000 + 12000]).max() > 0.3  # in the second recording


def test_interlaced_frames_after_progressive_ones_are_deinterlaced(tmp_path, caplog):
    """Streams switch, for instance at an advertisement: each frame says how it was scanned."""
    plain = write_clip(tmp_path / "p.h264", 10, size=(64, 96), options=INTRA).read_bytes()
    write_interlaced(tmp_path / "i.h264", 20)
    path = tmp_path / "mixed.h264"
    path.write_bytes(plain + (tmp_path / "i.h264").read_bytes())
    with av.open(str(path)) as container:
        raw = [combing(frame.to_ndarray(format="gray")) for frame in container.decode(video=0)]
    with caplog.at_level("INFO"), open_timeline(path, Fraction(30, 25), FPS) as timeline:
        frames = list(timeline)
    assert numbers_of(frames[:10]) == list(range(10))
    assert combing(frames[20].planes[0]) < raw[20] / 4
    assert caplog.text.count("deinterlaced") == 1


def test_the_default_video_stream_is_used(tmp_path):
    """As players do; the first stream may be a preview."""
    path = tmp_path / "two.mkv"
    with av.open(str(path), "w") as container:
        streams = [container.add_stream("ffv1", rate=25) for _ in range(2)]
        for number, stream in enumerate(streams):
            stream.width, stream.height, stream.pix_fmt = 64 * (number + 1), 48 * (number + 1), "yuv420p"
            stream.disposition = av.stream.Disposition.default if number else av.stream.Disposition(0)
        for number, stream in enumerate(streams):
            rgb = numbered_rgb(7 + number, stream.width, stream.height)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(rgb, "rgb24")))
            container.mux(stream.encode(None))
    with open_timeline(path, Fraction(1, 25), FPS) as timeline:
        frames = list(timeline)
    assert frames[0].width == 128 and numbers_of(frames) == [8]


def test_audio_whose_format_changes_is_not_copied(tmp_path):
    """A container states rate and channels once; half of the audio would play at a wrong speed."""
    parts = []
    for index, (rate, layout) in enumerate(((44100, "mono"), (16000, "stereo"))):
        samples = np.tile(tone(rate, 1.0), (1 + index, 1))
        parts.append(write_audio(tmp_path / f"{index}.aac", samples, rate, layout=layout, codec="aac").read_bytes())
    path = tmp_path / "joined.aac"
    path.write_bytes(b"".join(parts))
    frame = next(open_timeline(write_clip(tmp_path / "a.mp4", 1), Fraction(1), FPS))
    with VideoWriter(tmp_path / "out.mp4", frame.width, frame.height, FPS, audio=select_audio(path)) as writer:
        writer.write(frame)
    with av.open(str(tmp_path / "out.mp4")) as container:
        decoded = [(item.sample_rate, item.samples) for item in container.decode(audio=0)]
    assert {rate for rate, _ in decoded} == {44100}
    assert sum(samples for _, samples in decoded) / 44100 == pytest.approx(2.0, abs=0.2)


def test_audio_that_cannot_be_read_to_its_end_is_reported(tmp_path, caplog):
    """libav does not follow a change of channels in Ogg."""
    parts = []
    for index, layout in enumerate(("mono", "stereo")):
        samples = np.tile(tone(48000, 1.0), (1 + index, 1))
        parts.append(
            write_audio(tmp_path / f"{index}.opus", samples, 48000, layout=layout, codec="libopus").read_bytes()
        )
    path = tmp_path / "joined.opus"
    path.write_bytes(b"".join(parts))
    assert audio_duration(path) == pytest.approx(1.0, abs=0.1)
    assert "joined.opus: reading the audio stopped early" in caplog.text
