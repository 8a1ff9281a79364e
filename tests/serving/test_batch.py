"""Lists of jobs: errors with line numbers, rows that are skipped and repeated."""

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from latentsync.serving.batch import DONE, FAILED, KEPT, Batch, read_list, rows_of_files
from latentsync.serving.batch_report import write_report
from latentsync.serving.jobs import JobKind
from latentsync.utils.errors import UserError
from scripts.batch import main
from tests.serving.fakes import FakeRunner, endless, service_in, working, write_files, write_result
from tests.waiting import HANG_SECONDS, eventually

PROJECT_ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def folder(tmp_path):
    write_files(tmp_path)
    return tmp_path


def write(folder, text: str):
    path = folder / "jobs.csv"
    path.write_text(text, encoding="utf-8")
    return path


def run(folder, path, runner):
    service = service_in(folder / "ws")
    with working(service, runner):
        return [(result.row.line, result.status, result.reason) for result in Batch(service).run(read_list(path))]


def test_rows_and_their_options(folder):
    path = write(
        folder, "video,audio,out,seed,keep_fps,face\nface.png,voice.mp4,o/a.mp4,7,true,\nvoice.mp4,,b.mp4,,,\n"
    )
    first, second = read_list(path)
    assert (first.options.seed, first.options.keep_fps, first.options.face) == (7, True, "largest")
    assert (first.kind, second.kind) == (JobKind.LIPSYNC, JobKind.INTERPOLATE)
    assert first.video == folder / "face.png" and second.line == 3


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "columns video and out are needed"),
        ("video,out\n", "no rows"),
        ("video,out,color\n", "unknown columns color"),
        ("video,out,seed\na,b.mp4,x\n", "line 2: seed must be a whole number"),
        ("video,out\na,b.mp4\n,c.mp4\n", "line 3 has no video"),
        ("video,out\na,b.avi\n", "line 2: b.avi must end in .mp4"),
        ("video,out\na,b.mp4,c\n", "line 2 has more cells"),
        ("video,out\na,b.mp4\nc,b.mp4\n", "lines 2 and 3 both write"),
    ],
)
def test_wrong_lists_are_refused_with_the_line(folder, text, problem):
    with pytest.raises(UserError, match=problem):
        read_list(write(folder, text))


def test_finished_pairs_are_skipped_and_failed_or_changed_ones_repeated(folder):
    path = write(folder, "video,audio,out,seed\nface.png,voice.mp4,o/a.mp4,1\nnone.png,voice.mp4,b.mp4,\n")
    runner = FakeRunner()
    results = run(folder, path, runner)
    assert [result[:2] for result in results] == [(2, DONE), (3, FAILED)] and "none.png" in results[1][2]
    assert (folder / "o" / "a.mp4").read_bytes() == b"a result"
    assert list((folder / "ws" / "jobs").iterdir()) == []

    shutil.copyfile(folder / "face.png", folder / "none.png")
    assert [result[:2] for result in run(folder, path, runner)] == [(2, KEPT), (3, DONE)]
    assert len(runner.seen) == 2

    path.write_text(path.read_text().replace("a.mp4,1", "a.mp4,2"))
    assert [result[:2] for result in run(folder, path, runner)] == [(2, DONE), (3, KEPT)]
    (folder / "b.mp4").unlink()
    assert [result[:2] for result in run(folder, path, runner)] == [(2, KEPT), (3, DONE)]


def test_other_weights_make_other_results(folder, monkeypatch):
    """Rows that need a model are done again when its files are replaced; the others are kept."""
    path = write(folder, "video,audio,out\nface.png,voice.mp4,a.mp4\nvoice.mp4,,b.mp4\n")
    runner = FakeRunner()
    assert [result[1] for result in run(folder, path, runner)] == [DONE, DONE]
    assert [result[1] for result in run(folder, path, runner)] == [KEPT, KEPT]
    monkeypatch.setattr("latentsync.serving.batch.weights_of", lambda *_: "others")
    assert [result[1] for result in run(folder, path, runner)] == [DONE, KEPT]


def test_an_interrupted_list_resumes_with_its_jobs(folder):
    path = write(folder, "video,audio,out\nface.png,voice.mp4,a.mp4\n")

    service = service_in(folder / "ws", lease_seconds=0.1)
    row = read_list(path)[0]
    job_id = Batch(service)._begin(row)
    claimed = service.store.claim("dead")
    assert claimed.id == job_id
    service.store.recover(3, owner="dead")
    runner = FakeRunner(write_result)
    assert run(folder, path, runner) == [(2, DONE, "")]
    assert len(runner.seen) == 1


