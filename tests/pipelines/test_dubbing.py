"""Dubbing: length modes, a part of the video, scripts with several people, pauses, the original audio."""

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from latentsync.faces.lips import LipCloser
from latentsync.media.audio import load_audio
from latentsync.media.audio_stream import AudioSource
from latentsync.media.sources import open_video
from latentsync.media.timeline import Part, open_timeline
from latentsync.options import GenerationOptions
from latentsync.pipelines import speakers
from latentsync.pipelines.length import fit_length
from latentsync.pipelines.opening import open_clip
from latentsync.pipelines.original_audio import Mixer
from latentsync.pipelines.speakers import fade_in, fade_out, make_speaker, spoken_frames
from latentsync.utils.errors import UserError
from tests.media.synthetic import numbered_rgb, numbers_of, tone, write_audio, write_clip
from tests.pipelines.scenes import PORTRAIT, WIDTH, clip, draw_scene

FPS = Fraction(25)


def source_frames(path: Path, count: int) -> list[np.ndarray]:
    return [frame.i420 for frame in open_timeline(path, count / FPS, FPS)]


def changed(written: list[np.ndarray], source: list[np.ndarray]) -> list[bool]:
    return [not np.array_equal(new, old) for new, old in zip(written, source, strict=True)]


# Length modes


@pytest.mark.parametrize(
    ("mode", "spoken", "wanted"),
    [
        ("bounce", 10, [0, 1, 2, 3, 3, 2, 1, 0, 0, 1]),
        ("loop", 10, [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]),
        ("freeze", 6, [0, 1, 2, 3, 3, 3]),
        ("cut", 6, [0, 1, 2, 3]),
        ("silence", 6, [0, 1, 2, 3, 3, 2]),
        ("keep_tail", 6, [0, 1, 2, 3, 3, 2]),
        *((mode, 2, [0, 1]) for mode in ("bounce", "loop", "freeze", "cut", "error")),
        *((mode, 2, [0, 1, 2, 3]) for mode in ("silence", "keep_tail")),
        ("remap", 2, [0, 2]),
    ],
)
def test_frames_of_each_length_mode(tmp_path, mode, spoken, wanted):
    for video in (write_clip(tmp_path / "v.mp4", 4), (np.stack([numbered_rgb(n) for n in range(4)]), 25)):
        with open_video(video) as source:
            fit = fit_length(source, spoken / FPS, FPS, mode, None)
            assert numbers_of(fit.open()) == wanted
            assert (fit.count, fit.spoken) == (len(wanted), min(spoken, len(wanted)))


@pytest.mark.parametrize("spoken", [5, 6, 7, 8, 9, 12, 16, 30])
def test_a_remapped_video_has_the_length_of_the_voice(tmp_path, spoken):
    with open_video(write_clip(tmp_path / "v.mp4", 8)) as source:
        frames = list(fit_length(source, spoken / FPS, FPS, "remap", None).open())
        shown = numbers_of(frames[:1] + frames[-1:])
    assert len(frames) == spoken and shown[0] == 0
    if spoken <= 16:  # within the limits of speed; beyond, the video goes back
        assert shown[1] in (6, 7)


def test_the_longest_duration_holds_for_tails_too(tmp_path):
    with open_video(write_clip(tmp_path / "v.mp4", 20)) as source:
        assert fit_length(source, 5 / FPS, FPS, "keep_tail", 8 / FPS).count == 8


def test_an_iterator_has_no_length_to_fit(tmp_path):
    with open_video((iter([numbered_rgb(0)] * 3), 25)) as source, pytest.raises(UserError, match="known length"):
        fit_length(source, 5 / FPS, FPS, "cut", None)


def test_a_cut_video_cuts_the_audio(run, media, tmp_path):
    result = run(clip(tmp_path / "v.mp4", 4), media / "voice.wav", tmp_path / "out.mkv", length_mode="cut")
    assert result.num_frames == result.faces == 4
    assert len(load_audio(tmp_path / "out.mkv")) == 4 * 640


