"""The loop trains, saves, skips bad steps, resumes exactly, and fails with clear messages."""

import csv
import errno
import logging
import os
import random
import shutil
import signal

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from latentsync.checkpoints.loading import load_state_dict
from latentsync.config.sections import OptimizerSection
from latentsync.training import checkpoints, loop
from latentsync.training.loop import run_training
from latentsync.training.stopping import StopRequest, ignore_first_signal
from latentsync.utils.errors import UserError
from latentsync.utils.locks import exclusive_folder
from tests.training.forked import run_forked
from tests.training.tiny_run import TinyTask, arm, run_config, saved_state, saved_weights

pytestmark = pytest.mark.usefixtures("one_thread", "no_charts")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory):
    """The output of a run of 6 steps that nothing disturbed."""
    output = tmp_path_factory.mktemp("whole")
    run_training(TinyTask(dropout=0.2), run_config(output))
    return output


def rows(output, name="train.csv") -> list[dict[str, str]]:
    """Rows of a table without the times."""
    with (output / name).open(newline="") as file:
        return [
            {k: v for k, v in row.items() if k not in ("data_wait", "steps_per_second")} for row in csv.DictReader(file)
        ]


def assert_equal_runs(first, second) -> None:
    """Bitwise equal weights, averages, optimizer states, exports; equal curves."""
    name = "checkpoints/step_00000006"
    a, b = saved_state(first), saved_state(second)
    for part in ("model", "ema"):
        assert a[part].keys() == b[part].keys() and all(torch.equal(a[part][key], b[part][key]) for key in a[part])
    a, b = (saved["optimizer"]["state"] for saved in (a, b))
    assert all(torch.equal(a[index][key], b[index][key]) for index in a for key in a[index])
    a, b = (load_state_dict(folder / "checkpoints/tiny-6.pt") for folder in (first, second))
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert (first / name / "progress.json").read_text() == (second / name / "progress.json").read_text()
    assert rows(first) == rows(second)
    assert rows(first, "validation.csv") == rows(second, "validation.csv")


def test_a_run_writes_the_documented_files(whole):
    names = sorted(path.name for path in (whole / "checkpoints").iterdir())
    assert names == ["step_00000004", "step_00000006", "tiny-2.pt", "tiny-4.pt", "tiny-6.pt"]
    assert checkpoints.find_damage(whole / "checkpoints/step_00000006") is None
    assert [row["step"] for row in rows(whole)] == list("123456")
    assert [row["step"] for row in rows(whole, "validation.csv")] == list("246")
    raw = torch.load(whole / "checkpoints/tiny-6.pt", weights_only=True)
    assert raw["global_step"] == 6
    averaged = saved_state(whole)["ema"]
    assert all(torch.equal(raw["state_dict"][name], averaged[name]) for name in averaged)


def test_export_is_returned(tmp_path):
    assert run_training(TinyTask(), run_config(tmp_path, max_train_steps=1)).name == "tiny-1.pt"


@pytest.mark.parametrize("moment", ["step:0", "step:3", "save:1", "save:2", "rename:3", "prune:3"])
def test_killed_and_started_again_equals_undisturbed(whole, tmp_path, moment):
    def killed(rank: int) -> None:
        task = TinyTask(dropout=0.2)
        arm(task, moment)
        run_training(task, run_config(tmp_path))

    assert run_forked(killed) == [-signal.SIGKILL]
    run_training(TinyTask(dropout=0.2), run_config(tmp_path))
    assert_equal_runs(whole, tmp_path)
    assert not list((tmp_path / "checkpoints").glob(".*"))