def test_folders_and_patterns(folder):
    voices, clips = folder / "voices", folder / "clips"
    for path in (voices / "a.wav", voices / "b.mp3", clips / "a.mp4", clips / "b.png", clips / "notes.txt"):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    rows = rows_of_files([str(clips)], voices, folder / "out", {"seed": "3"})
    assert [(row.video.name, row.audio.name, row.out.name) for row in rows] == [
        ("a.mp4", "a.wav", "a.mp4"),
        ("b.png", "b.mp3", "b.mp4"),
    ]
    assert rows[0].options.seed == 3
    one_voice = rows_of_files([f"{clips}/*.mp4", str(clips / "b.png")], voices / "a.wav", folder / "out")
    assert [row.audio for row in one_voice] == [voices / "a.wav"] * 2
    (voices / "b.mp3").unlink()
    with pytest.raises(UserError, match="no audio named b"):
        rows_of_files([str(clips)], voices, folder / "out")
    with pytest.raises(UserError, match="no video or image matches"):
        rows_of_files([f"{clips}/*.mov"], voices, folder / "out")
    (clips / "a.mov").touch()
    with pytest.raises(UserError, match="both write"):
        rows_of_files([str(clips)], voices / "a.wav", folder / "out")


def test_progress_counts_parts_of_rows(folder):
    path = write(folder, "video,audio,out\nface.png,voice.mp4,a.mp4\n")
    service, seen = service_in(folder / "ws"), []
    with working(service, FakeRunner(endless)):

        def follow(jobs) -> None:
            for job in jobs:
                seen.append(job.fraction)
                if job.fraction == 0.25:
                    service.cancel(job.id)

        results = Batch(service).run(read_list(path), on_progress=follow)
    assert results[0].status == FAILED and 0.25 in seen


def test_the_report_page(folder):
    path = write(folder, "video,audio,out,seed\nface.png,voice.mp4,o/a&b.mp4,7\nnone.png,voice.mp4,b.mp4,\n")
    service = service_in(folder / "ws")
    with working(service, FakeRunner()):
        results = Batch(service).run(read_list(path))
    write_report(folder / "jobs.report.html", results, 2)
    page = (folder / "jobs.report.html").read_text()
    assert 'src="o/a%26b.mp4"' in page and "seed=7" in page and "none.png" in page
    assert "2 rows: 1 done, 1 failed" in page and "http" not in page


RESUMED = """
import sys, threading, time
from pathlib import Path
from latentsync.serving.batch import Batch, read_list
from latentsync.serving.worker import Worker
from tests.serving.fakes import FakeRunner, service_in

folder = Path(sys.argv[1])

def work(out, on_progress):
    with (folder / "begun").open("a") as file:
        file.write("x")
    while (folder / "begun").stat().st_size == 2 and not (folder / "go").exists():
        time.sleep(0.02)
    out.write_bytes(b"a result")

service = service_in(folder / "ws", lease_seconds=0.5)
service.sweep()
worker = Worker(service.settings, sys.argv[2], "cpu", FakeRunner(work))
threading.Thread(target=worker.run, daemon=True).start()
for result in Batch(service).run(read_list(folder / "jobs.csv")):
    print(result.row.line, result.status)
worker.stopping.set()
"""


def test_a_killed_batch_resumes(folder):
    """Killed while the second row runs: the first is kept, and the second runs again."""
    write(folder, "video,audio,out,seed\nface.png,voice.mp4,a.mp4,1\nface.png,voice.mp4,b.mp4,2\n")
    command = [sys.executable, "-c", RESUMED, str(folder)]
    process = subprocess.Popen([*command, "1" * 32], cwd=PROJECT_ROOT)
    try:
        assert eventually(lambda: (folder / "a.mp4").exists() and (folder / "begun").read_text() == "xx")
    finally:
        process.kill()
        process.wait()
    assert not (folder / "b.mp4").exists()
    (folder / "go").touch()
    time.sleep(1.0)  # the lease of the dead worker ends
    again = subprocess.run([*command, "2" * 32], cwd=PROJECT_ROOT, capture_output=True, text=True, timeout=HANG_SECONDS)
    assert again.stdout.split() == ["2", "kept", "3", "done"], again.stderr
    assert (folder / "begun").read_text() == "xxx" and (folder / "b.mp4").read_bytes() == b"a result"


def test_the_command_tells_wrong_lists_in_one_line(tmp_path, capsys):
    assert main(["--list", str(tmp_path / "none.csv")]) == 1
    assert capsys.readouterr().err.startswith("error: ") and not (tmp_path / "none.work").exists()
