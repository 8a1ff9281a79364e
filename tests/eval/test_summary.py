"""From values of clips to a summary, and the same numbers in every form of the report."""

import csv
import io
import json
import re
from html import escape

import numpy as np
import pytest

from eval.methods import GROUND_TRUTH, Method
from eval.metrics import METRICS, ClipMetrics
from eval.pairs import Pair
from eval.report import Report, heading, relative_url
from eval.summary import Aggregate, Failure, aggregate, paired_tests, shown, summarize

METHODS = [GROUND_TRUTH, "ours", "theirs"]
IDS = ["a", "b", "c"]


@pytest.fixture
def cells() -> dict:
    def values(lse_c: float, features: np.ndarray | None = None) -> ClipMetrics:
        arrays = {"window_confidences": np.array([np.nan, 1.0, lse_c])}
        if features is not None:
            arrays["fid"] = features
        return ClipMetrics({"lse_c": lse_c}, {"csim": "needs x.onnx", "psnr": "other audio"}, arrays, 75, 70)

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


def find(rows, method, metric) -> Aggregate:
    return next(row for row in rows if (row.method, row.metric) == (method, metric))


def test_means_are_over_the_clips_that_all_methods_have(cells):
    rows = aggregate(cells, METHODS, IDS)
    assert len(rows) == len(METHODS) * len(METRICS)
    assert [find(rows, method, "lse_c").value for method in METHODS] == [7, 5.5, 8]
    assert {find(rows, method, "lse_c").count for method in METHODS} == {1}
    del cells["theirs", "a"], cells["theirs", "c"]  # a method without a value does not count
    rows = aggregate(cells, METHODS, IDS)
    assert find(rows, "ours", "lse_c").value == 6 and find(rows, "ours", "lse_c").count == 2
    assert find(rows, "theirs", "lse_c").text == "n/a (no clip was evaluated)"


def test_distances_of_sets_are_to_the_ground_truth(cells):
    rows = aggregate(cells, METHODS, IDS)
    found = find(rows, "ours", "fid")
    assert found.value == pytest.approx(16) and found.count == 6 and "only 6 samples" in found.note
    assert find(rows, GROUND_TRUTH, "fid").text == "n/a (is the reference)"
    assert find(rows, "theirs", "fid").text == "n/a (too few frames with a face)"
    assert find(rows, "ours", "csim").text == "n/a (needs x.onnx)"


def test_no_common_clips(cells):
    rows = aggregate({key: cells[key] for key in [("ours", "b"), ("theirs", "a")]}, METHODS[1:], IDS)
    assert find(rows, "ours", "lse_c").text == "n/a (no clip that all methods have)"


@pytest.fixture
def report(cells, tmp_path) -> Report:
    methods = [Method(name, None if name == GROUND_TRUTH else tmp_path) for name in METHODS]
    about = {
        "command": "python -m eval.run",
        "date": "today",
        "versions": {"torch": "2"},
        "device": "cpu",
        "settings": {"every": 5, "weights": {}},
        "notes": {"lse_c": "scored by ears"},
        "inference": {},
    }
    failures = [Failure("c", "ours", "broken | file\nin two lines")]
    return Report(methods, [Pair(i, tmp_path / f"{i}.mp4") for i in IDS], cells, failures, about)


