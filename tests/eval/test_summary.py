"""From values to figures, and the same numbers in every form."""

import csv
import io
import json
import re

import numpy as np
import pytest
from eval.measures import MEASURES, Values
from eval.page import relative_url, write_page
from eval.table import Failure, as_csv, as_json, as_markdown, clips_as_csv, figures, heading, shown

from eval.methods import GROUND_TRUTH, Method
from eval.pairs import Pair

METHODS = [GROUND_TRUTH, "ours", "theirs"]
IDS = ["a", "b", "c"]


@pytest.fixture
def cells() -> dict:
    def values(lse_c: float, features: np.ndarray | None = None) -> Values:
        arrays = {"window_confidences": np.array([np.nan, 1.0, lse_c])}
        if features is not None:
            arrays["fid"] = features
        return Values({"lse_c": lse_c}, {"csim": "needs x.onnx", "psnr": "another voice"}, arrays, 75, 70)

    noise = np.random.default_rng(0).standard_normal((6, 4))
    return {
        (GROUND_TRUTH, "a"): values(7, noise[:3]),
        (GROUND_TRUTH, "b"): values(9, noise[3:]),
        (GROUND_TRUTH, "c"): values(2),
        ("ours", "a"): values(5.5, noise[:3] + 2),
        ("ours", "b"): values(6.5, noise[3:] + 2),
        ("theirs", "a"): values(8),
        ("theirs", "c"): values(100),
    }


def figure(rows, method, measure):
    return next(row for row in rows if (row.method, row.measure) == (method, measure))


def test_means_are_over_the_clips_that_all_methods_have(cells):
    rows = figures(cells, METHODS, IDS)
    assert len(rows) == len(METHODS) * len(MEASURES)
    assert [figure(rows, method, "lse_c").value for method in METHODS] == [7, 5.5, 8]
    assert {figure(rows, method, "lse_c").count for method in METHODS} == {1}
    del cells["theirs", "a"], cells["theirs", "c"]  # a method without a value does not count
    rows = figures(cells, METHODS, IDS)
    assert figure(rows, "ours", "lse_c").value == 6 and figure(rows, "ours", "lse_c").count == 2
    assert figure(rows, "theirs", "lse_c").text == "n/a (no clip was measured)"


def test_distances_of_sets_are_to_the_ground_truth(cells):
    rows = figures(cells, METHODS, IDS)
    found = figure(rows, "ours", "fid")
    assert found.value == pytest.approx(16) and found.count == 6 and "only 6 samples" in found.note
    assert figure(rows, GROUND_TRUTH, "fid").text == "n/a (is what the others are compared with)"
    assert figure(rows, "theirs", "fid").text == "n/a (too few frames with a face)"
    assert figure(rows, "ours", "csim").text == "n/a (needs x.onnx)"


def test_clips_that_no_two_methods_share(cells):
    rows = figures({key: cells[key] for key in [("ours", "b"), ("theirs", "a")]}, METHODS[1:], IDS)
    assert figure(rows, "ours", "lse_c").text == "n/a (no clip that all methods have)"


def test_every_form_shows_the_same_numbers(cells, tmp_path):
    rows = figures(cells, METHODS, IDS)
    failures = [Failure("c", "ours", "broken | file\nin two lines")]
    about = {"Command": "python -m eval.run", "Versions": "torch 2"}
    lines = list(csv.DictReader(io.StringIO(as_csv(rows))))
    text = as_markdown(rows, failures, {"lse_c": "scored by told"}, about)
    content = json.loads(as_json(rows, cells, failures, {"versions": {"torch": "2"}}))
    methods = [Method(name, None if name == GROUND_TRUTH else tmp_path) for name in METHODS]
    pairs = [Pair(i, tmp_path / f"{i}.mp4") for i in IDS]
    write_page(tmp_path / "index.html", methods, pairs, rows, cells, failures, {}, about)
    page = (tmp_path / "index.html").read_text()
    for measure in MEASURES:
        title = heading(measure).replace("|", "\\|")
        row = next(line for line in text.splitlines() if line.startswith(f"| {title} |"))
        parts = [part.strip() for part in row.strip("|").split(" | ")][2:5]
        table_row = re.search(rf"<tr><td>{re.escape(heading(measure))}</td>.*?</tr>", page).group()
        for method, part in zip(METHODS, parts, strict=True):
            found = figure(rows, method, measure.key)
            cell = next(line for line in lines if line["method"] == method)[measure.key]
            assert part == found.text
            assert found.text in table_row if found.value is None else f">{shown(found.value)}<" in table_row
            assert cell == (found.text if found.value is None else repr(found.value))
    assert {row["measure"]: row["value"] for row in content["figures"] if row["method"] == "ours"}["lse_c"] == 5.5
    assert "- FAILED ours, c: broken \\| file in two lines" in text and "- Versions: torch 2" in text
    assert "torch 2" in page and "Not measured" in page and "broken | file" in page


def test_values_of_clips(cells):
    lines = list(csv.DictReader(io.StringIO(clips_as_csv(cells, [Failure("c", "ours", "broken")]))))
    assert len(lines) == len(cells) + 1
    assert (lines[0]["lse_c"], lines[0]["csim"], lines[0]["frames"]) == ("7", "n/a (needs x.onnx)", "75")
    assert (lines[-1]["status"], lines[-1]["reason"], lines[-1]["lse_c"]) == ("failed", "broken", "")


def test_links_of_any_name(tmp_path):
    assert relative_url(tmp_path / "out" / "a b#ä?.mp4", tmp_path / "out") == "a%20b%23%C3%A4%3F.mp4"
    assert relative_url(tmp_path / "x\n'.mp4", tmp_path / "out") == "../x%0A%27.mp4"
