"""Outputs that appear completely or not at all, and folders that are removed if they stay empty."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from latentsync.utils import files
from latentsync.utils.errors import UserError
from latentsync.utils.files import HiddenFile, parent_folders, staged_output


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Where results go, and a temp dir in which somebody else has a file."""
    out, temp = tmp_path / "out", tmp_path / "temp"
    out.mkdir()
    temp.mkdir()
    (temp / "somebody's").write_text("kept")
    return out, temp


def test_without_temp_dir_the_target_itself(tmp_path):
    with staged_output(tmp_path / "a.mp4", None) as path:
        assert path == tmp_path / "a.mp4"
    assert names(tmp_path) == []


def test_with_temp_dir_the_target_is_replaced_at_the_end(folders):
    out, temp = folders
    (out / "a.MP4").write_text("old")
    with staged_output(out / "a.MP4", temp) as path:
        path.write_text("new")
        assert path.suffix == ".mp4" and path.parent.parent == temp
        assert (out / "a.MP4").read_text() == "old"
    assert (out / "a.MP4").read_text() == "new"
    assert names(out) == ["a.MP4"] and names(temp) == ["somebody's"]


def test_a_missing_temp_dir_is_made(tmp_path):
    with staged_output(tmp_path / "a.mp4", tmp_path / "x" / "y") as path:
        path.write_text("new")
    assert (tmp_path / "a.mp4").read_text() == "new" and names(tmp_path / "x" / "y") == []


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_exception_leaves_everything_as_it_was(folders, error):
    out, temp = folders
    (out / "a.mp4").write_text("old")
    with pytest.raises(error), staged_output(out / "a.mp4", temp) as path:
        path.write_text("half")
        raise error
    assert (out / "a.mp4").read_text() == "old"
    assert names(out) == ["a.mp4"] and names(temp) == ["somebody's"]


def test_two_runs_share_a_temp_dir(folders):
    out, temp = folders
    with staged_output(out / "a.mp4", temp) as first, staged_output(out / "b.mp4", temp) as second:
        first.write_text("a")
        second.write_text("b")
    assert (out / "a.mp4").read_text() == "a" and (out / "b.mp4").read_text() == "b"
    assert names(temp) == ["somebody's"]


def test_a_link_stays_a_link(folders, tmp_path):
    out, temp = folders
    (out / "link.mp4").symlink_to(tmp_path / "real.mp4")
    with staged_output(out / "link.mp4", temp) as path:
        path.write_text("new")
    assert (out / "link.mp4").is_symlink() and (tmp_path / "real.mp4").read_text() == "new"


def test_a_failing_move_is_one_line_and_leaves_nothing(folders, monkeypatch):
    out, temp = folders

    def full(source: Path, target: Path) -> None:
        Path(target).write_text("ha")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.shutil, "move", full)
    with pytest.raises(UserError, match="a.mp4.*No space left"), staged_output(out / "a.mp4", temp) as path:
        path.write_text("new")
    assert names(out) == [] and names(temp) == ["somebody's"]


def test_a_file_is_no_temp_dir(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="temp dir .*file cannot be written"):
        with staged_output(tmp_path / "a.mp4", tmp_path / "file"):
            pass


def test_parent_folders_stay_after_success_only(tmp_path):
    with pytest.raises(ValueError), parent_folders(tmp_path / "x" / "y" / "a.mp4"):
        assert (tmp_path / "x" / "y").is_dir()
        raise ValueError
    assert names(tmp_path) == []
    with parent_folders(tmp_path / "x" / "y" / "a.mp4"):
        pass
    assert (tmp_path / "x" / "y").is_dir()


def test_parent_folders_that_were_there_or_are_in_use_stay(tmp_path):
    (tmp_path / "mine").mkdir()
    with pytest.raises(ValueError), parent_folders(tmp_path / "mine" / "x" / "y" / "a.mp4"):
        (tmp_path / "mine" / "x" / "other").write_text("")
        raise ValueError
    assert names(tmp_path / "mine") == ["x"] and names(tmp_path / "mine" / "x") == ["other"]


@pytest.mark.parametrize("name", ["file/a.mp4", "file/x/a.mp4", f"{'n' * 300}/a.mp4", "new/nul\0/a.mp4"])
def test_impossible_parent_folders(tmp_path, name):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be created"), parent_folders(os.path.join(tmp_path, name)):
        pass
    assert names(tmp_path) == ["file"]


def test_files_of_a_killed_process_are_removed_by_the_next_one(tmp_path):
    program = (
        "import os, signal, sys; from pathlib import Path; from latentsync.utils.files import HiddenFile;"
        "file = HiddenFile(Path(sys.argv[1])); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "a.mp4")], cwd=Path(__file__).parents[2])
    (abandoned,) = tmp_path.iterdir()
    assert abandoned.name.startswith(".latentsync-") and abandoned.suffix == ".mp4"
    kept = [".latentsync-1.mp4", f".latentsync-{'a' * 32}.mp4.txt", f".latentsync-{'b' * 32}.wav", "result.mp4"]
    for name in kept:
        (tmp_path / name).touch()
    (tmp_path / "elsewhere").touch()
    (tmp_path / f".latentsync-{'c' * 32}.mp4").symlink_to(tmp_path / "elsewhere")
    (tmp_path / f".latentsync-{'d' * 32}.mp4").mkdir()
    before = set(names(tmp_path)) - {abandoned.name}
    first = HiddenFile(tmp_path / "b.mp4")
    second = HiddenFile(tmp_path / "b.mp4")  # while the first is in use
    assert set(names(tmp_path)) == before | {first.path.name, second.path.name}
    first.path.write_bytes(b"x")
    first.put_in_place()
    second.discard()
    assert set(names(tmp_path)) == before | {"b.mp4"} and (tmp_path / "b.mp4").read_bytes() == b"x"
