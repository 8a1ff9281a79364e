"""fine_tuning.sh, with an interpreter that only records its commands; and the chosen configs."""

import shutil
from pathlib import Path

import pytest

from latentsync.config.unet import load_unet_config
from latentsync.models.unet_config import UNetConfig
from tests.test_shell_scripts import PROJECT_ROOT, Clone

CONFIGS = PROJECT_ROOT / "configs" / "unet"


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    clone = Clone(tmp_path)
    for name in ("fine_tuning.sh", "train_unet.sh"):
        shutil.copy(PROJECT_ROOT / name, clone.root)
    shutil.copytree(CONFIGS, clone.root / "configs" / "unet")
    (clone.elsewhere / "an'na clips").mkdir()
    return clone


def fine_tune(clone: Clone, *words: str, **variables: str):
    return clone.bash('script="$1/fine_tuning.sh"; shift; "$script" "$@"', *words, **variables)


def run_config(clone: Clone, name: str):
    return load_unet_config(clone.elsewhere / "output" / "fine_tuning" / name / "config.yaml", UNetConfig)


def test_list_then_training_then_the_command_to_use_it(clone: Clone) -> None:
    output = clone.elsewhere / "output" / "fine_tuning" / "an'na clips-embedded-lora"
    (output / "checkpoints").mkdir(parents=True)
    for step in (20, 100):
        (output / "checkpoints" / f"unet-{step}.safetensors").touch()
    result = fine_tune(clone, "an'na clips", "--model", "embedded", "--val_video", "v 1.mp4", "--dry_run")
    assert result.returncode == 0, result.stderr
    assert [call.strip() for call in clone.calls()[-2:]] == [
        f"[-P] [-m] [tools.write_fileslist] [--input_dir={clone.elsewhere}/an'na clips] [--output={output}/clips.txt]",
        f"[-P] [-m] [scripts.train_unet] [--unet_config_path={output}/config.yaml] [--dry_run]",
    ]
    config = run_config(clone, output.name)
    assert (config.data.train_output_dir, config.data.val_video_path) == (str(output), "v 1.mp4")
    assert config.data.train_fileslist == f"{output}/clips.txt" and config.run.lora_rank == 8
    printed = clone.bash(f'for word in {result.stdout.splitlines()[-1]}; do echo "[$word]"; done').stdout.splitlines()
    adapter = output / "checkpoints" / "unet-100.safetensors"
    assert printed == [
        *(f"[{word}]" for word in (clone.root / "inference.sh", "VIDEO", "AUDIO")),
        *(f"[{word}]" for word in ("--model", "embedded", "--lora", adapter)),
    ]


def test_full_fine_tuning(clone: Clone) -> None:
    output = clone.elsewhere / "output" / "fine_tuning" / "an'na clips-latentsync-1.5-full"
    (output / "checkpoints").mkdir(parents=True)
    (output / "checkpoints" / "unet-7.pt").touch()
    result = fine_tune(clone, "an'na clips", "--full", "--model", "latentsync-1.5")
    words = result.stdout.splitlines()[-1]
    assert "--inference_ckpt_path" in words and "unet-7.pt" in words and "config.yaml" in words
    assert run_config(clone, output.name).run.trainable_modules == ("motion_modules.", "attentions.")


def test_own_config_and_output(clone: Clone) -> None:
    (clone.elsewhere / "own.yaml").write_text(f"base: {CONFIGS}/debug.yaml\nrun:\n  max_train_steps: 3\n")
    assert fine_tune(clone, "an'na clips", "--config", "own.yaml", "--output", "o").returncode == 0
    config = load_unet_config(clone.elsewhere / "o" / "config.yaml", UNetConfig)
    assert config.run.max_train_steps == 3 and config.data.train_output_dir == f"{clone.elsewhere}/o"


def test_the_model_follows_the_machine(clone: Clone) -> None:
    tools = clone.python.with_name("bin")
    tools.mkdir()
    (tools / "nvidia-smi").write_text('#!/bin/bash\nexit "$NO_GPU"\n')
    (tools / "nvidia-smi").chmod(0o755)
    path = f"{tools}:/usr/bin:/bin"
    for no_gpu, model in (("1", "embedded"), ("0", "latentsync-1.5")):
        result = fine_tune(clone, "an'na clips", NO_GPU=no_gpu, PATH=path)
        assert result.returncode == 0 and f"model {model};" in result.stderr
        assert (clone.elsewhere / "output" / "fine_tuning" / f"an'na clips-{model}-lora" / "config.yaml").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "CLIPS_FOLDER is missing"),
        (("--lora",), "CLIPS_FOLDER is missing"),
        (("nowhere",), "nowhere: no such folder of clips"),
        (("an'na clips", "--model"), "--model needs a value"),
        (("an'na clips", "--model", "big"), "unknown model big"),
        (("an'na clips", "--config", "none.yaml"), "none.yaml: no such config"),
    ],
)
def test_wrong_usage(clone: Clone, words: tuple[str, ...], message: str) -> None:
    result = fine_tune(clone, *words)
    assert result.returncode == 2 and message in result.stderr.splitlines()[-1]
    assert not (clone.elsewhere / "output").exists()


@pytest.mark.parametrize("failing", ["tools.write_fileslist", "scripts.train_unet"])
def test_failures_end_it(clone: Clone, failing: str) -> None:
    result = fine_tune(clone, "an'na clips", "--model", "embedded", FAIL_ON=failing)
    assert result.returncode == 7 and failing in clone.calls()[-1] and result.stdout == ""


def test_help(clone: Clone) -> None:
    result = fine_tune(clone, "--help")
    assert result.returncode == 0 and "--lora" in result.stdout and "set -euo" not in result.stdout


@pytest.mark.parametrize(
    ("name", "resolution", "is_lora"),
    [
        ("fine_tune", 256, False),
        ("fine_tune_512", 512, False),
        ("fine_tune_lora", 256, True),
        ("fine_tune_lora_512", 512, True),
        ("embedded_fine_tune", 256, False),
        ("embedded_lora", 256, True),
    ],
)
def test_configs(name: str, resolution: int, is_lora: bool) -> None:
    config = load_unet_config(CONFIGS / f"{name}.yaml", UNetConfig)
    assert config.data.resolution == resolution
    assert bool(config.run.lora_rank) == is_lora and config.ckpt.resume_ckpt_path
