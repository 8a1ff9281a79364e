"""Bad files and folders are reported and never stop a run."""

import csv
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av
import numpy as np
import pytest

from latentsync.utils.errors import UserError
from preprocess.manifest import Records
from preprocess.runner import RunOptions, process
from preprocess.settings import ProcessSettings
from preprocess.source_work import process_source
from preprocess.tools import Tools
from tests.media.synthetic import write_clip
from tests.waiting import eventually

FAST = ProcessSettings(steps=(), min_seconds=0.2, segment_seconds=0.8)
COMMAND = [sys.executable, "-m", "preprocess.data_processing_pipeline", "--steps", "segments"]
COMMAND += ["--segment_seconds", "0.8", "--min_seconds", "0.2"]
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def here(monkeypatch):
    """Sources are processed in this process."""

    def run(files, job, *_):
        with Tools(job.settings) as tools:
            for file in files:
                yield process_source(file, job, tools)

    monkeypatch.setattr("preprocess.runner.run_local", run)


def reasons(folder: Path) -> dict[str, str]:
    """Source: why it is of no use, empty for one that is."""
    with (folder / "manifest.csv").open(newline="", encoding="utf-8") as file:
        return {row["source"]: row["reason"] for row in csv.DictReader(file) if row["kind"] == "source"}


def test_special_files_are_not_read(here, tmp_path):
    folder = tmp_path / "in"
    (folder / "dir.mp4").mkdir(parents=True)
    os.mkfifo(folder / "pipe.mp4")
    (folder / "device.mp4").symlink_to("/dev/zero")
    (folder / "nowhere.mp4").symlink_to("none")
    (folder / "self.mp4").symlink_to("self.mp4")
    (folder / "dir.mp4" / "up").symlink_to(folder)
    assert process(RunOptions(folder, tmp_path / "out"), FAST).kept == 0
    found = reasons(tmp_path / "out")
    assert found["pipe.mp4"] == found["device.mp4"] == "cannot be read (not a regular file)"
    assert found["nowhere.mp4"] == "cannot be read (No such file or directory)"
    assert "Too many levels of symbolic links" in found["self.mp4"]
    assert len(found) == 4


