"""The curve of shifts, and training curves."""

import csv
from pathlib import Path

import numpy as np
import pytest

from eval import draw_syncnet_lines, offset_curve
from eval.draw_syncnet_lines import read_curve, smooth
from eval.offset_curve import REACH, shift_clip
from latentsync.metrics.clip_sync import ClipSync


def test_audio_is_shifted_without_padding():
    faces, wave = np.arange(20), np.repeat(np.arange(20), 640)
    early = shift_clip(faces, wave, 3)
    assert early[0].tolist() == list(range(17)) and early[1][0] == 3 and len(early[1]) == 17 * 640
    late = shift_clip(faces, wave, -3)
    assert late[0].tolist() == list(range(3, 20)) and late[1][0] == 0 and len(late[1]) == 17 * 640


class DetectsEarlyAudioOnly:
    name, min_frames = "half blind", 4

    def score_faces(self, faces: np.ndarray, wave: np.ndarray) -> ClipSync:
        shift = int(wave[0]) - int(faces[0, 0, 0, 0])
        return ClipSync("half blind", max(shift, 0), 1.0, 1.0, np.zeros(1))


@pytest.fixture
def clips(tmp_path, monkeypatch) -> Path:
    for name in ("a.mp4", "b.mp4", "off.mp4", "small.mp4"):
        (tmp_path / name).touch()
    faces = np.broadcast_to(np.arange(40, dtype=np.uint8)[:, None, None, None], (40, 2, 2, 3))
    waves = {name: np.repeat(np.arange(40), 640) for name in ("a.mp4", "b.mp4", "small.mp4")}
    waves["off.mp4"] = np.repeat(np.arange(5, 45), 640)
    monkeypatch.setattr(offset_curve, "open_sync_scorer", lambda *args: DetectsEarlyAudioOnly())
    monkeypatch.setattr(offset_curve, "probe_video", lambda path: path)
    monkeypatch.setattr(offset_curve, "load_audio", lambda path, rate: waves[path.name])
    monkeypatch.setattr(offset_curve, "aligned_tracks", lambda info, resolution: iter([(0, faces)]))
    monkeypatch.setattr(offset_curve, "face_pixels", lambda path: 20 if path.name == "small.mp4" else 120)
    return tmp_path


def test_share_of_shifts_that_are_found(clips, tmp_path, capsys):
    out = tmp_path / "out"
    assert offset_curve.main(["--videos_dir", str(clips), "--output_dir", str(out)]) == 0
    shown = capsys.readouterr()
    right = REACH + 2  # 0 to 8, and -1 for which 0 is near enough
    assert f"{right / (2 * REACH + 1):.1%} of 34 cases (2 clips)" in shown.out
    assert "off.mp4: face 120 pixels, own offset +5: skipped" in shown.err and "small.mp4" in shown.err
    rows = list(csv.DictReader((out / "offsets.csv").open(newline="")))
    assert len(rows) == 34 and sum(int(row["right"]) for row in rows) == 2 * right
    assert (out / "offsets.png").stat().st_size > 5000


def test_training_curves(tmp_path, capsys):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "train.csv").write_text("step,loss,lr\n10,0.7,1\n20,,1\n30,0.5,1\n")
    (tmp_path / "one" / "validation.csv").write_text("step,loss,accuracy\n20,0.6,0.8\n")
    assert read_curve(tmp_path / "one" / "train.csv", "loss") == ([10, 30], [0.7, 0.5])
    assert read_curve(tmp_path / "two" / "validation.csv", "loss") == ([], [])
    output = tmp_path / "lines.png"
    runs = [str(tmp_path / name) for name in ("one", "two")]
    assert draw_syncnet_lines.main([*runs, "--output", str(output)]) == 0
    assert output.read_bytes()[:4] == b"\x89PNG"
    assert draw_syncnet_lines.main([str(tmp_path), "--output", str(output)]) == 1
    assert "no train.csv" in capsys.readouterr().err


def test_smoothing_is_unbiased_at_the_start():
    assert smooth([2.0, 2.0, 2.0]) == pytest.approx([2.0] * 3)
    assert smooth([0.0, 1.0], 0.5) == pytest.approx([0, 2 / 3])
