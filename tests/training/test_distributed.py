"""Two processes train like one with twice the batch, and neither waits forever."""

import csv
import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from torch import nn

from latentsync.checkpoints.loading import load_state_dict
from latentsync.training.distributed import gather_with_gradient
from latentsync.training.loop import run_training
from latentsync.utils.errors import UserError
from latentsync.utils.paths import CONFIGS_DIR
from tests.training.forked import free_port, run_forked
from tests.training.tiny_run import Blocks, TinyTask, arm, kill, run_config, saved_state, saved_weights
from tests.waiting import HANG_SECONDS

LAUNCH = CONFIGS_DIR / "launch"


@pytest.fixture(scope="module", autouse=True)
def quick():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("latentsync.training.report._open_tensorboard", lambda folder, step: None)
        patch.setattr("latentsync.training.report.Report.draw_chart", lambda report: None)
        yield
    torch.set_num_threads(threads)


def assert_close(first, second) -> None:
    a, b = saved_weights(first), saved_weights(second)
    assert a.keys() == b.keys()
    assert all(torch.allclose(a[name], b[name], atol=1e-5) for name in a)


def test_two_processes_equal_one_with_twice_the_batch(tmp_path):
    def work(rank: int) -> None:
        run_training(TinyTask(with_discriminator=True), run_config(tmp_path / "two"))

    assert run_forked(work, 2) == [0, 0]
    run_training(TinyTask(with_discriminator=True), run_config(tmp_path / "one", batch_size=4))
    assert_close(tmp_path / "one", tmp_path / "two")
    critics = [torch.load(tmp_path / name / "checkpoints/step_00000006/discriminators.pt") for name in ("one", "two")]
    a, b = (critic["critic"]["module"]["weight"] for critic in critics)
    assert torch.allclose(a, b, atol=1e-5)
    columns = (tmp_path / "two/train.csv").read_text().splitlines()[1:]
    one = (tmp_path / "one/train.csv").read_text().splitlines()[1:]
    assert [float(row.split(",")[1]) for row in columns] == pytest.approx(
        [float(row.split(",")[1]) for row in one], rel=1e-4
    )


def test_a_run_may_go_on_with_another_number_of_processes(tmp_path):
    def work(rank: int) -> None:
        run_training(TinyTask(), run_config(tmp_path, max_train_steps=2))

    assert run_forked(work, 2) == [0, 0]
    run_training(TinyTask(), run_config(tmp_path, batch_size=4))
    run_training(TinyTask(), run_config(tmp_path / "one", batch_size=4))
    assert_close(tmp_path, tmp_path / "one")


def blocks_task() -> TinyTask:
    task = TinyTask()
    torch.manual_seed(0)
    task.model = Blocks()
    return task


