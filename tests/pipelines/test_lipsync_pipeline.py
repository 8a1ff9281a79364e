"""The whole pipeline on small clips with a real face: lengths, changed and unchanged pixels, failures, audio."""

import json
import logging
import math
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from latentsync.faces import video as face_video
from latentsync.faces.factory import create_detector
from latentsync.faces.visibility import HIDDEN
from latentsync.loading import ModelPaths, load_pipeline
from latentsync.media.timeline import open_timeline
from latentsync.media.writer import VideoWriter
from latentsync.pipelines import face_generator
from latentsync.pipelines.result import Paste
from latentsync.utils.errors import UserError
from latentsync.utils.progress import Progress
from latentsync.utils.rates import exact_rate
from tests.media.synthetic import tone, write_audio
from tests.pipelines.scenes import HEIGHT, PORTRAIT, WIDTH, clip, draw_scene, head

FPS = Fraction(25)


@pytest.fixture(autouse=True)
def no_thread_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert {thread for thread in threading.enumerate() if thread.name in ("prefetch", "sink")} <= before


def source_frames(path: Path, count: int, fps: Fraction = FPS, on_short: str = "bounce") -> list[np.ndarray]:
    return [frame.i420 for frame in open_timeline(path, count / fps, fps, on_short)]


def changed(written: list[np.ndarray], source: list[np.ndarray]) -> list[bool]:
    return [not np.array_equal(new, old) for new, old in zip(written, source, strict=True)]


def describe(path: Path) -> dict:
    """Number of frames, rate and size of the video; rate, channels, seconds (packets) and codec of the audio."""
    with av.open(str(path)) as container:
        video = container.streams.video[0]
        frames = list(container.decode(video))
        found = {"frames": len(frames), "rate": video.average_rate, "size": (video.width, video.height)}
    with av.open(str(path)) as container:
        audio = container.streams.audio[0]
        decoded = list(container.decode(audio))
        seconds = sum(Fraction(frame.samples, frame.sample_rate) for frame in decoded)
        return found | {
            "audio_rate": audio.rate,
            "channels": audio.codec_context.channels,
            "seconds": float(seconds),
            "codec": audio.codec_context.name,
        }


@pytest.mark.parametrize(
    ("rate", "samples", "fps", "frames"),
    [
        (16000, 4480, 25, 7),  # 0.28 s: 0.28 * 25 is above 7 in floating point
        (44100, 12348, 25, 7),
        (16000, 4481, 25, 8),
        (48000, 9600, 25, 5),
        (16000, 8000, 29.97, 15),
        (16000, 5338, Fraction(30000, 1001), 10),
        (16000, 5339, Fraction(30000, 1001), 11),  # 10.0006 frames
    ],
)
def test_exact_length(run, media, tmp_path, rate, samples, fps, frames):
    audio = write_audio(tmp_path / "a.wav", tone(rate, 1)[:samples], rate=rate)
    result = run(media / "clip.mp4", audio, tmp_path / "out.mp4", video_fps=fps)
    found = describe(tmp_path / "out.mp4")
    assert result.num_frames == found["frames"] == result.faces == frames
    assert found["rate"] == result.fps == exact_rate(fps)
    assert abs(found["seconds"] - samples / rate) < 1024 / rate  # the last AAC frame is padded


def test_audio_keeps_rate_and_channels(run, media, tmp_path):
    stereo = np.stack([tone(44100, 0.4, 440), tone(44100, 0.4, 660)])
    audio = write_audio(tmp_path / "a.wav", stereo, rate=44100, layout="stereo")
    run(media / "clip.mp4", audio, tmp_path / "out.mp4")
    found = describe(tmp_path / "out.mp4")
    assert (found["audio_rate"], found["channels"], found["codec"]) == (44100, 2, "aac")


def test_only_the_mouth_region_changes(run, media, written, tmp_path):
    run(media / "clip.mp4", media / "voice.wav", tmp_path / "out.mp4")
    source = source_frames(media / "clip.mp4", 10)
    assert all(changed(written, source))
    height = source[0].shape[0] * 2 // 3
    touched = np.any([new[:height] != old[:height] for new, old in zip(written, source, strict=True)], axis=0)
    assert touched.any()
    assert not touched[:30].any() and not touched[:, :40].any() and not touched[:, 120:].any()


