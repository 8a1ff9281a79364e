"""Evaluation of the embedded model: its list, and its summary against targets."""

import csv
from pathlib import Path

import numpy as np
import pytest
from scipy.io import wavfile

from eval.methods import GROUND_TRUTH, Method
from eval.metrics import ClipMetrics
from eval.pairs import COLUMNS, read_pairs
from eval.report import Report
from latentsync.utils.errors import UserError
from latentsync.utils.tables import write_csv
from tests.media.synthetic import tone, write_audio, write_clip
from tools import evaluate_embedded
from tools.evaluate_embedded import Target, collect_videos, main, pairs_of, targets, write_padded_speech


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "videos").mkdir()
    for name in ("ann", "bob", "eve"):
        write_clip(tmp_path / "videos" / f"{name}.mp4", 5, tone_seconds=0.2)
    write_audio(tmp_path / "one.wav", tone(16000, 0.5))
    write_audio(tmp_path / "two.wav", tone(16000, 0.5))
    return tmp_path


def test_each_video_is_driven_in_three_ways(folder):
    videos = collect_videos([folder / "videos"], None)
    write_csv(
        folder / "pairs.csv",
        COLUMNS,
        pairs_of(videos, [folder / "one.wav", folder / "two.wav"], folder / "silence.wav"),
    )
    pairs = read_pairs(folder / "pairs.csv")
    assert [(pair.id, pair.group, pair.driving_audio.name) for pair in pairs[:4]] == [
        ("ann_own_audio", "own audio", "ann.mp4"),
        ("ann_other_voice", "other voice", "two.wav"),
        ("ann_silence", "silence", "silence.wav"),
        ("bob_own_audio", "own audio", "bob.mp4"),
    ]
    voices = [pair.driving_audio.name for pair in pairs if pair.group == "other voice"]
    assert voices == ["two.wav", "one.wav", "two.wav"]


def test_videos_that_were_trained_on_are_refused(folder):
    (folder / "train.txt").write_text("clips/bob_000.mp4\tbob\n")
    with pytest.raises(UserError, match="bob.mp4: clips of it are in"):
        collect_videos([folder / "videos"], folder / "train.txt")
    assert len(collect_videos([folder / "videos" / "ann.mp4"], folder / "train.txt")) == 1


def test_speech_is_between_silences(folder):
    write_padded_speech(folder / "out" / "silence.wav", folder / "one.wav")
    rate, wave = wavfile.read(folder / "out" / "silence.wav")
    assert (rate, len(wave)) == (16000, 56000)
    assert not wave[:24000].any() and not wave[-24000:].any() and np.abs(wave[24000:32000]).max() > 0.1


def report_of(folder: Path) -> Report:
    """Two videos; the model reaches 90% of the real confidence, and is off in one of two clips."""
    videos = [folder / "videos" / f"{name}.mp4" for name in ("ann", "bob")]
    write_csv(folder / "pairs.csv", COLUMNS, pairs_of(videos, [folder / "one.wav"], folder / "silence.wav"))
    pairs = read_pairs(folder / "pairs.csv")
    cells = {}
    for index, pair in enumerate(pairs):
        cells[GROUND_TRUTH, pair.id] = ClipMetrics({"lse_c": 1.0, "opening": 3.0})
        values = {"lse_c": 0.9, "offset": float(index), "sharpness": 0.95, "leak": 0.1, "opening": 4.0, "jitter": 1.1}
        cells["embedded", pair.id] = ClipMetrics(values)
    methods = [Method(GROUND_TRUTH, None), Method("embedded", folder / "results")]
    return Report(methods, pairs, cells, [], {})


def test_summary_against_targets(folder):
    found = {target.name: target for target in targets(report_of(folder), "embedded")}
    ratio = found["sync confidence, other voice / real"]
    assert ratio.value == pytest.approx(0.9) and ratio.cells[3] == "MISSED"
    offsets = found["clips with an offset within 1 frame, other voice"]
    assert offsets.value == 0.5  # their offsets are 1 and 4
    assert found["mouth opening, silence / speech"].value == pytest.approx(0.025)
    assert found["mouth sharpness, other voice / source"].cells[2:] == (">= 0.9", "met")
    assert Target("x", None, ">=", 1).cells == ("x", "n/a", ">= 1", "not measured")


def test_command(folder, monkeypatch, capsys):
    passed = []
    monkeypatch.setattr(
        evaluate_embedded.comparison, "run", lambda options, command: passed.append(options) or report_of(folder)
    )
    words = [str(folder / "videos"), "--voices", str(folder / "one.wav"), "--output_dir", str(folder / "out")]
    assert main([*words, "--every", "9", "--inference_steps", "2"]) == 0
    (options,) = passed
    assert (options.every, options.inference_steps, options.methods) == (9, "2", ["embedded=pipeline:embedded"])
    with (folder / "out" / "pairs.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 9
    shown = capsys.readouterr().out
    assert "mouth sharpness, other voice / source: 0.95 (target 0.9, met)" in shown
    assert (
        "| sync confidence, other voice / real | 0.9 | >= 0.95 | MISSED |"
        in (folder / "out" / "targets.md").read_text()
    )


def test_errors_are_reported(folder, capsys):
    assert main([str(folder / "videos" / "ann.mp4"), "--output_dir", str(folder / "out")]) == 1
    assert "give --voices, or more than one video" in capsys.readouterr().err
    words = [str(folder / "videos"), "--output_dir", str(folder / "out")]
    assert main([*words, "--speech", "missing.wav"]) == 1
    assert "missing.wav" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        main([*words, "--every", "0"])
    assert stop.value.code == 2