@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_fsdp_equals_one_process_and_ddp(tmp_path, monkeypatch, processes):
    """Weights, averages and export; every block is gathered by itself."""
    monkeypatch.setattr("latentsync.training.distributed.MIN_UNIT", 0)
    size = 8 // processes

    def work(fsdp: bool, output) -> None:
        changes = {"batch_size": size // 2, "gradient_accumulation_steps": 2}
        run_training(blocks_task(), run_config(output, fsdp=fsdp, background_saves=fsdp, **changes))

    for fsdp, name in ((True, "fsdp"), (False, "ddp")):
        assert run_forked(lambda rank, fsdp=fsdp, name=name: work(fsdp, tmp_path / name), processes) == [0] * processes
    run_training(blocks_task(), run_config(tmp_path / "one", batch_size=4, gradient_accumulation_steps=2))
    for name in ("fsdp", "ddp"):
        assert_close(tmp_path / name, tmp_path / "one")
        a, b = (saved_state(tmp_path / folder)["ema"] for folder in (name, "one"))
        assert a.keys() == b.keys() and all(torch.allclose(a[key], b[key], atol=1e-5) for key in a)
        a, b = (load_state_dict(tmp_path / folder / "checkpoints/tiny-6.pt") for folder in (name, "one"))
        assert a.keys() == b.keys() and all(torch.allclose(a[key], b[key], atol=1e-5) for key in a)


def test_fsdp_killed_and_resumed_then_resumed_without(tmp_path, monkeypatch):
    monkeypatch.setattr("latentsync.training.distributed.MIN_UNIT", 0)

    def killed(rank: int) -> None:
        task = blocks_task()
        if rank == 1:
            arm(task, "step:3")
        else:
            task.hook = lambda step: kill() if step == 3 else None  # as a launcher ends the others
        run_training(task, run_config(tmp_path / "killed", fsdp=True))

    def whole(output, **changes):
        return lambda rank: run_training(blocks_task(), run_config(output, fsdp=True, **changes))

    assert run_forked(killed, 2) == [-signal.SIGKILL] * 2
    assert run_forked(whole(tmp_path / "killed"), 2) == [0, 0]
    assert run_forked(whole(tmp_path / "whole"), 2) == [0, 0]
    a, b = saved_weights(tmp_path / "killed"), saved_weights(tmp_path / "whole")
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert run_forked(whole(tmp_path / "half", max_train_steps=2), 2) == [0, 0]
    run_training(blocks_task(), run_config(tmp_path / "half", batch_size=4))  # one process goes on
    assert_close(tmp_path / "half", tmp_path / "whole")


@pytest.mark.slow
def test_four_processes_killed_and_resumed(tmp_path):
    def run(output, moment: str | None = None):
        def work(rank: int) -> None:
            task = TinyTask(dropout=0.2)
            if moment:
                arm(task, moment)
            run_training(task, run_config(output, batch_size=1, background_saves=True))

        return work

    assert run_forked(run(tmp_path / "killed", "step:3"), 4) == [-signal.SIGKILL] * 4
    assert run_forked(run(tmp_path / "killed"), 4) == [0] * 4
    assert run_forked(run(tmp_path / "whole"), 4) == [0] * 4
    a, b = saved_weights(tmp_path / "killed"), saved_weights(tmp_path / "whole")
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_bad_batch_in_one_process_is_skipped_in_both(tmp_path):
    """Keys 4, 5 | 6, 7 are the second batches; key 6 is corrupt, key 9 gives no finite loss."""

    def work(rank: int) -> None:
        task = TinyTask(bad=[6], nan=[9])
        run_training(task, run_config(tmp_path, max_train_steps=2))
        # Batches (4, 5 | 6, 7) never reach the model, (8, 9 | 10, 11) do but give no step.
        first = 2 * rank
        assert task.seen == [*range(first, first + 2), *range(8 + first, 10 + first), *range(12 + first, 14 + first)]

    assert run_forked(work, 2) == [0, 0]
    assert '"skipped": 2' in (tmp_path / "checkpoints/step_00000002/progress.json").read_text()
    assert all(torch.isfinite(value).all() for value in saved_weights(tmp_path, 2).values())


def test_an_accumulated_batch_may_be_bad_as_well(tmp_path):
    def work(rank: int) -> None:
        run_training(TinyTask(nan=[6]), run_config(tmp_path / "two", gradient_accumulation_steps=2))

    assert run_forked(work, 2) == [0, 0]
    changes = {"batch_size": 4, "gradient_accumulation_steps": 2}
    run_training(TinyTask(nan=[6]), run_config(tmp_path / "one", **changes))
    assert_close(tmp_path / "one", tmp_path / "two")


def test_too_many_bad_batches_end_all_processes(tmp_path, monkeypatch):
    monkeypatch.setattr("latentsync.training.loop.MAX_SKIPS_IN_A_ROW", 3)

    def work(rank: int) -> None:
        with pytest.raises(UserError, match="in a row"):
            run_training(TinyTask(bad=range(0, 100, 4)), run_config(tmp_path))

    assert run_forked(work, 2) == [0, 0]


def test_sigterm_in_one_process_stops_both(tmp_path):
    def work(rank: int) -> None:
        task = TinyTask()
        if rank == 1:
            arm(task, "term:2")
        run_training(task, run_config(tmp_path))

    assert run_forked(work, 2) == [0, 0]
    assert (tmp_path / "checkpoints/step_00000003").is_dir()


def test_a_full_disk_is_reported_by_both(tmp_path, monkeypatch):
    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def work(rank: int) -> None:
        if rank == 0:
            monkeypatch.setattr("os.rename", full)
        with pytest.raises(UserError, match="No space left"):
            run_training(TinyTask(), run_config(tmp_path))

    assert run_forked(work, 2) == [0, 0]
    assert not list((tmp_path / "checkpoints").iterdir())


def test_killed_process_and_start_again(tmp_path):
    def killed(rank: int) -> None:
        task = TinyTask(dropout=0.2)
        arm(task, "step:3")
        run_training(task, run_config(tmp_path / "killed"))

    def whole(output):
        return lambda rank: run_training(TinyTask(dropout=0.2), run_config(output))

    assert run_forked(killed, 2) == [-signal.SIGKILL] * 2
    assert run_forked(whole(tmp_path / "killed"), 2) == [0, 0]
    assert run_forked(whole(tmp_path / "whole"), 2) == [0, 0]
    a, b = saved_weights(tmp_path / "killed"), saved_weights(tmp_path / "whole")
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_failing_validation_is_reported_by_both(tmp_path):
    class Failing(TinyTask):
        def validate(self, model, step, folder, share):
            if share.index == 1:
                raise UserError("no validation video")
            return super().validate(model, step, folder, share)

    def work(rank: int) -> None:
        with pytest.raises(UserError, match="no validation video" if rank == 1 else "another process"):
            run_training(Failing(), run_config(tmp_path))

    assert run_forked(work, 2) == [0, 0]


def test_each_process_validates_its_share(tmp_path):
    """The means are those of one process; each part is done once."""

    def work(rank: int) -> None:
        task = TinyTask()
        run_training(task, run_config(tmp_path / "two"))
        assert task.validated == [2, 4, 6]

    assert run_forked(work, 2) == [0, 0]
    run_training(TinyTask(), run_config(tmp_path / "one", batch_size=4))
    rows = []
    for name in ("one", "two"):
        with (tmp_path / name / "validation.csv").open(newline="") as file:
            rows.append([{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)])
    one, two = rows
    assert [row["weight"] for row in two] == pytest.approx([row["weight"] for row in one], rel=1e-4)
    assert [row["index"] for row in one] == [0] * 3 and [row["index"] for row in two] == [0.5] * 3
    assert not any((tmp_path / "two/validation").iterdir())


def test_gathered_rows_carry_their_gradient():
    """A loss of products between all rows, parameters averaged over the processes as DDP does."""
    inputs = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))

    def loss_of(rows: torch.Tensor) -> torch.Tensor:
        return (rows @ rows.T).exp().mean() + (rows[0] * rows[3]).sum()

    def model() -> nn.Linear:
        torch.manual_seed(1)
        return nn.Linear(3, 2)

    whole = model()
    loss_of(whole(inputs)).backward()

    def compare(rank: int) -> None:
        part = nn.parallel.DistributedDataParallel(model())
        gathered = gather_with_gradient(part(inputs[2 * rank : 2 * rank + 2]))
        assert gathered.shape == (4, 2)
        loss_of(gathered).backward()
        for ours, theirs in zip(part.parameters(), whole.parameters(), strict=True):
            assert torch.allclose(ours.grad, theirs.grad, atol=1e-6)

    def work(rank: int) -> None:
        torch.distributed.init_process_group("gloo")
        compare(rank)  # its model is gone before the group: see `release`
        torch.distributed.destroy_process_group()

    assert run_forked(work, 2) == [0, 0]