def test_frames_without_a_face_pass_bit_for_bit_and_never_reach_the_networks(run, written, spoken, tmp_path, caplog):
    """Faces in frames 0-9, 14 and 15 of 20, a gap between and one at the end."""
    has_face = [index < 10 or index in (14, 15) for index in range(20)]
    video = clip(tmp_path / "v.mp4", 20, lambda index: draw_scene(((20, 0),) if has_face[index] else ()))
    audio = write_audio(tmp_path / "a.wav", tone(16000, 0.8))
    with caplog.at_level(logging.WARNING):
        result = run(video, audio, tmp_path / "out.mp4", num_frames=8)
    assert changed(written, source_frames(video, 20)) == has_face
    assert spoken == [(1, 8), (1, 4), (1, 2)]  # two frames are in both of the first chunks
    assert (result.num_frames, result.faces) == (20, 12)
    assert "8 of 20 frames were copied unchanged: " in caplog.text


def test_nothing_is_painted_over_somebody_who_crosses_in_front(run, written, tmp_path):
    """A darker, mirrored head walks past the speaker from right to left."""
    front = (head()[:, 88:32:-1] * (0.5, 0.42, 0.35)).astype(np.uint8)
    count, width = 40, front.shape[1]

    def left_edge(index: int) -> int:
        return 240 - 6 * index

    def draw(index: int) -> np.ndarray:
        image = draw_scene(((80, 0),), width=2 * WIDTH)
        image[:, left_edge(index) : left_edge(index) + width] = front
        return image

    video = clip(tmp_path / "v.mp4", count, draw)
    audio, report = write_audio(tmp_path / "a.wav", tone(16000, count / 25)), tmp_path / "report.json"
    result = run(video, audio, tmp_path / "out.mp4", face="left", report_path=report)
    source = source_frames(video, count)
    for index, (new, old) in enumerate(zip(written, source, strict=True)):
        covered = slice(left_edge(index), left_edge(index) + width)
        assert np.array_equal(new[:HEIGHT, covered], old[:HEIGHT, covered]), index
    spoken = changed(written, source)
    touches = [index for index in range(count) if left_edge(index) + width > 118 and left_edge(index) < 162]
    assert all(spoken[: touches[0]]) and all(spoken[touches[-1] + 2 :]), (touches, spoken)
    assert not all(spoken) and result.passed

    frames = json.loads(report.read_text())["frames"]
    assert [entry["passed"] is None for entry in frames] == spoken
    assert HIDDEN in {entry["passed"] for entry in frames}
    assert all(len(entry["box"]) == 4 and entry["confidence"] >= 0.5 for entry in frames if entry["passed"] is None)


def test_a_report_that_cannot_be_written_is_said_before_the_work(run, media, spoken, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="report"):
        run(media / "clip.mp4", media / "voice.wav", tmp_path / "out.mp4", report_path=tmp_path / "file" / "r.json")
    assert not spoken and not (tmp_path / "out.mp4").exists()


def test_a_cut_ends_a_run(run, spoken, tmp_path):
    def draw(index: int) -> np.ndarray:
        return draw_scene(((2, 0),), (30, 30, 30)) if index < 5 else draw_scene(((38, 0),), (220, 210, 150))

    video = clip(tmp_path / "v.mp4", 10, draw)
    run(video, write_audio(tmp_path / "a.wav", tone(16000, 0.4)), tmp_path / "out.mp4")
    assert spoken == [(1, 5), (1, 5)]


def test_no_face_at_all_is_an_error(run, media, tmp_path):
    video = clip(tmp_path / "v.mp4", 5, lambda index: draw_scene(()))
    (tmp_path / "out.mp4").write_bytes(b"old")
    with pytest.raises(UserError, match="v.mp4: no face was found in any frame"):
        run(video, media / "voice.wav", tmp_path / "out.mp4")
    assert (tmp_path / "out.mp4").read_bytes() == b"old"
    with pytest.raises(UserError, match=r"no face that matches the selection \(4\) was found"):
        run(media / "clip.mp4", media / "voice.wav", tmp_path / "out.mp4", face="4")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["out.mp4", "v.mp4"]


