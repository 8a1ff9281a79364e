"""A SyncNet on whole clips: preferences and offsets, as recorded and with corrected audio."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from eval import eval_syncnet_clips
from eval.eval_syncnet_clips import main, score_clip, summary
from latentsync.metrics.sync import offset_score
from preprocess.write import write_faces


class Embeds:
    """A scorer whose windows of video and audio are given."""

    def __init__(self, vision: torch.Tensor, audio: torch.Tensor):
        self.vision, self.audio = vision, audio

    def embed(self, faces, wave):
        return self.vision, self.audio

    def score(self, faces, wave):
        return offset_score(self.vision, self.audio)


def early(frames: int, noise: float) -> Embeds:
    """40 windows whose audio is so many frames early, found through some noise."""
    torch.manual_seed(0)
    moments = torch.nn.functional.normalize(torch.rand(60, 16), dim=1)
    audio = torch.nn.functional.normalize(moments + noise * torch.rand(60, 16), dim=1)
    return Embeds(moments[10:50], audio[10 + frames : 50 + frames])


def score(scorer: Embeds, reference: Embeds | None = None) -> dict:
    return score_clip(scorer, torch.zeros(1), np.zeros(1), reference)


@pytest.mark.parametrize("frames", [3, -3])
def test_recordings_are_aligned_by_another_syncnet(frames):
    values = score(early(frames, 0.1), early(frames, 0.2))
    assert (values["offset"], values["reference_offset"], values["aligned_offset"]) == (frames, frames, 0)
    assert values["preference"] < 0.8 and values["aligned_preference"] == values["corrected_preference"] == 1.0


def test_large_offsets_are_not_corrected():
    far = score(early(3, 0.1), early(8, 0.2))
    assert (far["reference_offset"], far["aligned_offset"]) == (8, 3)
    assert far["aligned_preference"] == far["preference"]


def test_a_wrong_reference_lowers_the_preference():
    wrong = score(early(0, 0.1), early(3, 0.2))
    assert wrong["aligned_offset"] == -3 and wrong["aligned_preference"] < 0.8 < wrong["preference"]
    assert "aligned_offset" not in score(early(3, 0.1))


def test_summary_weighs_windows_and_counts_clips():
    rows = [
        {"windows": 30, "offset": -1, "preference": 1.0, "corrected_preference": 1.0},
        {"windows": 10, "offset": 2, "preference": 0.8, "corrected_preference": 0.9},
    ]
    assert summary(rows) == (
        "2 clips, 40 windows: preference 95.0%, corrected_preference 97.5%, offset within 1 frame 50.0%"
    )


def test_command(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setattr(eval_syncnet_clips, "open_scorer", lambda *args: early(2, 0.1))
    for name in ("a", "b"):
        write_faces(tmp_path / f"{name}.mp4", np.full((30, 64, 64, 3), 90, np.uint8), np.zeros(30 * 640, np.float32))
    (tmp_path / "list.txt").write_text("a.mp4\tann\tseen\nb.mp4\tbob\tunseen\nnone.mp4\tbob\tunseen\n")
    words = ["--fileslist", str(tmp_path / "list.txt"), "--output", str(tmp_path / "out.csv")]
    assert main([*words, "--reference", "other.yaml"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in shown] == ["seen", "unseen"] and "aligned_offset within" in shown[0]
    with (tmp_path / "out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["person"], row["offset"], row["aligned_offset"]) for row in rows] == [
        ("ann", "2", "0"),
        ("bob", "2", "0"),
    ]
    (tmp_path / "list.txt").write_text("none.mp4\n")
    assert main(words) == 1 and "no clip could be scored" in capsys.readouterr().err


def test_missing_weights_are_named(tmp_path, capsys):
    (tmp_path / "list.txt").write_text("a.mp4\n")
    words = ["--fileslist", str(tmp_path / "list.txt"), "--inference_ckpt_path", "missing.pt"]
    assert main(words) == 1
    assert "missing.pt" in capsys.readouterr().err