def test_gather_alone_is_the_identity():
    rows = torch.randn(2, 3)
    assert gather_with_gradient(rows) is rows


@pytest.mark.parametrize("path", sorted(LAUNCH.glob("*.yaml")), ids=lambda path: path.stem)
def test_launch_configs_are_understood(path):
    config = load_config_from_file(str(path))
    assert config.num_processes == (1 if path.stem == "one_gpu" else 8) and config.mixed_precision == "no"


def two_tasks_of_slurm(folder: Path) -> Path:
    """A folder with stand-ins for SLURM's programs, which start two tasks on this machine."""
    tasks = "for task in 0 1; do SLURM_PROCID=$task SLURM_LOCALID=$task SLURM_NTASKS=2 SLURM_NTASKS_PER_NODE=2"
    for name, text in {
        "scontrol": "echo localhost",
        "srun": f'shift\n{tasks} "$@" &\ndone\nwait -n && wait -n',
    }.items():
        (folder / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (folder / name).chmod(0o755)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["accelerate", "torchrun", "slurm"])
def test_as_it_is_launched(tmp_path, launcher):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHON": sys.executable, "PYTHONPATH": os.getcwd()}
    config = ["--config_file", str(LAUNCH / "eight_gpus.yaml"), "--num_processes=2"]
    command = {
        "accelerate": [sys.executable, "-m", "accelerate.commands.launch", *config, "-m"],
        "torchrun": [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "-m"],
        "slurm": ["bash", str(LAUNCH / "slurm.sh")],
    }[launcher]
    if launcher == "slurm":
        environment |= {"MASTER_PORT": str(free_port()), "SLURM_JOB_NODELIST": "localhost"}
        environment["PATH"] = f"{two_tasks_of_slurm(tmp_path)}{os.pathsep}{environment['PATH']}"
    command = [*command, "tests.training.tiny_run", str(tmp_path / "two")]
    subprocess.run(command, check=True, timeout=HANG_SECONDS, env=environment)
    run_training(TinyTask(), run_config(tmp_path / "one", batch_size=4))
    assert_close(tmp_path / "one", tmp_path / "two")
