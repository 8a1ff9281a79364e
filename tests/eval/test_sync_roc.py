"""The share of true and of dubbed clips that data processing keeps."""

import csv
from pathlib import Path

import numpy as np
import pytest

from eval import sync_roc
from latentsync.metrics.clip_sync import ClipSync
from latentsync.utils.errors import UserError

WINDOWS = 60


def clip(number: int) -> ClipSync:
    """Video and audio of a clip share random vectors, those of two clips do not."""
    vectors = np.random.default_rng(number).standard_normal((WINDOWS, 12))
    return ClipSync("made up", 0, 1.0, 0.1, np.zeros(1), 0, WINDOWS, vectors, vectors)


class Scorer:
    default_threshold = 0.15

    def score_faces(self, faces: np.ndarray, wave: np.ndarray) -> ClipSync:
        if not len(faces):
            raise UserError("too short")
        return clip(int(wave[0]))


@pytest.fixture
def videos(tmp_path, monkeypatch) -> Path:
    for number in range(6):
        (tmp_path / f"{number}.mp4").touch()

    def track(video: Path, *args) -> tuple[np.ndarray, np.ndarray]:
        return np.zeros(int(video.stem != "5")), np.array([float(video.stem)])

    monkeypatch.setattr(sync_roc, "longest_track", track)
    monkeypatch.setattr(sync_roc, "open_sync_scorer", lambda *args: Scorer())
    return tmp_path


def test_true_voices_are_kept_and_foreign_ones_dropped(videos, capsys):
    assert sync_roc.main(["--videos_dir", str(videos), "--output_dir", str(videos / "out"), "--dubs", "3"]) == 0
    output = capsys.readouterr()
    assert "5 true clips, 15 dubbed ones" in output.out and "too short" in output.err
    with (videos / "out" / "roc.csv").open(newline="") as file:
        rates = {float(row["preference"]): row for row in csv.DictReader(file)}
    assert float(rates[0.95]["true_kept"]) == 1 and float(rates[0.95]["dubbed_kept"]) == 0
    with (videos / "out" / "clips.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 20 and all((row["video"] == row["voice"]) == (row["true"] == "1") for row in rows)
    assert (videos / "out" / "roc.png").stat().st_size > 5000


def test_the_summary_names_what_each_test_adds(videos, capsys):
    """Counts from the written values of twenty clips: confident near offsets, and equal offsets in both halves."""
    sync_roc.main(["--videos_dir", str(videos), "--output_dir", str(videos / "out"), "--dubs", "3"])
    summary = dict(line.split(": ") for line in capsys.readouterr().out.splitlines()[1:])
    with (videos / "out" / "clips.csv").open(newline="") as file:
        dubbed = [row for row in csv.DictReader(file) if row["true"] == "0"]
    near = [row for row in dubbed if float(row["confidence"]) >= 0.15 and abs(int(row["offset"])) <= 6]
    both = [row for row in near if row["first_half"] and abs(int(row["first_half"]) - int(row["second_half"])) <= 1]
    assert summary["confidence and offset alone"] == f"100.0%, {len(near) / 15:.1%}"
    assert summary["and one offset in both halves"] == f"100.0%, {len(both) / 15:.1%}"
    assert list(summary)[2:] == [f"preference {each:.2f}" for each in sync_roc.SHOWN]


def test_one_clip_is_too_few(videos, capsys):
    for number in range(1, 5):
        (videos / f"{number}.mp4").unlink()
    assert sync_roc.main(["--videos_dir", str(videos)]) == 1
    assert "at least two clips" in capsys.readouterr().err
