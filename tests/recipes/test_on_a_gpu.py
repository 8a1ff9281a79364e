"""recipes/on_a_gpu.sh with an interpreter that only records its commands."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from recipes.embedded import train
from tests.waiting import HANG_SECONDS
from tools import benchmark

SCRIPT = Path(__file__).parents[2] / "recipes" / "on_a_gpu.sh"
SIDES = (256, 512)
PARTS = ["tests", *(f"{name}_{side}_eager" for name in ("networks", "gpu") for side in SIDES)]
PARTS += [*(f"gpu_{side}_compiled" for side in SIDES), "training", "precisions"]
PARTS += [f"networks_{side}_compiled" for side in SIDES]
# FAIL_ON, HANG_ON: a word in the arguments. NO_GPU: set if there is none.
FAKE_PYTHON = r"""#!/bin/bash
if [ "$1" = -c ]; then exit "${NO_GPU:-0}"; fi
echo "$*" >>"$LOG"
case "$*" in *"${HANG_ON:-nothing}"*) exec sleep 600 ;; esac
case "$*" in *"${FAIL_ON:-nothing}"*) echo "no such thing"; exit 7 ;; esac
"""


class Caller:
    def __init__(self, folder: Path) -> None:
        self.output, self.log = folder / "the figures", folder / "log"
        self.python = folder / "python"
        self.python.write_text(FAKE_PYTHON)
        self.python.chmod(0o755)

    def __call__(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {"PATH": "/usr/bin:/bin", "PYTHON": str(self.python), "LOG": str(self.log), "DATA": "none"}
        environment |= variables
        command = ["bash", str(SCRIPT), *arguments, str(self.output)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=HANG_SECONDS)

    @property
    def calls(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []

    def left(self, suffix: str) -> set[str]:
        return {path.stem for path in self.output.glob(f"*.{suffix}")}


@pytest.fixture
def call(tmp_path):
    return Caller(tmp_path)


def test_every_part_runs_once(call):
    first = call()
    assert first.returncode == 0 and "everything is done" in first.stdout
    assert call.left("done") == set(PARTS) and len(call.calls) == len(PARTS)
    assert "pytest -q -m gpu" in call.calls[0]
    assert [re.findall(r"(\w+)\.json", line) for line in call.calls[1:]] == [[name] for name in PARTS[1:]]
    assert call().returncode == 0 and len(call.calls) == len(PARTS)


def test_all_tests_that_need_a_gpu_are_run(call):
    call()
    named = set(re.findall(r"tests/\S+\.py", call.calls[0]))
    root = SCRIPT.parents[1]
    marked = [path for path in root.glob("tests/**/test_*.py") if "pytest.mark.gpu" in path.read_text()]
    assert named == {str(path.relative_to(root)) for path in marked if path != Path(__file__)}


@pytest.mark.parametrize("mode", [(), ("--tiny",)])
def test_the_embedded_model_is_trained_first_where_its_data_is(call, tmp_path, mode):
    (tmp_path / "train.safetensors").touch()
    call(*mode, DATA=str(tmp_path))
    words = [shlex.split(line.replace(str(call.output), "out")) for line in call.calls[:3]]
    stages = [train.parse(options) for _, module, *options in words if module == "recipes.embedded.train"]
    assert [options.stages for options in stages] == [["syncnet"], ["refine"], ["export"]]
    assert all(options.start.is_dir() for options in stages)
    assert all(options.quick == bool(mode) and options.device == ("cpu" if mode else "cuda") for options in stages)


def test_wheels_are_installed_once(call, tmp_path):
    (tmp_path / "wheels").mkdir()
    for _ in range(2):
        call(WHEELS=str(tmp_path / "wheels"))
    assert sum("pip install" in line for line in call.calls) == 1


def test_the_benchmarks_take_the_options(call):
    call()
    call("--tiny")
    words = [shlex.split(line.replace(str(call.output), "out")) for line in call.calls if "tools.benchmark" in line]
    assert len(words) == len(PARTS) - 1 + 2  # of the tiny ones, precisions has been done
    for _, _, *options in words:
        assert benchmark.parse_options(options).section in benchmark.sections()


def test_a_failed_part_does_not_stop_the_others(call):
    result = call(FAIL_ON="gpu --resolution 512 --levers eager")
    assert result.returncode == 1 and "gpu_512_eager failed (exit code 7)" in result.stdout
    assert call.left("failed") == {"gpu_512_eager"} and call.left("done") == set(PARTS) - {"gpu_512_eager"}
    assert "no such thing" in (call.output / "gpu_512_eager.log").read_text()


def test_a_part_that_takes_too_long_is_run_again(call):
    result = call(HANG_ON="--levers compiled", LIMIT="3")
    assert result.returncode == 0 and re.search("time is up (before|during) ", result.stdout)
    assert "gpu_256_compiled" not in call.left("done") and not call.left("failed")
    assert "everything is done" in call().stdout


def test_without_a_gpu(call):
    result = call(NO_GPU="1")
    assert result.returncode == 1 and "no CUDA device" in result.stderr and not call.calls
    tiny = call("--tiny", NO_GPU="1")
    assert tiny.returncode == 0 and call.left("done") == {"networks", "gpu", "precisions"}
