"""The best checkpoint by a named rule: ranks within aspects, ties, missing values, files."""

import json
from typing import get_args

import pytest

from latentsync.config.sections import BestBy
from latentsync.training.selection import ASPECTS, BALANCED, best_row, keep_best, mean_ranks

ROWS = [
    {
        "step": 100,
        "sync_confidence": 0.2,
        "sync_offset": 0.0,
        "psnr_mouth": 22.0,
        "lpips_mouth": 0.20,
        "sharpness": 0.8,
    },
    {
        "step": 200,
        "sync_confidence": 0.4,
        "sync_offset": -1.0,
        "psnr_mouth": 24.0,
        "lpips_mouth": 0.10,
        "sharpness": 1.5,
    },
    {
        "step": 300,
        "sync_confidence": 0.5,
        "sync_offset": 0.0,
        "psnr_mouth": 23.0,
        "lpips_mouth": 0.15,
        "sharpness": 0.9,
    },
]


def test_rules_of_configs_are_those_of_the_table():
    assert set(get_args(BestBy)) == {BALANCED, *ASPECTS}


@pytest.mark.parametrize(("rule", "step"), [("sync", 300), ("mouth", 200), ("sharpness", 300), ("balanced", 300)])
def test_best_by_rule(rule, step):
    assert best_row(ROWS, rule)["step"] == step


def test_ranks_by_hand():
    # sync: (3, 2, 1) of the confidence, (1.5, 3, 1.5) of |offset|; mouth: (3, 1, 2) twice; sharpness: (2, 3, 1)
    expected = [(2.25 + 3 + 2) / 3, (2.5 + 1 + 3) / 3, (1.25 + 2 + 1) / 3]
    assert mean_ranks(ROWS, BALANCED).tolist() == pytest.approx(expected)


def test_missing_values_rank_last_and_ties_go_to_the_later_step():
    rows = [{"step": 1}, {"step": 2, "leak": 0.5}, {"step": 3, "leak": 0.5}]
    assert best_row(rows, "silence")["step"] == 3
    assert mean_ranks(rows, "silence").tolist() == [3, 1.5, 1.5]
    assert best_row(rows, "identity") is None


def test_the_export_is_linked_and_follows_better_ones(tmp_path):
    for step in (100, 200):
        (tmp_path / f"unet-{step}.pt").write_text(str(step))
    keep_best(tmp_path, "unet", ROWS[:1], "mouth")
    assert (tmp_path / "unet-best.pt").read_text() == "100"
    keep_best(tmp_path, "unet", ROWS, "mouth")
    keep_best(tmp_path, "unet", ROWS, "mouth")
    assert (tmp_path / "unet-best.pt").read_text() == "200"
    about = json.loads((tmp_path / "unet-best.json").read_text())
    assert (about["rule"], about["step"], about["metrics"]["psnr_mouth"]) == ("mouth", 200, 24.0)
    keep_best(tmp_path, "unet", ROWS, "sharpness")  # step 300 has metrics but no export
    assert (tmp_path / "unet-best.pt").read_text() == "100"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("unet-100.pt", "unet-200.pt", "unet-best.json", "unet-best.pt")
    ]


def test_without_metrics_nothing_is_chosen(tmp_path):
    (tmp_path / "unet-1.pt").write_text("1")
    keep_best(tmp_path, "unet", [{"step": 1}], "balanced")
    assert [path.name for path in tmp_path.iterdir()] == ["unet-1.pt"]