def test_seed(run, media, written, tmp_path):
    """Equal seeds give equal frames. (x264's threads may pack equal frames into different bytes on a busy machine.)"""
    for seed in (1, 1, 2):
        run(media / "clip.mp4", media / "voice.wav", tmp_path / "out.mp4", seed=seed)
    first, same, other = (np.stack(written[start : start + 10]) for start in (0, 10, 20))
    assert np.array_equal(first, same) and not np.array_equal(first, other)


def test_chunks_at_once_equal_chunks_one_by_one(run, media, written, spoken, tmp_path):
    audio = write_audio(tmp_path / "a.wav", tone(16000, 0.56))  # 14 frames: 4 + 4 + 4 + 2
    run(media / "clip.mp4", audio, tmp_path / "a.mp4", num_frames=4, chunk_overlap=0)
    run(media / "clip.mp4", audio, tmp_path / "b.mp4", num_frames=4, chunk_overlap=0, chunk_batch_size=2)
    assert spoken == [(1, 4)] * 3 + [(1, 2)] + [(2, 4), (1, 4), (1, 2)]
    for one, other in zip(written[:14], written[14:], strict=True):
        assert np.abs(one.astype(int) - other).max() <= 1


def test_callback_sees_the_steps_it_asked_for(run, media, tmp_path):
    seen = []
    run(
        media / "clip.mp4",
        media / "voice.wav",
        tmp_path / "out.mp4",
        num_frames=5,
        chunk_overlap=0,
        num_inference_steps=4,
        callback=lambda step, timestep, latents: seen.append((step, tuple(latents.shape))),
        callback_steps=2,
    )
    assert seen == [(0, (1, 4, 5, 8, 8)), (2, (1, 4, 5, 8, 8))] * 2


@pytest.mark.parametrize("use_temp_dir", [False, True])
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_exception_in_the_callback_leaves_nothing_behind(run, media, tmp_path, use_temp_dir, error):
    temp = tmp_path / "temp"
    temp.mkdir()
    (tmp_path / "out.mp4").write_bytes(b"old")
    calls = []

    def fail_in_the_second_batch(*_: object) -> None:
        calls.append(None)
        if len(calls) == 2:
            raise error("stop")

    with pytest.raises(error, match="stop"):
        run(
            media / "clip.mp4",
            media / "voice.wav",
            tmp_path / "out.mp4",
            num_frames=4,
            callback=fail_in_the_second_batch,
            temp_dir=temp if use_temp_dir else None,
        )
    assert (tmp_path / "out.mp4").read_bytes() == b"old"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["out.mp4", "temp"]
    assert not list(temp.iterdir())


def test_an_error_of_the_encoder_stops_a_run_that_waits_for_it(run, media, tmp_path, monkeypatch):
    """A full disk far from the end of a long run: the main thread is blocked on a full queue by then."""

    def full(self: VideoWriter, frame: object) -> None:
        raise UserError("disk full")

    monkeypatch.setattr(VideoWriter, "write", full)
    audio = write_audio(tmp_path / "a.wav", tone(16000, 4))
    with pytest.raises(UserError, match="disk full"):
        run(media / "clip.mp4", audio, tmp_path / "out.mp4", num_frames=4)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.wav"]


def test_an_error_of_the_decoder_reaches_the_caller(run, media, tmp_path, monkeypatch):
    def broken(*_: object) -> None:
        raise OSError("no more file handles")

    monkeypatch.setattr(face_video.FaceAligner, "__call__", broken)
    with pytest.raises(OSError, match="no more file handles"):
        run(media / "clip.mp4", media / "voice.wav", tmp_path / "out.mp4")
    assert not list(tmp_path.iterdir())


def test_keep_fps(run, media, tmp_path):
    video = clip(tmp_path / "v.mp4", 12, fps=Fraction(30000, 1001))
    kept = run(video, media / "voice.wav", tmp_path / "a.mp4", keep_fps=True)
    plain = run(video, media / "voice.wav", tmp_path / "b.mp4")
    still = run(PORTRAIT, media / "voice.wav", tmp_path / "c.mp4", keep_fps=True, video_fps=20)
    assert (kept.fps, kept.num_frames) == (Fraction(30000, 1001), 12)
    assert (plain.fps, plain.num_frames) == (25, 10)
    assert (still.fps, still.num_frames) == (20, 8)  # an image has no frame rate