def test_sigterm_saves_and_leaves(whole, tmp_path):
    task = TinyTask(dropout=0.2)
    arm(task, "term:2")
    run_training(task, run_config(tmp_path))
    assert sorted(path.name for path in (tmp_path / "checkpoints").glob("step_*"))[-1] == "step_00000003"
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    run_training(TinyTask(dropout=0.2), run_config(tmp_path))
    assert_equal_runs(whole, tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"lr_scheduler": "cosine", "lr_warmup_steps": 2, "gradient_accumulation_steps": 2},
        {"mixed_precision": "bf16", "lr_scheduler": "linear", "lr_warmup_steps": 2, "adam_beta1": 0.0},
        {"lr_scheduler": "polynomial", "background_saves": True, "windows_per_clip": 2, "max_grad_norm": 0.01},
    ],
    ids=["cosine, accumulation", "linear, bf16", "polynomial, background saves"],
)
def test_stopped_and_resumed_with_other_options(tmp_path, changes):
    run_training(TinyTask(dropout=0.2), run_config(tmp_path / "whole", **changes))
    task, signals = TinyTask(dropout=0.2), iter([signal.SIGTERM])
    task.hook = lambda step: os.kill(os.getpid(), next(signals, 0)) if step == 2 else None  # 0 is no signal
    run_training(task, run_config(tmp_path / "halves", **changes))
    assert (tmp_path / "halves/checkpoints/step_00000003").is_dir()
    run_training(TinyTask(dropout=0.2), run_config(tmp_path / "halves", **changes))
    assert_equal_runs(tmp_path / "whole", tmp_path / "halves")


def test_stops_when_the_time_is_over(tmp_path):
    run_training(TinyTask(), run_config(tmp_path, stop_after_minutes=1e-9))
    assert not list((tmp_path / "checkpoints").glob("step_*"))  # not one step was done


def test_a_finished_run_is_left_alone(whole):
    before = (whole / "train.csv").read_bytes()
    task = TinyTask(dropout=0.2)
    run_training(task, run_config(whole))
    assert not task.seen and not task.validated and (whole / "train.csv").read_bytes() == before


def test_a_failed_validation_is_repeated_on_resume(tmp_path):
    class Failing(TinyTask):
        def validate(self, model, step, folder, share):
            raise UserError("the validation video is gone")

    with pytest.raises(UserError, match="video is gone"):
        run_training(Failing(), run_config(tmp_path))
    task = TinyTask()
    run_training(task, run_config(tmp_path, max_train_steps=3))
    assert task.validated == [2, 3]


def test_another_model_is_named(whole, caplog):
    task = TinyTask()
    task.model = torch.nn.Linear(4, 1)
    with pytest.raises(UserError, match="step_00000006: cannot be loaded, or is of another model"):
        run_training(task, run_config(whole, max_train_steps=9))


def test_damaged_checkpoint_is_passed_over(whole, tmp_path, caplog):
    run_training(TinyTask(dropout=0.2), run_config(tmp_path, max_train_steps=4))
    weights = tmp_path / "checkpoints/step_00000004/state/__0_0.distcp"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    run_training(TinyTask(dropout=0.2), run_config(tmp_path))
    assert "__0_0.distcp is damaged; resuming from an older checkpoint" in caplog.text
    assert_equal_runs(whole, tmp_path)


@pytest.mark.parametrize("broken", ["torch.save", "os.rename", "os.fsync"])
def test_full_disk_leaves_the_last_checkpoint(whole, tmp_path, monkeypatch, broken):
    run_training(TinyTask(dropout=0.2), run_config(tmp_path, max_train_steps=2))

    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(broken, full)
        with pytest.raises(UserError, match="No space left on device.*step_00000002 is intact"):
            run_training(TinyTask(dropout=0.2), run_config(tmp_path))
    assert [path.name for path in (tmp_path / "checkpoints").iterdir() if path.is_dir()] == ["step_00000002"]
    run_training(TinyTask(dropout=0.2), run_config(tmp_path))
    assert_equal_runs(whole, tmp_path)


def test_full_disk_as_torch_reports_it(tmp_path, monkeypatch):
    def full(*arguments, **options):
        raise RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0")

    monkeypatch.setattr("torch.save", full)
    with pytest.raises(UserError, match="disk full or failing.*no older checkpoint"):
        run_training(TinyTask(), run_config(tmp_path))