def test_names_may_be_any_bytes(here, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    write_clip(folder / "a.mp4", 20, tone_seconds=0.8)
    for name in (b"bad\xff\xfe_1.mp4", b"-x '\"$(id);\n.mp4"):
        write_clip(folder / "b.mp4", 20, tone_seconds=0.8 + len(name) / 25)
        os.rename(os.fsencode(folder / "b.mp4"), os.fsencode(folder) + b"/" + name)
    assert process(RunOptions(folder, tmp_path / "out"), FAST).kept >= 3
    assert r"bad\xff\xfe_1.mp4" in reasons(tmp_path / "out")
    lines = (tmp_path / "out" / "train.txt").read_text("utf-8").splitlines()
    assert len(lines) == 3 and all((tmp_path / "out" / line.split("\t")[0]).is_file() for line in lines)


def test_copies_are_dropped_and_moved_files_recognized(here, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    write_clip(folder / "b_1.mp4", 20, tone_seconds=0.8)
    shutil.copy(folder / "b_1.mp4", folder / "b_2.mp4")
    first = process(RunOptions(folder, tmp_path / "out"), FAST)
    assert (first.kept, reasons(tmp_path / "out")["b_2.mp4"]) == (1, "same content as b_1.mp4")
    again = process(RunOptions(folder, tmp_path / "out"), FAST)
    assert (again.processed, again.resumed, again.kept) == (0, 1, 1)
    made = next((tmp_path / "out" / "clips").rglob("*.mp4")).stat().st_mtime_ns
    (folder / "b_1.mp4").rename(folder / "b_0.mp4")
    moved = process(RunOptions(folder, tmp_path / "out"), FAST)
    assert moved.kept == 1 and reasons(tmp_path / "out") == {"b_0.mp4": "", "b_2.mp4": "same content as b_0.mp4"}
    assert next((tmp_path / "out" / "clips").rglob("*.mp4")).stat().st_mtime_ns == made


def test_an_output_that_is_read_only(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    write_clip(folder / "a.mp4", 20, tone_seconds=0.8)
    if not Path("/sys").is_dir():
        pytest.skip("no read-only file system at hand")
    with pytest.raises(UserError, match="cannot be written .*choose another place"):
        process(RunOptions(folder, "/sys/latentsync"), FAST)


def test_an_unusable_temp_dir(here, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    write_clip(folder / "a.mp4", 20, tone_seconds=0.8)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file/latentsync-preprocess-.* cannot be written .*choose another place"):
        process(RunOptions(folder, tmp_path / "out", temp_dir=tmp_path / "file"), FAST)


@contextmanager
def small_files_only(size: int) -> Iterator[None]:
    """No file of this process may grow beyond `size` bytes: the disk is full in the middle of one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_fills_up_within_a_clip(here, tmp_path):
    (tmp_path / "in").mkdir()
    write_clip(tmp_path / "in" / "a.mp4", 50, tone_seconds=2.0)
    with small_files_only(2000), pytest.raises(UserError, match=r"cannot be written \(.*; free space or"):
        process(RunOptions(tmp_path / "in", tmp_path / "out"), FAST)
    assert not list((tmp_path / "out").rglob("*.mp4")) and not (tmp_path / "out" / "manifest.csv").exists()
    assert process(RunOptions(tmp_path / "in", tmp_path / "out"), FAST).kept == 3


@pytest.mark.slow
def test_a_killed_run_resumes_and_leaves_no_worker(tmp_path):
    (tmp_path / "in").mkdir()
    for number in range(6):
        write_clip(tmp_path / "in" / f"{number}.mp4", 60 + number, tone_seconds=3.0)

    def command(output: str) -> list[str]:
        return [*COMMAND, "--input_dir", str(tmp_path / "in"), "--output_dir", str(tmp_path / output)]

    subprocess.run(command("whole"), cwd=ROOT, check=True, capture_output=True)
    run = subprocess.Popen(command("killed"), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not list((tmp_path / "killed").rglob("*.mp4")):
        time.sleep(0.01)
    second = subprocess.run(command("killed"), cwd=ROOT, capture_output=True, text=True)
    was_running = run.poll() is None
    children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split() if was_running else []
    run.kill()
    run.wait()
    assert not was_running or (second.returncode == 1 and "another run is writing there" in second.stderr)
    assert eventually(lambda: not any(Path(f"/proc/{child}").exists() for child in children))
    subprocess.run(command("killed"), cwd=ROOT, check=True, capture_output=True)
    whole, killed = (tmp_path / name for name in ("whole", "killed"))
    assert (whole / "manifest.csv").read_bytes() == (killed / "manifest.csv").read_bytes()
    for path in whole.rglob("*.mp4"):
        assert (killed / path.relative_to(whole)).read_bytes() == path.read_bytes()


def repeat(source: Path, target: Path, times: int, seconds: int) -> Path:
    """`source`, `seconds` long, so many times one after the other, nothing encoded again."""
    with av.open(str(source)) as container:
        packets = [packet for packet in container.demux() if packet.size]
        with av.open(str(target), "w") as out:
            streams = {stream.index: out.add_stream_from_template(stream) for stream in container.streams}
            parts = [(packet, bytes(packet), packet.stream.index, packet.pts, packet.dts) for packet in packets]
            for number in range(times):
                for packet, data, index, pts, dts in parts:
                    copy, shift = av.Packet(data), int(number * seconds / packet.time_base)
                    copy.pts, copy.dts, copy.time_base = pts + shift, dts + shift, packet.time_base
                    copy.duration, copy.is_keyframe, copy.stream = packet.duration, packet.is_keyframe, streams[index]
                    out.mux(copy)
    return target


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


@pytest.mark.slow
def test_memory_does_not_grow_with_the_length(here, tmp_path, monkeypatch):
    """An hour without a cut: in memory its frames would take 400 MiB, its audio 220."""
    (tmp_path / "in").mkdir()
    still = [np.full((48, 64, 3), 90, np.uint8)] * 1500
    options = {"crf": "30", "preset": "ultrafast", "bf": "0"}
    minute = write_clip(tmp_path / "minute.mkv", 1500, images=still, options=options, tone_seconds=59.8)
    repeat(minute, tmp_path / "in" / "long.mkv", 60, 60)
    used = []
    save = Records.save_part

    def watched(self, *args):
        used.append(resident_mib())
        save(self, *args)

    monkeypatch.setattr(Records, "save_part", watched)
    assert process(RunOptions(tmp_path / "in", tmp_path / "out"), ProcessSettings(steps=("shots",))).kept == 720
    assert len(used) == 720 and max(used) - used[60] < 40