def test_a_kept_tail_is_the_original_and_a_silent_one_is_generated(run, written, tmp_path):
    video = clip(tmp_path / "v.mp4", 20)
    voice = write_audio(tmp_path / "a.wav", tone(16000, 0.2))  # 5 frames
    run(video, voice, tmp_path / "a.mp4", length_mode="keep_tail")
    source = source_frames(video, 20)
    assert changed(written, source) == [index < 5 + speakers.FADE_FRAMES for index in range(20)]
    written.clear()
    run(video, voice, tmp_path / "b.mp4", length_mode="silence")
    assert all(changed(written, source))


# A part of the video


@pytest.mark.parametrize("group", [1, 5, 250])
def test_a_part_of_a_video(tmp_path, group):
    path = write_clip(tmp_path / "v.mp4", 120, options={"crf": "12", "g": str(group), "preset": "ultrafast"})
    part = Part(Fraction(3), Fraction("3.2"))
    with open_video(path, part) as source:
        assert source.available(FPS) == 5
        assert numbers_of(source.open(5 / FPS, FPS, "bounce")) == [75, 76, 77, 78, 79]
        assert numbers_of(source.open(12 / FPS, FPS, "bounce")) == [*range(75, 80), *range(79, 74, -1), 75, 76]
        assert numbers_of(source.open(7 / FPS, FPS, "loop")) == [*range(75, 80), 75, 76]
    with open_video(path, Part(Fraction(5))) as source, pytest.raises(UserError, match="ends before 5 s"):
        list(source.open(1 / FPS, FPS, "bounce"))


def test_a_part_with_the_audio_of_the_file_itself(run, tmp_path, written):
    video = clip(tmp_path / "v.mp4", 20, tone_seconds=0.8)
    result = run(video, video, tmp_path / "out.mkv", start=0.2, end=0.6, silence="model")
    assert result.num_frames == 10 and len(load_audio(tmp_path / "out.mkv")) == 6400
    for frame, old in zip(written, source_frames(video, 20)[5:15], strict=True):
        assert np.array_equal(frame[:20], old[:20])


# Scripts


@pytest.fixture
def two(tmp_path) -> Path:
    """A video of 30 frames with two people and a tone."""
    both = draw_scene(((10, 0), (170, 0)), width=2 * WIDTH)
    return clip(tmp_path / "two.mp4", 30, lambda index: both, tone_seconds=1.2)


def write_script(folder: Path, *cues: dict) -> Path:
    path = folder / "cues.json"
    path.write_text(json.dumps(cues))
    return path


def touched(written: list[np.ndarray], source: list[np.ndarray]) -> tuple[list[int], list[int]]:
    """Frames that changed in the left and in the right half."""
    height = source[0].shape[0] * 2 // 3
    halves = (slice(0, WIDTH), slice(WIDTH, 2 * WIDTH))
    return tuple(
        [n for n, (new, old) in enumerate(zip(written, source, strict=True))
         if not np.array_equal(new[:height, half], old[:height, half])]
        for half in halves
    )  # fmt: skip


def test_two_people_speak_in_one_pass(run, two, written, tmp_path):
    """One from frame 5 to 14, the other from frame 10 to 24; what nobody speaks in passes bit for bit."""
    write_audio(tmp_path / "a.wav", tone(16000, 0.4))
    write_audio(tmp_path / "b.wav", tone(16000, 0.6))
    script = write_script(
        tmp_path,
        {"start": 0.2, "face": "left", "audio": "a.wav"},
        {"start": "0:00.4", "end": 1, "face": "right", "audio": "b.wav"},
    )
    result = run(two, None, tmp_path / "out.mkv", script=script)
    left, right = touched(written, source_frames(two, 30))
    assert (left, right) == (list(range(5, 15)), list(range(10, 25)))
    assert (result.num_frames, result.faces) == (30, 20) and not any("in view" in each.reason for each in result.passed)