def test_bad_batches_are_replaced(tmp_path, caplog):
    task = TinyTask(bad=[2], nan=[5, 8])
    run_training(task, run_config(tmp_path))
    assert "clip of key 2 is corrupt" in caplog.text and "the loss is not finite" in caplog.text
    assert task.seen == [0, 1, 4, 5, 6, 7, 8, 9, *range(10, 18)]
    assert all(torch.isfinite(value).all() for value in load_state_dict(tmp_path / "checkpoints/tiny-6.pt").values())
    assert '"skipped": 3' in (tmp_path / "checkpoints/step_00000006/progress.json").read_text()


def test_infinite_gradient_is_skipped(tmp_path, caplog):
    task = TinyTask()
    plain = task.step

    def step(model, batch, number):
        losses = plain(model, batch, number)
        if 4 in batch["key"]:  # a square root at zero: a finite loss, an infinite slope
            losses["loss"] = losses["loss"] + (losses["bias"] - losses["bias"].detach()).abs().sqrt()
        return losses

    task.step = step
    run_training(task, run_config(tmp_path, max_train_steps=3))
    assert "gradient is not finite" in caplog.text and task.seen == list(range(8))


def test_nothing_but_bad_batches_ends_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "MAX_SKIPS_IN_A_ROW", 3)
    with pytest.raises(UserError, match="3 batches in a row.*clip of key 4 is corrupt"):
        run_training(TinyTask(bad=range(100)), run_config(tmp_path))


def test_accumulation_equals_a_larger_batch(tmp_path):
    for name, batch, count in (("one", 4, 1), ("two", 2, 2)):
        changes = {"batch_size": batch, "gradient_accumulation_steps": count}
        run_training(TinyTask(with_discriminator=True), run_config(tmp_path / name, **changes))
    for read in (saved_weights, lambda output: load_state_dict(output / "checkpoints/tiny-6.pt")):
        a, b = (read(tmp_path / name) for name in ("one", "two"))
        assert all(torch.allclose(a[key], b[key], atol=1e-5) for key in a)
    a, b = (torch.load(tmp_path / name / "checkpoints/step_00000006/discriminators.pt") for name in ("one", "two"))
    assert torch.allclose(a["critic"]["module"]["weight"], b["critic"]["module"]["weight"], atol=1e-5)


def test_discriminators_are_trained_and_resumed(tmp_path):
    whole, halves = TinyTask(with_discriminator=True), TinyTask(with_discriminator=True)
    start = halves.discriminators["critic"].weight.clone()
    run_training(whole, run_config(tmp_path / "whole"))
    run_training(halves, run_config(tmp_path / "halves", max_train_steps=2))
    halves = TinyTask(with_discriminator=True)
    run_training(halves, run_config(tmp_path / "halves"))
    assert not torch.equal(start, whole.discriminators["critic"].weight)
    assert torch.equal(halves.discriminators["critic"].weight, whole.discriminators["critic"].weight)


def test_discriminators_of_older_checkpoints_are_read(tmp_path):
    run_training(TinyTask(with_discriminator=True), run_config(tmp_path, max_train_steps=2))
    folder = tmp_path / "checkpoints/step_00000002"
    (folder / "discriminators.pt").rename(folder / "companions.pt")
    manifest = folder / "complete.json"
    manifest.write_text(manifest.read_text().replace("discriminators.pt", "companions.pt"))
    task = TinyTask(with_discriminator=True)
    run_training(task, run_config(tmp_path, max_train_steps=2))
    assert task.seen == []


def test_a_second_run_in_the_same_folder_is_refused(tmp_path):
    class Nosy(TinyTask):
        def validate(self, model, step, folder, share):
            with pytest.raises(UserError, match="another run is writing there.*another output folder"):
                with exclusive_folder(tmp_path, tmp_path / ".lock"):
                    pass
            return super().validate(model, step, folder, share)

    task = Nosy()
    run_training(task, run_config(tmp_path, max_train_steps=2))
    assert task.validated == [2]
    with exclusive_folder(tmp_path, tmp_path / ".lock"):
        with pytest.raises(UserError, match="another run is writing there"):
            run_training(TinyTask(), run_config(tmp_path))
    run_training(TinyTask(), run_config(tmp_path))


