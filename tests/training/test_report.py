"""Tables that resumed runs continue, the chart, TensorBoard, the share of time waiting for data."""

import time

import cv2
import pytest
import torch
from accelerate import Accelerator

from latentsync.training.report import Report, ValueTable
from latentsync.utils.errors import UserError


@pytest.fixture
def report(tmp_path):
    report = Report(Accelerator(cpu=True), tmp_path, 0)
    yield report
    report.close()


def test_means_over_the_steps_since_the_last_row(report):
    report.add({"loss": torch.tensor(1.0), "lr": 0.5})
    report.add({"loss": torch.tensor(2.0), "lr": 0.5})
    means = report.write_row(2)
    assert means["loss"] == 1.5 and means["lr"] == 0.5
    assert report.write_row(3) == {}  # nothing was added
    assert (report.folder / "train.csv").read_text().startswith("step,loss,lr,data_wait,steps_per_second\n2,1.5,0.5,")


def test_waiting_share_and_pauses(tmp_path, monkeypatch):
    monkeypatch.setattr(time, "monotonic", lambda: 100.0)
    report = Report(Accelerator(cpu=True), tmp_path, 0)
    report.pause(2.0)
    report.add({"loss": 1.0}, waited=0.5)
    report.add({"loss": 2.0})
    monkeypatch.setattr(time, "monotonic", lambda: 106.0)
    means = report.write_row(1)
    assert means["data_wait"] == pytest.approx(0.5 / 4) and means["steps_per_second"] == pytest.approx(2 / 4)
    report.close()


def test_rows_after_the_checkpoint_are_dropped(tmp_path):
    table = ValueTable(tmp_path / "t.csv", 0)
    for step in (1, 2, 3):
        table.add(step, {"loss": 1 / step})
    table = ValueTable(tmp_path / "t.csv", 2)
    assert table.column("loss") == ([1, 2], [1.0, 0.5])
    table.add(3, {"loss": 0.1, "other": 7.0})
    table.add(3, {"loss": 0.2})
    again = ValueTable(tmp_path / "t.csv", 99)
    assert again.column("loss") == ([1, 2, 3], [1.0, 0.5, 0.2]) and again.column("other") == ([], [])


def test_half_written_last_line_is_dropped(tmp_path):
    (tmp_path / "t.csv").write_text("step,loss\n1,0.5\n2,0.2")
    table = ValueTable(tmp_path / "t.csv", 1)
    table.add(2, {"loss": 0.25})
    assert (tmp_path / "t.csv").read_text().splitlines() == ["step,loss", "1,0.5", "2,0.25"]


def test_foreign_table_is_refused(tmp_path):
    (tmp_path / "t.csv").write_text("a;b\nx;y\n")
    with pytest.raises(UserError, match="t.csv: is not a table of this program"):
        ValueTable(tmp_path / "t.csv", 0)


def test_chart_and_board_are_written(report):
    for step in range(1, 4):
        report.add({"loss": 1.0 / step})
        report.write_row(step)
    report.write_validation(3, {"accuracy": 0.9})
    report.draw_chart()
    assert report.validated(3) and not report.validated(2)
    image = cv2.imread(str(report.folder / "loss_chart.png"))
    assert image.shape[1] > 700 and image.std() > 5
    assert list((report.folder / "tensorboard").iterdir())


def test_long_curves_are_thinned(report):
    report.train.rows = [{"step": step, "loss": float(step)} for step in range(1, 10001)]
    report.train.names = ["step", "loss"]
    from latentsync.training.report import CHART_POINTS, _thinned

    steps, values = _thinned(*report.train.column("loss"))
    assert len(steps) == CHART_POINTS and values[0] == 3.0
