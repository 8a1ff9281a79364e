"""One command from a list of videos to the row of the published table."""

import csv
from pathlib import Path

import pytest

from eval import metrics, paper_table, run
from latentsync.utils.errors import UserError
from tests.eval.test_run import lent
from tests.pipelines.scenes import clip

assert lent  # a fixture


@pytest.fixture
def videos(tmp_path, lent, monkeypatch) -> Path:
    for name in ("a", "b"):
        clip(tmp_path / f"{name}.mp4", 6, tone_seconds=0.24)
    (tmp_path / "list.txt").write_text("a.mp4\n\nb.mp4\n")

    def pipeline(video: Path, audio: Path, target: Path, **options):
        target.write_bytes(video.read_bytes())
        return type("Result", (), {"num_frames": 6})

    monkeypatch.setattr(run, "open_pipeline", lambda *args: pipeline)
    return tmp_path


def call(folder: Path, *more: str) -> int:
    words = ["--videos", str(folder / "list.txt"), "--output_dir", str(folder / "out"), "--model", "embedded"]
    return paper_table.main([*words, "--device", "cpu", "--resolution", "128", *more])


def test_the_row_stands_under_the_published_ones(videos, capsys):
    assert call(videos, "--partial") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| method | FID | SSIM | Sync-C | LMD | FVD |"
    assert "| LatentSync, published | 7.22 | 0.79 | 8.9 | 0.3 | 162.7 |" in lines
    assert lines[-1].startswith("| embedded, 2 videos here | n/a | 1.000 | 0.")  # results are copies
    assert lines[-1].endswith("| 0.00 | n/a |")
    assert "--partial" in (videos / "out" / "table.md").read_text()


def test_a_part_of_each_video_is_compared_with_the_same_part(videos):
    assert call(videos, "--partial", "--max_seconds", "0.16") == 0
    with (videos / "out" / "clips.csv").open(newline="") as file:
        assert [row["frames"] for row in csv.DictReader(file)] == ["4"] * 4


def test_missing_weights_are_named_before_anything_is_made(videos, capsys):
    assert call(videos, "--model", "latentsync-1.5") == 1
    message = capsys.readouterr().err
    for name in ("inception.x", "i3d.x", "published SyncNet", "sfd_face.pth", "weights of latentsync-1.5", "--partial"):
        assert name in message
    assert "`latentsync download --model latentsync-1.5 --model auxiliary --model inception`" in message
    assert not (videos / "out" / "results").exists()
    assert metrics.I3D.name == "i3d.x"


@pytest.mark.parametrize(
    ("text", "message"), [("", "the list is empty"), ("a.mp4\nc.mp4\n", "1 of 2 videos do not exist, the first is")]
)
def test_bad_lists(videos, text, message):
    (videos / "list.txt").write_text(text)
    with pytest.raises(UserError, match=message):
        paper_table.read_list(videos / "list.txt")
