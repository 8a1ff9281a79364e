"""Launch configs, and the ready training configs: they do what their names and comments state."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file

from latentsync.config.syncnet import load_syncnet_config
from latentsync.config.unet import load_unet_config
from latentsync.models.syncnets import SYNCNET_SCHEMAS
from latentsync.models.unet_config import UNetConfig
from latentsync.training.loop import run_training
from latentsync.utils.paths import CONFIGS_DIR
from scripts.train_unet import main
from tests.training.forked import free_port
from tests.training.tiny_run import TinyTask, run_config, saved_weights
from tests.waiting import HANG_SECONDS

LAUNCH = CONFIGS_DIR / "launch"
FAKES = {
    "scontrol": "echo 127.0.0.1",
    # As srun: every task has its own number; a failure of one is a failure of all.
    "srun": """shift
pids=()
for rank in 0 1; do SLURM_PROCID=$rank SLURM_LOCALID=$rank "$@" & pids+=($!); done
for pid in "${pids[@]}"; do wait "$pid"; done""",
}


@pytest.mark.parametrize("path", sorted(LAUNCH.glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_reads_the_launch_configs(path):
    config = load_config_from_file(str(path))
    kinds = {"one_gpu": "NO", "eight_gpus": "MULTI_GPU", "zero2": "DEEPSPEED", "zero3": "DEEPSPEED"}
    assert str(config.distributed_type).removeprefix("DistributedType.") == kinds[path.stem]
    assert config.num_processes == (1 if path.stem == "one_gpu" else 8)
    assert config.mixed_precision == "no"


def test_batches_of_the_reference():
    for name in ("stage1_one_gpu", "stage2_one_gpu"):
        config = load_unet_config(CONFIGS_DIR / "unet" / f"{name}.yaml", UNetConfig)
        assert config.data.batch_size * config.run.gradient_accumulation_steps == 8
    for name, processes in (("8gpus", 8), ("one_gpu", 1)):
        path = CONFIGS_DIR / "syncnet" / f"syncnet_16_pixel_attn_{name}.yaml"
        config = load_syncnet_config(path, *SYNCNET_SCHEMAS)
        assert config.data.batch_size * config.run.gradient_accumulation_steps * processes == 1024


def test_stage_2_does_not_start_from_nothing_or_from_the_release(capsys):
    assert load_unet_config(CONFIGS_DIR / "unet" / "stage2.yaml", UNetConfig).ckpt.resume_ckpt_path == ""
    assert main(["--unet_config_path", str(CONFIGS_DIR / "unet" / "stage2.yaml")]) == 1
    assert "ckpt.resume_ckpt_path is empty" in capsys.readouterr().err


@pytest.mark.slow
def test_slurm_script(tmp_path):
    for name, body in FAKES.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    environment = os.environ | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "SLURM_JOB_NODELIST": "one",
        "SLURM_NTASKS": "2",
        "SLURM_NTASKS_PER_NODE": "2",
        "SLURM_SUBMIT_DIR": str(Path.cwd()),
        "MASTER_PORT": str(free_port()),
        "PYTHON": sys.executable,
        "PYTHONPATH": str(Path.cwd()),
        "OMP_NUM_THREADS": "1",
    }
    command = ["bash", str(LAUNCH / "slurm.sh"), "tests.training.tiny_run", str(tmp_path / "two")]
    subprocess.run(command, check=True, timeout=HANG_SECONDS, env=environment)
    run_training(TinyTask(), run_config(tmp_path / "one", batch_size=4))
    a, b = saved_weights(tmp_path / "one"), saved_weights(tmp_path / "two")
    assert all((a[name] - b[name]).abs().max() < 1e-5 for name in a)


@pytest.mark.slow
def test_the_debug_config_trains_out_of_the_box(tmp_path):
    """Every loss, a checkpoint, an export and a validation, with nothing but what is part of the project."""
    config = tmp_path / "debug.yaml"
    config.write_text(
        f"base: {CONFIGS_DIR}/unet/debug.yaml\ndata:\n  train_output_dir: {tmp_path}/out\n"
        "ckpt:\n  save_ckpt_steps: 1\nrun:\n  max_train_steps: 1\n"
    )
    assert main(["--unet_config_path", str(config)]) == 0
    header, row = (tmp_path / "out" / "train.csv").read_text().splitlines()
    values = dict(zip(header.split(","), map(float, row.split(",")), strict=True))
    assert {"recon", "perceptual", "trepa", "sync"} <= values.keys() and values["grad_norm"] > 0
    assert (tmp_path / "out" / "checkpoints" / "unet-1.pt").is_file()
    assert list((tmp_path / "out" / "validation").rglob("*.mp4"))
