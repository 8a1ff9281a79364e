"""Lists of kept clips: for training, for validation, and for images alone."""

import csv
import re

import cv2
import numpy as np
import pytest
from PIL import Image

from latentsync.data.clips import read_fileslist
from latentsync.utils.errors import UserError
from latentsync.utils.paths import PROJECT_ROOT
from preprocess.lists import ListOptions, choose, spread
from preprocess.manifest import ClipRow, SourceRecord, manifest_rows
from preprocess.report import _drops, _gate, _people
from preprocess.runner import RunOptions, process
from preprocess.settings import ProcessSettings
from preprocess.source_work import person_of, process_source
from preprocess.tools import Tools
from tests.media.synthetic import write_clip
from tests.pipelines.scenes import clip, draw_scene


def kept(person: str, number: int, has_sound: int = 1, folder: str = "") -> dict:
    name = f"{person}_{number:03d}"
    return {
        "kind": "clip", "status": "kept", "source": f"{folder}{name}.mp4", "person": person, "has_sound": has_sound,
        "clip": f"clips/{person}/{name}_0000.mp4",
    }  # fmt: skip


def people_of(rows: list[dict]) -> dict[str, int]:
    people = [row["person"] for row in rows]
    return {person: people.count(person) for person in people}


def test_held_out_clips_are_never_trained_on():
    rows = [
        kept(person, index) for person, count in (("anna", 100), ("bert", 3), ("carl", 2)) for index in range(count)
    ]
    lists = choose(rows, ListOptions(10, ("carl_*", "bert_001")))
    names = [{row["clip"] for row in some} for some in (lists.faces, lists.held_out)]
    assert not names[0] & names[1] and lists.train == lists.faces
    assert people_of(lists.train) == {"anna": 10, "bert": 2}
    assert people_of(lists.held_out) == {"carl": 2, "bert": 1, "anna": 40}
    more = choose(rows, ListOptions(10, ("carl_*", "bert_001"), held_out_per_person=200))
    assert people_of(more.held_out)["anna"] == 90 and more.train == lists.train
    assert choose(rows, ListOptions(10)).held_out == [] and len(choose(rows, ListOptions()).train) == 105


def test_patterns_match_names_and_paths():
    rows = [kept("anna", 1, folder="2019/"), kept("anna", 2, folder="2020/")]
    for pattern in ("anna_001", "2019/*"):
        assert [row["source"] for row in choose(rows, ListOptions(hold_out=(pattern,))).held_out] == [
            "2019/anna_001.mp4"
        ]
    assert choose(rows, ListOptions(hold_out=("anna",))).held_out == []


def test_clips_without_audio_do_not_count_toward_the_limit():
    rows = [kept("anna", index) for index in range(6)] + [kept("anna", 10, 0), kept("anna", 11)]
    lists = choose(rows, ListOptions(4, ignore_audio=("anna_011",)))
    assert [row["clip"][-12:-9] for row in lists.train] == ["000", "002", "003", "005"]
    assert len(lists.faces) == 6


def test_clips_are_spread_evenly():
    assert spread(10, 4) == [0, 3, 6, 9] and spread(2, 5) == [0, 1] and spread(0, 3) == []
    with pytest.raises(UserError, match="must be 1 or more"):
        ListOptions(0)
    with pytest.raises(UserError, match="must be 0 or more"):
        ListOptions(held_out_per_person=-1)