def test_a_checkpoint_that_cannot_be_loaded_is_passed_over(whole, tmp_path, caplog):
    """It is complete and its checksums are right, but its content is of something else."""
    run_training(TinyTask(dropout=0.2), run_config(tmp_path, max_train_steps=4))
    newest = tmp_path / "checkpoints/step_00000004"
    (newest / "state" / ".metadata").write_bytes(b"no pickle")
    (newest / "complete.json").unlink()
    checkpoints._commit(newest.rename(tmp_path / "checkpoints/.step_00000004.tmp"), newest)
    run_training(TinyTask(dropout=0.2), run_config(tmp_path))
    warnings = [
        record.message for record in caplog.records if "resuming from the previous checkpoint" in record.message
    ]
    assert len(warnings) == 1 and "step_00000004: cannot be loaded" in warnings[0]
    assert_equal_runs(whole, tmp_path)


def test_dry_run_does_all_and_leaves_nothing(tmp_path):
    task = TinyTask()
    run_training(task, run_config(tmp_path / "output"), dry_run=True)
    assert task.seen == [0, 1] and task.validated == [1]
    assert not list(tmp_path.iterdir())


def test_worker_processes_give_the_same_batches(whole, tmp_path):
    run_training(TinyTask(dropout=0.2), run_config(tmp_path, num_workers=2))
    assert_equal_runs(whole, tmp_path)


def test_bf16_and_schedule(tmp_path):
    changes = {"mixed_precision": "bf16", "lr_scheduler": "linear", "lr_warmup_steps": 3}
    run_training(TinyTask(), run_config(tmp_path, **changes))
    assert [float(row["lr"]) for row in rows(tmp_path)] == pytest.approx(
        [0, 1e-2 / 3, 2e-2 / 3, 1e-2, 2e-2 / 3, 1e-2 / 3]
    )


def test_fp16_needs_a_gpu(tmp_path):
    if torch.accelerator.is_available():
        pytest.skip("there is one")
    with pytest.raises(UserError, match="fp16 needs a GPU"):
        run_training(TinyTask(), run_config(tmp_path, mixed_precision="fp16"))


def test_validations_besides_those_at_checkpoints(tmp_path):
    run_training(TinyTask(), run_config(tmp_path, validation_steps=1))
    assert len(rows(tmp_path, "validation.csv")) == 6


def test_epochs_limit_the_steps(tmp_path):
    config = run_config(tmp_path, max_train_epochs=1)
    assert config.total_steps(12, 1) == 6 and config.total_steps(13, 2) == 4
    assert run_config(tmp_path).total_steps(12, 1) == 6


def test_output_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be created"):
        run_training(TinyTask(), run_config(tmp_path / "file/output"))