def test_the_audio_of_a_script_is_exact(tmp_path, two, pipeline):
    """Each voice at its place, sample by sample, and the original audio where nobody speaks."""
    voice = (0.25 * np.sign(tone(16000, 0.4, 300))).astype(np.float32)
    write_audio(tmp_path / "a.wav", voice, codec="pcm_f32le")
    script = write_script(tmp_path, {"start": 0.2, "face": "left", "audio": "a.wav"})
    options = GenerationOptions(script=script)
    with open_clip(two, None, options, pipeline.audio_encoder) as opened:
        mix = load_audio(opened.audio().path)
        speaker = opened.speakers[0]
        assert len(mix) == 30 * 640 and opened.fit.count == 30 and len(opened.speakers) == 1
        assert np.flatnonzero(speaker.weights).tolist() == list(range(5, 15))
    original = load_audio(two)
    fade = 320
    assert np.array_equal(mix[3200 + fade : 9600 - fade], voice[fade:-fade])
    assert np.array_equal(mix[:3200], original[:3200]) and np.array_equal(mix[9600:19200], original[9600:19200])


def test_a_script_in_a_part_of_the_video(two, tmp_path, pipeline):
    write_audio(tmp_path / "a.wav", tone(16000, 0.4))
    script = write_script(tmp_path, {"start": 0.2, "face": "left", "audio": "a.wav"})
    with open_clip(two, None, GenerationOptions(script=script, start=0.4, end=0.8), pipeline.audio_encoder) as opened:
        assert np.flatnonzero(opened.speakers[0].weights).tolist() == list(range(5))
        assert opened.fit.count == 10 and len(load_audio(opened.audio().path)) == 6400
    with pytest.raises(UserError, match="no cue is within"):
        with open_clip(two, None, GenerationOptions(script=script, start=0.8), pipeline.audio_encoder):
            pass


def test_wrong_scripts_in_one_line(two, tmp_path, pipeline):
    write_audio(tmp_path / "a.wav", tone(16000, 0.4))
    cue = {"start": 0, "audio": "a.wav"}
    for cues, message in (
        ([cue, {**cue, "start": 0.3}], "cue 2: overlaps with cue 1, of the same face largest"),
        ([{"audio": "a.wav"}], "start is missing"),
        ([{**cue, "end": 0}], "not later than its start"),
        ([{**cue, "face": "middle"}], "face must be"),
        ([{**cue, "start": "soon"}], "'soon' is not a time"),
        ([{**cue, "text": "Hello"}], "audio or text"),
        ([{**cue, "speaker": 1}], "unknown names speaker"),
        ([{**cue, "audio": "none.wav"}], "cue 1: .*none.wav"),
        ([], "has 0 cues"),
    ):
        script = write_script(tmp_path, *cues)
        with pytest.raises(UserError, match=message) as error:
            with open_clip(two, None, GenerationOptions(script=script), pipeline.audio_encoder):
                pass
        assert "\n" not in str(error.value)
    (tmp_path / "cues.csv").write_text("start,end,face,audio\n0,0.4,left,a.wav\n0.2,,right,a.wav\n")
    with open_clip(two, None, GenerationOptions(script=tmp_path / "cues.csv"), pipeline.audio_encoder) as opened:
        assert [speaker.face for speaker in opened.speakers] == ["left", "right"]


def test_the_same_face_in_a_still_image_is_found_again(run, written, tmp_path):
    write_audio(tmp_path / "a.wav", tone(16000, 0.2))
    script = write_script(tmp_path, {"start": 0, "audio": "a.wav"}, {"start": 0.4, "audio": "a.wav"})
    result = run(PORTRAIT, None, tmp_path / "out.mp4", script=script)
    assert (result.num_frames, result.faces) == (15, 10)


# Pauses


def test_the_mouth_rests_in_pauses(run, written, spoken, tmp_path, monkeypatch):
    monkeypatch.setattr(speakers, "speech_intervals", lambda wave: [(0, 10 * 640)])
    video = clip(tmp_path / "v.mp4", 30)
    voice = write_audio(tmp_path / "a.wav", tone(16000, 1.2))
    run(video, voice, tmp_path / "rest.mp4")
    assert spoken == [(1, 16), (1, 16)]  # 30 frames, two of them in both chunks
    written.clear()
    spoken.clear()
    run(video, voice, tmp_path / "original.mp4", silence="original")
    assert changed(written, source_frames(video, 30)) == [index < 14 for index in range(30)]
    assert sum(count for _, count in spoken) == 14


