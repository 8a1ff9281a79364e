"""Validation in a process of its own: training does not wait for it, and does not depend on it."""

import csv
import json
from functools import partial

import pytest
import torch

from latentsync.checkpoints.loading import load_state_dict
from latentsync.training.loop import run_training
from tests.training.forked import run_forked
from tests.training.tiny_run import TinyTask, fail_to_validate, run_config, saved_weights, validate_when_signalled

pytestmark = pytest.mark.usefixtures("one_thread", "no_charts")


def validation_rows(output) -> dict[int, dict[str, str]]:
    with (output / "validation.csv").open(newline="") as file:
        return {int(row["step"]): row for row in csv.DictReader(file)}


def test_no_process_waits_for_a_validation(tmp_path):
    """The validation of step 2 ends after the last step has begun; training that waited for it would not get there."""

    def work(rank: int) -> None:
        task = TinyTask(dropout=0.2)
        flag = tmp_path / "flag"
        task.validate_export = partial(validate_when_signalled, flag)
        task.hook = lambda step: flag.touch() if step == 5 and rank == 1 else None
        run_training(task, run_config(tmp_path / "background"))
        assert not task.validated

    assert run_forked(work, 2) == [0, 0]
    output = tmp_path / "background"
    rows = validation_rows(output)
    assert list(rows) == [2, 4, 6]
    for step, row in rows.items():
        weights = load_state_dict(output / f"checkpoints/tiny-{step}.pt")
        total = sum(tensor.abs().sum().item() for tensor in weights.values())
        assert float(row["sync_confidence"]) == pytest.approx(total)
        assert (output / f"validation/step_{step:08d}/made.txt").is_file()
    best = json.loads((output / "checkpoints/tiny-best.json").read_text())
    assert best["step"] == max(rows, key=lambda step: float(rows[step]["sync_confidence"]))
    assert run_forked(lambda rank: run_training(TinyTask(dropout=0.2), run_config(tmp_path / "within")), 2) == [0, 0]
    a, b = saved_weights(output), saved_weights(tmp_path / "within")
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_training_survives_a_validation_that_fails_or_dies(tmp_path, caplog):
    task = TinyTask()
    task.validate_export = fail_to_validate
    run_training(task, run_config(tmp_path))
    assert (tmp_path / "checkpoints/tiny-6.pt").is_file()
    assert "validation at step 2 failed: UserError: the validation video is gone" in caplog.text
    assert "validation at step 4 failed: BrokenProcessPool" in caplog.text