def test_time_and_progress_are_logged(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    run_training(TinyTask(), run_config(tmp_path, max_train_steps=2))
    assert "data_wait" in caplog.text and "steps_per_second" in caplog.text and "12 clips" in caplog.text


def test_ignored_signals_stay_ignored():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with StopRequest() as stop:
        ignore_first_signal(0)
        os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN and not stop.requested
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_changes_since_the_checkpoint_are_reported(tmp_path, caplog):
    run_training(TinyTask(), run_config(tmp_path, max_train_steps=2))
    run_training(TinyTask(), run_config(tmp_path, max_train_steps=3, lr=2e-2, batch_size=3))
    messages = [record.message for record in caplog.records if "changed since then" in record.message]
    assert sorted(messages) == [
        "changed since then: data.batch_size 2 -> 3",
        "changed since then: optimizer.lr 0.01 -> 0.02",
        "changed since then: run.max_train_steps 2 -> 3",
    ]


def test_background_saves_are_the_same(whole, tmp_path):
    run_training(TinyTask(dropout=0.2), run_config(tmp_path, background_saves=True))
    assert_equal_runs(whole, tmp_path)
    assert checkpoints.find_damage(tmp_path / "checkpoints/step_00000006") is None


def test_a_background_save_that_fails_ends_the_run(tmp_path, monkeypatch):
    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.rename", full)
    with pytest.raises(UserError, match="step_00000002: the checkpoint could not be written"):
        run_training(TinyTask(), run_config(tmp_path, background_saves=True))


def test_checkpoints_of_earlier_versions_are_resumed(whole, tmp_path):
    """Those that accelerate wrote: model.safetensors, optimizer.bin, ema.safetensors."""
    run_training(TinyTask(dropout=0.2), run_config(tmp_path, max_train_steps=4))
    newest = tmp_path / "checkpoints/step_00000004"
    saved, temporary = saved_state(tmp_path, 4), newest.with_name(".step_00000004.tmp")
    names = {name: index for index, name in enumerate(saved["model"])}
    state = {names[name]: values for name, values in saved["optimizer"]["state"].items()}
    groups = [{**torch.optim.AdamW([torch.zeros(1)]).state_dict()["param_groups"][0], "params": list(state)}]
    newest.rename(temporary)
    (temporary / "complete.json").unlink()
    shutil.rmtree(temporary / "state")
    save_file(saved["model"], temporary / "model.safetensors")
    save_file(saved["ema"], temporary / "ema.safetensors")
    groups[0] |= {"lr": 1e-2, "eps": 0.1, "fused": True, "foreach": None}
    torch.save({"state": state, "param_groups": groups}, temporary / "optimizer.bin")
    rng = {"step": 4, "random_state": random.getstate(), "numpy_random_seed": np.random.get_state()}
    torch.save({**rng, "torch_manual_seed": torch.get_rng_state()}, temporary / "random_states_0.pkl")
    checkpoints._commit(temporary, newest)
    run_training(TinyTask(dropout=0.2), run_config(tmp_path))
    assert_equal_runs(whole, tmp_path)


def test_a_compiled_model_trains_the_same(tmp_path, monkeypatch):
    """Traced, but without generated code, which takes long. Checkpoints have the names of the plain model."""
    compiled, compile_module = [], torch.nn.Module.compile

    def trace(module):
        compiled.append(module)
        compile_module(module, backend="eager")

    monkeypatch.setattr(torch.nn.Module, "compile", trace)
    run_training(TinyTask(), run_config(tmp_path / "plain"))
    assert not compiled
    task = TinyTask()
    run_training(task, run_config(tmp_path / "compiled", compile=True))
    assert compiled == [task.model]
    a, b = saved_weights(tmp_path / "plain"), saved_weights(tmp_path / "compiled")
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    a, b = (load_state_dict(tmp_path / name / "checkpoints/tiny-6.pt") for name in ("plain", "compiled"))
    assert a.keys() == b.keys()


def test_optimizer_with_eight_bit_state(tmp_path):
    """Trains, and its state goes through a checkpoint. Without its kernels compiled, which takes minutes."""
    pytest.importorskip("torchao")

    def run(output, **changes):
        task = TinyTask()
        task.model = torch.nn.Sequential(torch.nn.Linear(4, 4096), torch.nn.Tanh(), torch.nn.Linear(4096, 1))
        torch.manual_seed(0)
        for parameter in task.model.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        with torch.compiler.set_stance("force_eager"):
            run_training(task, run_config(output, name="adamw_8bit", adam_epsilon=1e-8, lr=1e-3, **changes))

    run(tmp_path / "whole")
    run(tmp_path / "halves", max_train_steps=3)
    run(tmp_path / "halves")
    a, b = saved_weights(tmp_path / "whole"), saved_weights(tmp_path / "halves")
    assert all(torch.equal(a[name], b[name]) for name in a)
    parameter = torch.nn.Parameter(torch.ones(4096))
    parameter.grad = torch.ones(4096)
    optimizer = loop.make_optimizer([parameter], 1e-3, OptimizerSection(name="adamw_8bit"))
    with torch.compiler.set_stance("force_eager"):
        optimizer.step()
    assert type(optimizer.state[parameter]["exp_avg"]).__name__ == "OptimState8bit"