CLOSING = [0, 0, 0.2, 0.4, 0.6, 0.8, 1, 1]


@pytest.mark.parametrize(("silence", "closed"), [("rest", CLOSING), ("original", [0] * 8), ("model", [0] * 8)])
def test_lips_close_in_pauses(run, tmp_path, monkeypatch, silence, closed):
    """How far they are closed in each frame that is generated."""
    monkeypatch.setattr(speakers, "speech_intervals", lambda wave: [(0, 2 * 640)])
    amounts = []
    monkeypatch.setattr(LipCloser, "__call__", lambda self, face, amount: amounts.append(amount) or face)
    run(
        clip(tmp_path / "v.mp4", 8),
        write_audio(tmp_path / "a.wav", tone(16000, 8 / 25)),
        tmp_path / "o.mp4",
        silence=silence,
    )
    np.testing.assert_allclose(amounts, [amount for amount in closed if amount], atol=1e-6)


@pytest.mark.parametrize(
    ("wave", "silence", "is_closed"),
    [(0 * tone(16000, 0.4), "rest", True), (0 * tone(16000, 0.4), "model", False), (tone(16000, 0.4), "rest", False)],
)
def test_lips_stay_closed_in_silent_audio_but_not_in_music(pipeline, monkeypatch, wave, silence, is_closed):
    monkeypatch.setattr(speakers, "speech_intervals", lambda wave: [])
    speaker = make_speaker("largest", wave, pipeline.audio_encoder, FPS, silence, np.ones(10))
    assert (speaker.closed == is_closed).all()


def test_audio_without_speech_drives_the_mouth_as_it_is(run, media, tmp_path):
    result = run(media / "clip.mp4", media / "voice.wav", tmp_path / "out.mp4", silence="original")
    assert result.faces == result.num_frames


def test_crossfades():
    spoken = spoken_frames([(3200, 6400)], FPS, 20)
    assert np.flatnonzero(spoken).tolist() == list(range(5, 10))
    np.testing.assert_allclose(fade_out(spoken)[:6], [0, 0.2, 0.4, 0.6, 0.8, 1], atol=1e-6)
    np.testing.assert_allclose(fade_in(spoken)[4:11], [0, 0.2, 0.4, 0.6, 0.4, 0.2, 0], atol=1e-6)


# The original audio


def test_the_original_audio_is_matched_to_the_voice(tmp_path):
    """A quiet voice over a loud video: at 1, both are equally loud."""
    video = clip(tmp_path / "v.mp4", 50, tone_seconds=2)
    write_audio(tmp_path / "a.wav", tone(16000, 2, 700, 0.05), codec="pcm_f32le")
    voice = AudioSource(tmp_path / "a.wav")
    with open_video(video) as source:
        mixed = [
            load_audio(Mixer(source, share, lambda: tmp_path).under(voice, Fraction(2), FPS).path) for share in (0, 1)
        ]
    rest = mixed[1][4000:28000] - mixed[0][4000:28000]
    assert np.array_equal(mixed[0], load_audio(tmp_path / "a.wav"))
    assert 0.03 < np.abs(rest).max() < 0.08


def test_a_text_is_spoken(run, media, tmp_path, monkeypatch):
    said = []

    def synthesize(text, voice, path):
        said.append((text, voice))
        write_audio(path, tone(16000, 0.4))

    monkeypatch.setattr("latentsync.pipelines.clip.synthesize", synthesize)
    result = run(media / "clip.mp4", None, tmp_path / "out.mp4", text="Hello", voice="de")
    assert result.num_frames == 10 and said == [("Hello", "de")]


def test_text_and_audio_exclude_each_other(run, media, tmp_path):
    with pytest.raises(UserError, match="audio and text exclude"):
        run(media / "clip.mp4", media / "voice.wav", tmp_path / "out.mp4", text="Hello")
    with pytest.raises(UserError, match="audio is missing"):
        run(media / "clip.mp4", None, tmp_path / "out.mp4")
