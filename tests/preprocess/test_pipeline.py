"""Whole runs on small clips: kept and dropped clips, resuming, crashing workers, several machines."""

import csv
import logging
import os
import signal
import sys
import time
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from latentsync.media.audio import load_audio
from latentsync.media.frame import VideoFrame
from latentsync.utils.errors import UserError
from preprocess import source_work
from preprocess.data_processing_pipeline import build_parser, main, settings_of
from preprocess.executors import run_local
from preprocess.runner import RunOptions, process
from preprocess.settings import ProcessSettings
from preprocess.source_work import Beat, Job, person_of, process_source
from preprocess.storages.base import FileStamp
from preprocess.tools import Tools
from tests.media.synthetic import click_track, numbered_rgb, numbers_of, onsets, tone, write_clip, write_frames
from tests.pipelines.scenes import clip, draw_scene

FAST = ProcessSettings(steps=(), min_seconds=0.2, segment_seconds=0.8)
FACES = ProcessSettings(steps=("shots", "faces", "quality"), min_seconds=0.2, resolution=64, min_quality=0.0)


def rows_of(folder: Path) -> list[dict]:
    with (folder / "manifest.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def here(monkeypatch, detector):
    """Sources are processed in this process, with the detector that all tests share."""
    monkeypatch.setattr(detector, "close", lambda: None)
    monkeypatch.setattr("preprocess.tools.create_detector", lambda *args, **options: detector)

    def run(files, job: Job, *_: int):
        with Tools(job.settings) as tools:
            for file in files:
                yield process_source(file, job, tools)

    monkeypatch.setattr("preprocess.runner.run_local", run)


@pytest.fixture
def sources(tmp_path) -> Path:
    folder = tmp_path / "videos"
    (folder / "anna").mkdir(parents=True)
    write_clip(folder / "anna" / "ünicode und\nzwei.mp4", 50, tone_seconds=2.0)
    write_clip(folder / "silent.mp4", 30)
    (folder / "empty.mp4").touch()
    (folder / "garbage.mkv").write_bytes(b"no video" * 99)
    write_clip(folder / "one frame.mp4", 1, tone_seconds=0.2)
    (folder / "loop").symlink_to(folder)
    (folder / "notes.txt").write_text("no video")
    return folder


def test_every_source_and_clip_has_a_status(here, sources, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in sources.rglob("*")}
    summary = process(RunOptions(sources, tmp_path / "out"), FAST)
    rows = rows_of(tmp_path / "out")
    status = {row["source"]: (row["status"], row["step"]) for row in rows if row["kind"] == "source"}
    assert status["empty.mp4"] == status["garbage.mkv"] == status["silent.mp4"] == ("dropped", "probe")
    assert status["anna/ünicode und\nzwei.mp4"] == ("processed", "")
    clips = [row for row in rows if row["kind"] == "clip"]
    assert [(row["status"], row["frames"]) for row in clips if "anna" in row["source"]] == [
        ("kept", "20"), ("kept", "20"), ("kept", "10"),
    ]  # fmt: skip
    short = [(row["reason"], row["frames"]) for row in clips if row["source"] == "one frame.mp4"]
    assert short == [("1 frames, 5 are needed", "1")]
    assert summary.kept == 3 and summary.processed == 5
    listed = [line.split("\t") for line in (tmp_path / "out" / "train.txt").read_text().splitlines()]
    assert {person for _, person in listed} == {"anna"} and all(
        (tmp_path / "out" / name).is_file() for name, _ in listed
    )
    assert {path: path.stat().st_mtime_ns for path in sources.rglob("*")} == before
    assert not list((tmp_path / "out" / ".work").glob("*.mp4"))


def test_segments_are_cut_to_the_frame_and_the_sample(here, sources, tmp_path):
    process(RunOptions(sources, tmp_path / "out"), FAST)
    second = next(path for path in sorted((tmp_path / "out").rglob("*.mp4")) if path.stem.endswith("_0001"))
    with av.open(str(second)) as container:
        samples = sum(frame.samples for frame in container.decode(audio=0))
    assert numbers_of(_frames(second)) == list(range(20, 40))
    assert samples == 20 * 640


def test_variable_frame_rate_rotation_and_audio_track(here, tmp_path):
    """Rotated by 90 degrees, at a variable frame rate, with two audio tracks."""
    lying = [np.rot90(numbered_rgb(number)) for number in range(60)]
    stamps = [20 * number + number % 3 * 3 for number in range(60)]
    options = {"crf": "12", "preset": "ultrafast", "bf": "0"}
    video = write_clip(
        tmp_path / "video.mov", 60, fps=50, stamps=stamps, time_base=Fraction(1, 1000), size=(48, 64),
        images=lying, rotation=-90, options=options,
    )  # fmt: skip
    (tmp_path / "in").mkdir()
    with av.open(str(video)) as source, av.open(str(tmp_path / "in" / "phone.mov"), "w") as container:
        images = container.add_stream_from_template(source.streams.video[0])
        tracks = [container.add_stream("pcm_s16le", rate=16000, layout="mono") for _ in range(2)]
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = images
                container.mux(packet)
        for track, samples in zip(tracks, (tone(16000, 1.2), click_track(16000, 1.2, [0.5, 0.9])), strict=True):
            write_frames(container, track, samples[None], 16000, "mono")
    assert process(RunOptions(tmp_path / "in", tmp_path / "out"), replace(FAST, audio_track=1)).kept == 2
    row = rows_of(tmp_path / "out")[0]
    assert (row["width"], row["height"], row["variable_fps"], row["rotation"] != "0") == ("64", "48", "1", True)
    clips = sorted((tmp_path / "out" / "clips").rglob("*.mp4"))
    shown = [number for path in clips for number in numbers_of(_frames(path))]
    assert shown == list(range(0, 60, 2))
    clicks = [onsets(load_audio(path, 16000), 16000) for path in clips]
    assert clicks == [[pytest.approx(0.5, abs=0.002)], [pytest.approx(0.1, abs=0.002)]]


def _frames(path: Path) -> list[VideoFrame]:
    with av.open(str(path)) as container:
        return [VideoFrame.from_rgb(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]


def test_shots_are_not_mixed(here, tmp_path):
    folder = tmp_path / "videos"
    folder.mkdir()
    scenes = [draw_scene((), (200, 30, 30))] * 12 + [draw_scene((), (20, 40, 220))] * 9
    clip(folder / "a.mp4", 21, lambda index: scenes[index], tone_seconds=0.84)
    process(RunOptions(folder, tmp_path / "out"), ProcessSettings(steps=("shots",), min_seconds=0.2))
    rows = [row for row in rows_of(tmp_path / "out") if row["kind"] == "clip"]
    assert [(row["frames"], row["start_seconds"]) for row in rows] == [("12", "0"), ("9", "0.48")]


def test_kept_clips_are_aligned_faces(here, tmp_path):
    folder = tmp_path / "videos"
    folder.mkdir()
    large = cv2.resize(draw_scene(), None, fx=2, fy=2)
    clip(folder / "bob_1.mp4", 15, lambda index: large, tone_seconds=0.6)
    clip(folder / "bob_2.mp4", 15, lambda index: np.full_like(large, 90), tone_seconds=0.6)
    assert process(RunOptions(folder, tmp_path / "out"), FACES).kept == 1
    rows = [row for row in rows_of(tmp_path / "out") if row["kind"] == "clip"]
    assert [(row["status"], row["step"], row["person"], row["frames"]) for row in rows] == [
        ("kept", "", "bob", "15"),
        ("dropped", "faces", "bob", "15"),
    ]
    assert float(rows[0]["face_size"]) > 60 and rows[0]["quality_measure"] == "sharpness"
    with av.open(str(tmp_path / "out" / rows[0]["clip"])) as container:
        assert (container.streams.video[0].width, container.streams.video[0].codec_context.pix_fmt) == (64, "yuv444p")


def test_a_second_run_processes_new_sources_only(here, sources, tmp_path, monkeypatch):
    options = RunOptions(sources, tmp_path / "out")
    first = process(options, FAST)
    manifest = (tmp_path / "out" / "manifest.csv").read_bytes()
    again = process(options, FAST)
    assert (again.processed, again.resumed, again.kept) == (0, 5, first.kept)
    assert (tmp_path / "out" / "manifest.csv").read_bytes() == manifest
    next((tmp_path / "out" / "clips").rglob("*.mp4")).unlink()
    assert process(options, FAST).processed == 1
    other = process(options, ProcessSettings(steps=(), min_seconds=0.2, segment_seconds=0.64))
    assert other.processed == 5 and other.kept == 3
    assert len(list((tmp_path / "out" / "clips").rglob("*.mp4"))) == 3  # those of the other settings are gone


def test_finished_segments_are_not_written_again(here, sources, tmp_path, monkeypatch):
    written: list[str] = []
    put = source_work._SourceWork._put

    def spy(self, path, made):
        written.append(made.segment)
        if len(written) == 3:
            raise KeyboardInterrupt
        return put(self, path, made)

    monkeypatch.setattr(source_work._SourceWork, "_put", spy)
    for other in ("silent.mp4", "empty.mp4", "garbage.mkv", "one frame.mp4"):
        (sources / other).unlink()
    with pytest.raises(KeyboardInterrupt):
        process(RunOptions(sources, tmp_path / "out"), FAST)
    summary = process(RunOptions(sources, tmp_path / "out"), FAST)
    assert summary.kept == 3 and written == [0, 1, 2, 2]


def _die_on(name: str):
    """A stand-in for the work that kills its process at one source."""

    def work(file: FileStamp, job: Job, tools: Tools, beat: Beat):
        if file.name == name:
            os.kill(os.getpid(), signal.SIGKILL)
        return process_source(file, job, tools, beat)

    return work


def _deadly_worker(pipe, job: Job, workers: int) -> None:
    from preprocess import executors

    executors.process_source = _die_on("silent.mp4")
    executors._work(pipe, job, workers)


def _hanging_worker(pipe, job: Job, workers: int) -> None:
    """A worker that hangs in one source, with a short time limit."""
    from preprocess import executors

    real = executors.process_source

    def hang(file: FileStamp, job: Job, tools: Tools, beat: Beat):
        if file.name == "silent.mp4":
            beat()
            time.sleep(600)
        return real(file, job, tools)

    executors.STALLED_SECONDS, executors.process_source = 0.2, hang
    executors._work(pipe, job, workers)


def test_a_source_that_takes_too_long_is_given_up(sources, tmp_path, monkeypatch):
    monkeypatch.setattr("preprocess.executors._work", _hanging_worker)
    summary = process(RunOptions(sources, tmp_path / "out", workers=2), FAST)
    status = {row["source"]: row["reason"] for row in summary.rows if row["kind"] == "source"}
    assert "took longer than" in status["silent.mp4"] and summary.kept == 3


def _greedy_worker(pipe, job: Job, workers: int) -> None:
    """A worker that takes 2 GiB for one source."""
    from preprocess import executors

    real = executors.process_source

    def hoard(file: FileStamp, job: Job, tools: Tools, beat: Beat):
        if file.name == "silent.mp4":
            hoarded = bytearray(2**31)
            hoarded[::4096] = b"x" * len(hoarded[::4096])
            time.sleep(600)
        return real(file, job, tools, beat)

    executors.process_source = hoard
    executors._work(pipe, job, workers)


def test_a_source_that_needs_too_much_memory_is_given_up(sources, tmp_path, monkeypatch):
    monkeypatch.setattr("preprocess.executors._work", _greedy_worker)
    summary = process(RunOptions(sources, tmp_path / "out", workers=2, worker_memory_gb=1.9), FAST)
    status = {row["source"]: row["reason"] for row in summary.rows if row["kind"] == "source"}
    assert status["silent.mp4"] == "needed more than the allowed 1.9 GiB of memory" and summary.kept == 3
    with pytest.raises(UserError, match="worker_memory_gb must be above 0"):
        RunOptions(sources, tmp_path / "out", worker_memory_gb=0)


def test_a_crashed_worker_loses_its_source_only(sources, tmp_path, monkeypatch):
    monkeypatch.setattr("preprocess.executors._work", _deadly_worker)
    options = RunOptions(sources, tmp_path / "out", workers=2)
    summary = process(options, FAST)
    status = {row["source"]: row["reason"] for row in summary.rows if row["kind"] == "source"}
    assert status["silent.mp4"] == "crashed the worker" and summary.kept == 3
    monkeypatch.undo()
    again = process(options, FAST)
    assert (again.processed, again.resumed) == (1, 4)
    assert {row["source"]: row["step"] for row in again.rows}["silent.mp4"] == "probe"


def test_concurrent_runs_and_unusable_folders_are_refused(here, sources, tmp_path):
    from preprocess.storage import open_storage

    with open_storage(tmp_path / "out").locked(), pytest.raises(UserError, match="another run is writing there"):
        process(RunOptions(sources, tmp_path / "out"), FAST)
    with pytest.raises(UserError, match="no such folder"):
        process(RunOptions(tmp_path / "none", tmp_path / "out"), FAST)
    (tmp_path / "bare").mkdir()
    with pytest.raises(UserError, match="no videos in it"):
        process(RunOptions(tmp_path / "bare", tmp_path / "out"), FAST)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        process(RunOptions(sources, tmp_path / "file" / "out"), FAST)
    with pytest.raises(UserError, match="is the input folder"):
        RunOptions(sources, sources)


def test_a_full_disk_stops_the_run_and_the_next_one_resumes(here, sources, tmp_path, monkeypatch):
    def full(self, local, name):
        raise OSError(28, "No space left on device")

    from preprocess.storages.local import LocalStorage
    from preprocess.write import output_errors

    put = LocalStorage.put

    def sometimes(self, local, name):
        if name.endswith("_0001.mp4"):
            with output_errors(name):
                full(self, local, name)
        put(self, local, name)

    monkeypatch.setattr(LocalStorage, "put", sometimes)
    with pytest.raises(UserError, match="No space left on device"):
        process(RunOptions(sources, tmp_path / "out"), FAST)
    monkeypatch.setattr(LocalStorage, "put", put)
    assert process(RunOptions(sources, tmp_path / "out"), FAST).kept == 3


def test_results_may_go_to_an_object_store(here, sources, tmp_path):
    import fsspec

    url = f"memory://out-{tmp_path.name}"
    assert process(RunOptions(sources, url), FAST).kept == 3
    store = fsspec.filesystem("memory")
    names = store.find(f"/out-{tmp_path.name}")
    assert sum(name.endswith(".mp4") for name in names) == 3 and any(name.endswith("manifest.csv") for name in names)


@pytest.mark.slow
@pytest.mark.parametrize("gpu_actors", [0, 1])  # Ray trusts the declared resources
def test_ray_makes_the_same_manifest(sources, tmp_path, monkeypatch, gpu_actors):
    large = cv2.resize(draw_scene(), None, fx=2, fy=2)
    clip(sources / "bob_1.mp4", 50, lambda index: large, tone_seconds=2.0)
    measured = ProcessSettings(
        resolution=128, min_seconds=1.4, sync_conf_threshold=-1.0, min_preference=0.0, max_offset=15, min_quality=0.0
    )
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    ray.init(num_cpus=3, num_gpus=1, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        process(RunOptions(sources, tmp_path / "ray", workers=2, executor="ray", gpu_actors=gpu_actors), measured)
    finally:
        ray.shutdown()
    assert process(RunOptions(sources, tmp_path / "local"), measured).kept == 1
    assert (tmp_path / "ray" / "manifest.csv").read_text() == (tmp_path / "local" / "manifest.csv").read_text()
    assert {"offset", "confidence", "quality", "jitter"} <= set(rows_of(tmp_path / "local")[0])


def test_gpus_are_reserved_for_networks_on_gpus_only(sources, tmp_path, capsys):
    words = ["--input_dir", str(sources), "--output_dir", str(tmp_path / "out"), "--executor", "ray"]
    assert main([*words, "--gpu_actors", "1"]) == 1 and "add --device cuda" in capsys.readouterr().err
    both = ["--gpu_actors", "1", "--per_gpu_num_workers", "2", "--device", "cuda"]
    assert main([*words, *both]) == 1 and "no --per_gpu_num_workers" in capsys.readouterr().err
    with pytest.raises(UserError, match="needs --executor ray"):
        RunOptions(sources, tmp_path / "out", gpu_actors=1)


def test_the_command(here, sources, tmp_path, capsys):
    words = ["--input_dir", str(sources), "--output_dir", str(tmp_path / "out"), "--steps", "segments"]
    assert main([*words, "--dry_run"]) == 0
    assert "5 sources; steps: probe, resample, segments" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    words += ["--segment_seconds", "0.8", "--min_seconds", "0.2", "--report", "--max_clips_per_person", "2"]
    assert main(words) == 0
    assert capsys.readouterr().out.splitlines()[0] == "3 clips kept; 5 sources processed, 0 finished before"
    assert len((tmp_path / "out" / "train.txt").read_text().splitlines()) == 2
    page = (tmp_path / "out" / "report.html").read_text()
    assert "3 of 4 clips kept" in page and page.count("data:image/jpeg") == 4 and "<script" not in page
    assert 'aria-label="duration (s)"' in page and "<td>segment_seconds</td><td>0.8</td>" in page
    assert main(["--input_dir", str(tmp_path / "none")]) == 1
    assert "no such folder" in capsys.readouterr().err
    assert main([*words, "--steps", "sync"]) == 1
    assert "add faces" in capsys.readouterr().err


def test_options_reach_the_settings():
    words = "--input_dir x --resolution 512 --sync_conf_threshold 4 --many_faces drop --no_smoothing".split()
    settings = settings_of(build_parser().parse_args(words))
    assert (settings.resolution, settings.sync_conf_threshold, settings.many_faces, settings.smooth) == (
        512,
        4,
        "drop",
        False,
    )


@pytest.mark.parametrize(
    ("name", "person"), [("anna/a.mp4", "anna"), ("grid_s1_bbaf2n.mp4", "grid_s1"), ("solo.mp4", "solo")]
)
def test_person_of_a_source(name, person):
    assert person_of(name) == person


def test_digest_ignores_settings_without_effect():
    assert (
        FAST.digest()
        == ProcessSettings(steps=(), min_seconds=0.2, segment_seconds=0.8, resolution=512, device="cuda").digest()
    )
    assert FAST.digest() != FACES.digest()
    assert FACES.digest({"quality_measure": "hyperiqa"}) != FACES.digest({"quality_measure": "sharpness"})


def test_no_worker_is_left(sources, tmp_path):
    import multiprocessing

    job = Job(str(sources), str(tmp_path / "out"), tmp_path / "scratch", FAST, "x")
    records = run_local([FileStamp("empty.mp4", 0, "")], job, 3)
    assert next(records).step == "probe"
    records.close()
    assert not multiprocessing.active_children()