def test_short_video(run, media, written, tmp_path):
    video = clip(tmp_path / "v.mp4", 4)
    forward = source_frames(video, 4)
    for on_short, order in (("loop", [0, 1, 2, 3, 3, 2, 1, 0, 0, 1]), ("freeze", [0, 1, 2, 3] + [3] * 6)):
        written.clear()
        run(video, media / "voice.wav", tmp_path / "out.mp4", on_short_video=on_short)
        for frame, index in zip(written, order, strict=True):  # rows above the face are never touched
            assert np.array_equal(frame[:20], forward[index][:20])
    with pytest.raises(UserError, match="the video lasts 0.16 s, the audio 0.40 s"):
        run(video, media / "voice.wav", tmp_path / "error.mp4", on_short_video="error")
    assert not (tmp_path / "error.mp4").exists()


def test_still_image(run, media, written, tmp_path):
    result = run(PORTRAIT, media / "voice.wav", tmp_path / "out.mp4")
    assert result.faces == result.num_frames == len(written) == 10
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert (container.streams.video[0].width, container.streams.video[0].height) == (512, 512)


@pytest.mark.parametrize(
    ("face", "chosen"), [("left", 0), ("right", 1), ("0", 0), ("1", 1), ("60,60", 0), ("230,60", 1)]
)
def test_only_the_chosen_face_changes(run, media, written, tmp_path, face, chosen):
    video = clip(tmp_path / "v.mp4", 3, lambda index: draw_scene(((10, 0), (170, 0)), width=2 * WIDTH))
    audio = write_audio(tmp_path / "a.wav", tone(16000, 0.12))
    run(video, audio, tmp_path / "out.mp4", face=face)
    height = written[0].shape[0] * 2 // 3
    for new, old in zip(written, source_frames(video, 3), strict=True):
        touched = (new[:height] != old[:height]).any(axis=0)
        halves = [touched[:WIDTH].any(), touched[WIDTH:].any()]
        assert halves == [chosen == 0, chosen == 1]


