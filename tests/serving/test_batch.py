"""Lists of jobs: what is refused with its line, what is done once, what is done again."""

import shutil

import pytest

from latentsync.serving.batch import DONE, FAILED, KEPT, Batch, read_list
from latentsync.serving.jobs import JobKind
from latentsync.utils.errors import UserError
from scripts.batch import main
from tests.serving.fakes import FakeRunner, service_in, working, write_files, write_result


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


def test_a_list_is_done_once_and_what_failed_or_changed_again(folder):
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


def test_an_interrupted_list_goes_on_with_the_jobs_it_had(folder):
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


def test_the_command_tells_wrong_lists_in_one_line(tmp_path, capsys):
    assert main(["--list", str(tmp_path / "none.csv")]) == 1
    assert capsys.readouterr().err.startswith("error: ") and not (tmp_path / "none.work").exists()