def test_images_and_silent_videos_are_used_for_faces(tmp_path, monkeypatch, detector):
    monkeypatch.setattr(detector, "close", lambda: None)
    monkeypatch.setattr("preprocess.tools.create_detector", lambda *args, **options: detector)
    monkeypatch.setattr(
        "preprocess.runner.run_local",
        lambda files, job, *_: (process_source(file, job, Tools(job.settings)) for file in files),
    )
    folder = tmp_path / "in" / "all"
    folder.mkdir(parents=True)
    large = cv2.resize(draw_scene(), None, fx=2, fy=2)
    Image.fromarray(large).save(folder / "eve.png")
    Image.fromarray(np.full_like(large, 90)).save(folder / "wall_1.png")
    clip(folder / "bob_1.mp4", 15, lambda index: large)
    clip(folder / "bob_2.mp4", 15, lambda index: large, tone_seconds=0.6)
    clip(folder / "bob_3.mp4", 16, lambda index: large, tone_seconds=0.64)
    settings = ProcessSettings(
        steps=("shots", "faces", "quality"), min_seconds=0.2, resolution=64, min_quality=0.0, keep_silent=True,
        person_pattern=r"([^/]+?)(_[^/_]*)?\.[^./]+$",
    )  # fmt: skip
    lists = ListOptions(hold_out=("bob_3",))
    summary = process(RunOptions(tmp_path / "in", out := tmp_path / "out", lists=lists), settings)
    with (out / "manifest.csv").open(newline="", encoding="utf-8") as file:
        clips = {row["source"]: row for row in csv.DictReader(file) if row["kind"] == "clip"}
    assert (clips["all/eve.png"]["frames"], clips["all/eve.png"]["has_sound"]) == ("1", "0")
    assert clips["all/wall_1.png"]["reason"] == "no face in view" and summary.kept == 4
    assert [item.person for item in read_fileslist(out / "train.txt")] == ["bob"]
    assert [item.person for item in read_fileslist(out / "faces.txt")] == ["bob", "bob", "eve"]
    (held_out,) = read_fileslist(out / "held_out" / "train.txt")
    assert held_out.path.is_file() and held_out.path.stem.startswith("bob_3_")
    process(RunOptions(tmp_path / "in", out), settings)
    assert not (out / "held_out" / "train.txt").exists()


def test_whole_frames_of_a_silent_video(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "preprocess.runner.run_local",
        lambda files, job, *_: (process_source(file, job, Tools(job.settings)) for file in files),
    )
    (tmp_path / "in").mkdir()
    write_clip(tmp_path / "in" / "a.mp4", 20)
    summary = process(
        RunOptions(tmp_path / "in", tmp_path / "out"), ProcessSettings(steps=(), min_seconds=0.2, keep_silent=True)
    )
    assert (summary.kept, len(summary.lists.train), len(summary.lists.faces)) == (1, 0, 1)


def test_person_pattern(tmp_path):
    assert person_of("id7/talk/001.mp4", r"^[^/]+") == "id7"
    (tmp_path / "in").mkdir()
    write_clip(tmp_path / "in" / "a.mp4", 20, tone_seconds=0.8)
    with pytest.raises(UserError, match="is not found in a.mp4"):
        process(RunOptions(tmp_path / "in", tmp_path / "out"), ProcessSettings(steps=(), person_pattern="^id"))
    with pytest.raises(UserError, match="is not a valid regular expression"):
        ProcessSettings(person_pattern="(")


def test_the_report_describes_the_sync_step():
    """The figures are those of the table in the docs."""
    found = _gate([{"sync_scorer": "embedded"}, {"sync_scorer": "embedded"}, {}]) or ""
    page = (PROJECT_ROOT / "docs" / "data_processing.md").read_text(encoding="utf-8")
    row = next(line for line in page.splitlines() if "(default) |" in line)
    assert re.findall(r"[\d.]+%", found) == re.findall(r"[\d.]+%", row)[:2] and "eval.sync_roc" not in found
    assert "have not been measured: run `python -m eval.sync_roc`" in (_gate([{"sync_scorer": "syncnet_v2"}]) or "")
    assert _gate([{}]) is None


def test_reasons_and_hours_of_clips_gaps_and_people():
    clips = [
        ClipRow(0, 0, 0.0, 125, {}, path="clips/a/0.mp4"),
        ClipRow(0, 1, 5.0, 50, {}, "sync", "sync confidence 0.10, 0.15 is needed"),
        ClipRow(1, 0, 7.0, 75, {}, "sync", "sync confidence 0.12, 0.15 is needed"),
        ClipRow(1, 1, 10.0, 25, {}, "faces", "no face in view", is_gap=True),
    ]
    record = SourceRecord("in", "a_1.mp4", 1, "", "a", "0" * 64, "", clips=clips)
    source, *rows = manifest_rows([record])
    assert (source["clips_kept"], source["clips_dropped"]) == (1, 2)
    assert [row["kind"] for row in rows] == ["clip"] * 3 + ["gap"] and rows[3]["face"] == ""
    sync, gap = _drops(rows)
    assert sync["reasons"] == [("sync confidence …, 0.15 is needed", 2)] and sync["hours"] == pytest.approx(5 / 3600)
    assert (gap["kind"], gap["step"], gap["reasons"]) == ("gap", "faces", [("no face in view", 1)])
    (person,) = _people(rows[:3])
    assert (person.kept, person.dropped, person.steps) == (1, 2, {"sync": 2})
    assert (person.hours_kept, person.hours_dropped) == pytest.approx((5 / 3600, 5 / 3600))