def test_two_runs_at_once(tiny_files, media, tmp_path):
    """Two pipelines in two threads, the same output folder, the same temp dir, detectors of their own."""
    (tmp_path / "temp").mkdir()
    stderr = os.fstat(2)
    results = {}

    def work(seed: int) -> None:
        pipeline = load_pipeline(ModelPaths(**vars(tiny_files)), "cpu")
        results[seed] = pipeline(
            media / "clip.mp4",
            media / "voice.wav",
            tmp_path / f"{seed}.mp4",
            num_inference_steps=1,
            guidance_scale=1.0,
            temp_dir=tmp_path / "temp",
            generator=torch.Generator().manual_seed(seed),
        )

    threads = [threading.Thread(target=work, args=(seed,)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert os.fstat(2) == stderr  # which both hold back while MediaPipe starts
    assert {seed: result.faces for seed, result in results.items()} == {1: 10, 2: 10}
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["1.mp4", "2.mp4", "temp"]
    assert not list((tmp_path / "temp").iterdir())


def test_the_output_may_be_a_link_with_a_temp_dir(run, media, tmp_path):
    (tmp_path / "link.mp4").symlink_to(tmp_path / "real.mp4")
    run(media / "clip.mp4", media / "voice.wav", tmp_path / "link.mp4", temp_dir=tmp_path)
    assert (tmp_path / "link.mp4").is_symlink() and describe(tmp_path / "real.mp4")["frames"] == 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_inference_steps": 0}, "inference_steps"),
        ({"num_inference_steps": 1001}, "inference_steps"),
        ({"guidance_scale": math.nan}, "guidance_scale"),
        ({"eta": 2.0}, "eta must be between 0 and 1"),
        ({"callback_steps": 0}, "callback_steps must be 1 or more"),
        ({"num_frames": 0}, "num_frames must be 1 to 24"),
        ({"num_frames": 25}, "num_frames must be 1 to 24"),
        ({"video_fps": math.nan}, "video_fps"),
        ({"video_fps": 0}, "video_fps"),
        ({"sharpness_factor": -1}, "sharpness_factor"),
        ({"chunk_batch_size": -1}, "chunk_batch_size"),
        ({"chunk_batch_size": 0}, "chunk_batch_size must be .* or auto"),
        ({"crf": 52}, "crf"),
        ({"sharpnes": 2}, "sharpnes"),
        ({"height": 64, "width": 128}, "must be equal"),
        ({"height": 100}, "must be a multiple of 64"),
        ({"audio_sample_rate": 8000}, "audio_sample_rate must be 16000"),
        ({"face": "middle"}, "face"),
        ({"length_mode": "stop"}, "length_mode"),
        ({"solver": "euler"}, "solver"),
        ({"solver": "dpm++", "eta": 0.5}, "eta requires the ddim solver"),
        ({"interpolate": 24}, "interpolate must be at least 25"),
        ({"max_seconds": 0}, "max_seconds"),
        ({"mask_image_path": "none.png"}, "none.png does not exist"),
    ],
)
def test_wrong_settings(run, media, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        run(media / "clip.mp4", media / "voice.wav", tmp_path / "out.mp4", **options)
    assert not list(tmp_path.iterdir())


def test_weights_that_are_not_numbers_are_reported(pipeline, run, media, tmp_path, monkeypatch):
    monkeypatch.setattr(face_generator, "regenerate_faces", lambda *args: torch.full_like(args[3], math.nan))
    with pytest.raises(UserError, match="the model output is not finite"):
        run(media / "clip.mp4", media / "voice.wav", tmp_path / "out.mp4")


def test_another_resolution_sharpening_and_upscaling(pipeline, run, media, written, tmp_path, monkeypatch):
    sizes: list[int] = []
    paste: Callable = Paste.__call__
    monkeypatch.setattr(
        Paste, "__call__", lambda self, item, pixels, *points: sizes.append(len(pixels)) or paste(self, item, pixels)
    )
    monkeypatch.setattr(pipeline, "enhancer", lambda faces: faces.repeat_interleave(4, -1).repeat_interleave(4, -2))
    run(media / "clip.mp4", media / "voice.wav", tmp_path / "a.mp4", height=128, sharpness_factor=1.5)
    assert sizes == [512] * 10
    assert all(changed(written, source_frames(media / "clip.mp4", 10)))


def test_skin_color_matches_the_frame(pipeline, monkeypatch):
    flushed = torch.tensor([0.4, -0.2, 0.0])[:, None, None]
    monkeypatch.setattr(face_generator, "regenerate_faces", lambda *args: args[3] + flushed)
    monkeypatch.setattr(pipeline, "match_color", False)
    faces = torch.randint(60, 190, (1, 2, 64, 64, 3), dtype=torch.uint8)
    errors = []
    for match in (False, True):
        spoken = pipeline.speak(faces, torch.empty(1, 2, 0, 0), match_color=match)
        errors.append(float((spoken - faces).abs().max()))
    assert errors[0] == pytest.approx(0.4 * 127.5, abs=0.01)
    assert errors[1] < 1


def test_progress_tells_stage_and_frames(run, media, tmp_path):
    updates: list[Progress] = []
    run(media / "clip.mp4", media / "voice.wav", tmp_path / "out.mp4", on_progress=updates.append)
    stages = [progress.stage for progress in updates]
    assert list(dict.fromkeys(stages)) == ["preparing", "lip-sync", "finishing"]
    assert [progress.done for progress in updates] == sorted(progress.done for progress in updates)
    assert {progress.done for progress in updates} == set(range(11)) and {progress.total for progress in updates} == {
        10
    }
    fractions = [progress.fraction for progress in updates]
    assert fractions == sorted(fractions) and 0 <= fractions[0] and fractions[-1] <= 1


def test_progress_is_reported_after_each_denoising_step(run, media, tmp_path):
    updates: list[Progress] = []
    run(
        media / "clip.mp4", media / "voice.wav", tmp_path / "out.mp4", num_inference_steps=4, on_progress=updates.append
    )
    before = [progress for progress in updates if progress.done == 0 and progress.stage == "lip-sync"]
    assert len(before) == 1 + 4  # the chunk begins, then its steps
    assert before[2].seconds_left is not None  # from the second step on


@pytest.mark.parametrize("stage", ["preparing", "lip-sync", "finishing"])
def test_an_exception_in_on_progress_stops_the_run(run, media, tmp_path, stage):
    def cancel(progress: Progress) -> None:
        if progress.stage == stage:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        run(media / "clip.mp4", media / "voice.wav", tmp_path / "out.mp4", on_progress=cancel)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", [".wav", ".m4a"])
def test_a_preview_ends_early_in_video_and_audio(run, media, tmp_path, suffix):
    """m4a is copied packet by packet, wav encoded anew."""
    voice = media / "voice.wav"
    if suffix != ".wav":
        voice = tmp_path / f"voice{suffix}"
        with av.open(str(media / "voice.wav")) as source, av.open(str(voice), "w", format="mp4") as target:
            stream = target.add_stream("aac", rate=16000, layout="mono")
            for frame in source.decode(audio=0):
                target.mux(stream.encode(frame))
            target.mux(stream.encode(None))
    result = run(media / "clip.mp4", voice, tmp_path / "out.mp4", max_seconds=0.2)
    assert result.num_frames == 5
    with av.open(str(result.path)) as container:
        samples = sum(frame.samples for frame in container.decode(audio=0))
    assert 0.2 <= samples / 16000 < 0.2 + 2 * 1024 / 16000


def test_interpolation_doubles_the_rate_and_keeps_generated_frames(run, media, written, tmp_path):
    run(media / "clip.mp4", media / "voice.wav", tmp_path / "plain.mp4")
    plain = list(written)
    written.clear()
    result = run(media / "clip.mp4", media / "voice.wav", tmp_path / "out.mp4", interpolate=50)
    assert (result.fps, result.num_frames, result.faces) == (50, 20, 10)
    assert describe(result.path)["frames"] == len(written) == 20
    assert all(np.array_equal(made, frame) for made, frame in zip(written[::2], plain, strict=True))


def test_the_other_solver_gives_the_same_face(run, media, written, tmp_path):
    """With many steps both solve the same equation; with one they differ."""

    def frames(**options) -> np.ndarray:
        written.clear()
        run(media / "clip.mp4", media / "voice.wav", tmp_path / "out.mp4", max_seconds=0.1, **options)
        return np.stack(written).astype(float)

    ddim, other = frames(num_inference_steps=40), frames(num_inference_steps=40, solver="dpm++")
    rough = frames(num_inference_steps=2)
    assert abs(ddim - other).mean() < 0.5 * abs(ddim - rough).mean()
    assert not np.array_equal(ddim, other)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_length(tmp_path, tiny_files):
    """Peak of resident memory of a process that makes 10 s, and of one that makes 100 s."""
    clip(tmp_path / "v.mp4", 25)
    code = (
        "import resource, sys; from scripts.inference import main; main(sys.argv[1:]);"
        "print('peak', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    peaks = []
    for seconds in (10, 100):
        audio = write_audio(tmp_path / "a.wav", tone(16000, seconds))
        words = [
            f"--video_path={tmp_path / 'v.mp4'}",
            f"--audio_path={audio}",
            f"--video_out_path={tmp_path / 'o.mp4'}",
        ]
        done = subprocess.run(
            [sys.executable, "-c", code, *tiny_files.options, *words], capture_output=True, text=True, check=True
        )
        peaks.append(int(done.stdout.split("peak ")[1]))
    assert peaks[1] < 1.1 * peaks[0]


def test_the_real_detectors_are_closed(loaded, media, tmp_path, monkeypatch):
    closed = []

    def create(*args, **options):
        made = create_detector(*args, **options)
        close = made.close
        monkeypatch.setattr(made, "close", lambda: (closed.append(made), close()))
        return made

    monkeypatch.setattr(face_video, "create_detector", create)
    loaded(media / "clip.mp4", media / "voice.wav", tmp_path / "out.mp4", num_inference_steps=1, guidance_scale=1.0)
    assert len(closed) == 1
