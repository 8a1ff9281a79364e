"""Tables of sync over files and folders; a video that cannot be scored is a row."""

import csv
from pathlib import Path

import numpy as np
import pytest

from eval import eval_sync_conf
from eval.eval_sync_conf import main
from latentsync.metrics.clip_sync import ClipSync
from latentsync.utils.errors import UserError


class FixedScorer:
    """Scores by file name."""

    name = "fixed"

    def score_video(self, path: Path) -> list[ClipSync]:
        if "bad" in path.name:
            raise UserError(f"{path}: no face\nat all")
        values = np.array([1.0, np.nan, 2.0])
        second = ClipSync("fixed", 4, 1.0, 9.0, values[:0], 5, 20)
        return [ClipSync("fixed", -1, 6.0, 7.0, values, 0, 60), *([second] if "two" in path.name else [])]


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(eval_sync_conf, "open_sync_scorer", lambda *args: FixedScorer())
    folder = tmp_path / "vidéos und mehr"
    (folder / "sub").mkdir(parents=True)
    for name in ("a.mp4", "sub/two faces.mov", "notes.txt"):
        (folder / name).touch()
    (folder / "sub" / "loop").symlink_to(folder)
    return folder


def test_scores_a_folder(folder, tmp_path, capsys):
    table, windows = tmp_path / "out" / "table.csv", tmp_path / "windows.csv"
    assert main(["--videos_dir", str(folder), "--output", str(table), "--windows_output", str(windows)]) == 0
    rows = list(csv.DictReader(table.open(newline="")))
    assert [(Path(row["video"]).name, row["face"], row["offset"]) for row in rows] == [
        ("a.mp4", "0", "-1"),
        ("two faces.mov", "0", "-1"),
        ("two faces.mov", "1", "4"),
    ]
    assert rows[0]["confidence"] == "6.0000" and rows[2]["start_frame"] == "5"
    assert [row["frame"] for row in csv.DictReader(windows.open(newline=""))] == ["0", "2"] * 2
    assert capsys.readouterr().out.splitlines()[-1] == (
        "fixed: 2 videos, confidence 6.000, min distance 7.000, offset within 1 frame 100.0%"
    )


def test_unusable_videos_are_rows_and_set_the_exit_code(folder, tmp_path, capsys):
    (folder / "bad\nname.mp4").touch()
    table = tmp_path / "table.csv"
    assert main(["--videos_dir", str(folder), "--output", str(table)]) == 1
    rows = list(csv.DictReader(table.open(newline="")))
    assert len(rows) == 4 and "no face" in rows[1]["error"] and rows[1]["confidence"] == ""
    shown = capsys.readouterr().out
    assert shown.splitlines()[-1].endswith("; 1 could not be scored")
    assert len(shown.splitlines()) == 5  # line breaks in names do not break lines


def test_nothing_to_score_is_an_error(tmp_path, capsys):
    assert main(["--videos_dir", str(tmp_path / "none")]) == 1
    assert "no such folder" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", b"not a video"])
def test_a_broken_file_with_the_real_scorer(tmp_path, capsys, content):
    video = tmp_path / "b.mp4"
    video.write_bytes(content)
    assert main(["--video_path", str(video), "--scorer", "embedded"]) == 1
    assert "none of 1 videos could be scored" in capsys.readouterr().out