def test_all_formats_show_the_same_numbers(report, tmp_path):
    page = report.write(tmp_path).read_text()
    lines = list(csv.DictReader(io.StringIO((tmp_path / "summary.csv").read_text())))
    text, content = (tmp_path / "summary.md").read_text(), json.loads((tmp_path / "summary.json").read_text())
    rows = report.summaries[0].aggregates
    for metric in METRICS:
        title = heading(metric).replace("|", "\\|")
        row = next(line for line in text.splitlines() if line.startswith(f"| {title} |"))
        parts = [part.strip() for part in row.strip("|").split(" | ")][2:5]
        table_row = re.search(rf"<tr><td>{re.escape(escape(heading(metric)))}</td>.*?</tr>", page, re.DOTALL).group()
        for method, part in zip(METHODS, parts, strict=True):
            found = find(rows, method, metric.key)
            cell = next(line for line in lines if line["method"] == method)[metric.key]
            assert part == found.text
            assert found.text in table_row if found.value is None else f">{shown(found.value)}<" in table_row
            assert cell == (found.text if found.value is None else repr(found.value))
    (summary,) = content["summaries"]
    assert {row["metric"]: row["value"] for row in summary["aggregates"] if row["method"] == "ours"}["lse_c"] == 5.5
    assert "- FAILED ours, c: broken \\| file in two lines" in text and "- Versions: torch 2" in text
    assert "torch 2" in page and "Failed" in page and "broken | file" in page and "scored by ears" in text


def test_values_of_clips(report, cells):
    lines = list(csv.DictReader(io.StringIO(report.clips_csv())))
    assert len(lines) == len(cells) + 1
    assert (lines[0]["lse_c"], lines[0]["csim"], lines[0]["frames"]) == ("7", "n/a (needs x.onnx)", "75")
    assert (lines[-1]["status"], lines[-1]["lse_c"]) == ("failed", "") and lines[-1]["reason"].startswith("broken")


def test_names_are_escaped_in_the_page(report, tmp_path):
    report.pairs[0] = Pair("<b>&", tmp_path / "x'y.mp4")
    page = report.page(tmp_path)
    assert "&lt;b&gt;&amp;" in page and "<b>" not in page


def many(count: int = 8) -> dict:
    """`ours` is better by 0.5 to 1.2 on every clip."""
    ids = [f"{index}" for index in range(count)]
    ours = {("ours", i): ClipMetrics({"psnr": 30 + int(i) + 0.5 + int(i) / 10}) for i in ids}
    return ours | {("theirs", i): ClipMetrics({"psnr": 30.0 + int(i)}) for i in ids}


def test_means_have_bootstrap_intervals():
    rows = aggregate(many(), ["ours", "theirs"], [f"{i}" for i in range(8)])
    found = find(rows, "theirs", "psnr")
    assert found.low < found.value == 33.5 < found.high
    assert found.low == pytest.approx(33.5 - 1.5, abs=0.3) and found.high == pytest.approx(33.5 + 1.5, abs=0.3)
    assert "[" in found.text
    assert find(aggregate(many(2), ["ours"], ["0", "1"]), "ours", "psnr").low is None  # too few clips


def test_methods_are_compared_pairwise():
    ids = [f"{i}" for i in range(8)]
    (test,) = paired_tests(many(), [GROUND_TRUTH, "ours", "theirs"], ids)
    assert (test.metric, test.first, test.second, test.count) == ("psnr", "ours", "theirs", 8)
    assert test.difference == pytest.approx(0.85) and 0.5 < test.low < 0.85 < test.high < 1.2
    assert test.p == pytest.approx(2 * 0.5**8)  # all eight signs agree: exact
    assert paired_tests(many(5), ["ours", "theirs"], ids[:5]) == []


def test_groups_are_summarized_as_well(tmp_path):
    pairs = [Pair(f"{i}", tmp_path / "v.mp4", group="even" if i % 2 == 0 else "odd") for i in range(8)]
    everything, even, odd = summarize(many(), ["ours", "theirs"], pairs)
    assert [item.group for item in (everything, even, odd)] == ["", "even", "odd"]
    values = [find(item.aggregates, "theirs", "psnr").value for item in (everything, even, odd)]
    assert values == [33.5, 33, 34] and even.count == 4
    assert len(summarize(many(), ["ours"], [Pair("1", tmp_path)])) == 1


def test_links_of_any_name(tmp_path):
    assert relative_url(tmp_path / "out" / "a b#ä?.mp4", tmp_path / "out") == "a%20b%23%C3%A4%3F.mp4"
    assert relative_url(tmp_path / "x\n'.mp4", tmp_path / "out") == "../x%0A%27.mp4"
