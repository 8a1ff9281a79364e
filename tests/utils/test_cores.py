"""The thread budget: affinity, quotas of control groups, existing settings, and shares of workers."""

import subprocess
import sys
from pathlib import Path

import pytest

from latentsync.utils import cores
from latentsync.utils.paths import PROJECT_ROOT

PROGRAMS = ("scripts", "tools", "eval", "preprocess", "recipes")


@pytest.fixture
def many_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "_affinity", lambda: 16)
    for name in (cores.THREADS, cores.OPENCV_THREADS, cores.WAIT_POLICY):
        monkeypatch.setenv(name, "")  # so that the variable is restored at the end, even if it is not set now
        monkeypatch.delenv(name)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize(
    "own, files, expected",
    [
        ("0::/", {}, 16),
        ("0::/", {"cpu.max": "max 100000"}, 16),
        ("0::/", {"cpu.max": "250000 100000"}, 3),
        ("0::/pod/box", {"cpu.max": "max 100000", "pod/cpu.max": "400000 100000", "pod/box/cpu.max": "max 100000"}, 4),
        ("0::/box", {"box/cpu.max": "50000 100000"}, 1),
        ("4:cpu,cpuacct:/box", {"cpu,cpuacct/box/cpu.cfs_quota_us": "200000",
                                "cpu,cpuacct/box/cpu.cfs_period_us": "100000"}, 2),
        ("4:cpu:/box", {"cpu/box/cpu.cfs_quota_us": "-1", "cpu/box/cpu.cfs_period_us": "100000"}, 16),
        ("7:memory:/box\n0::/box", {"memory/box/cpu.max": "100000 100000"}, 16),
    ],
)  # fmt: skip
def test_quotas_limit_the_cores(many_cores: None, tmp_path: Path, own: str, files: dict[str, str], expected: int):
    write(tmp_path / "own", own)
    for name, text in files.items():
        write(tmp_path / "cgroup" / name, text)
    assert cores.available_cores(tmp_path / "own", tmp_path / "cgroup") == expected


def test_without_control_groups_the_affinity_counts(many_cores: None, tmp_path: Path):
    assert cores.available_cores(tmp_path / "none", tmp_path) == 16


def test_a_quota_sets_the_variables_and_no_quota_leaves_them(many_cores: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cores, "available_cores", lambda: 16)
    cores.set_thread_budget()
    assert cores.os.environ.get(cores.THREADS) is None
    assert cores.os.environ[cores.WAIT_POLICY] == "passive"
    monkeypatch.setattr(cores, "available_cores", lambda: 3)
    cores.set_thread_budget()
    assert cores.os.environ[cores.THREADS] == cores.os.environ[cores.OPENCV_THREADS] == "3"


def test_existing_settings_are_kept_and_shared_by_workers(many_cores: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(cores.THREADS, "6,2")
    monkeypatch.setenv(cores.OPENCV_THREADS, "5")
    cores.set_thread_budget()
    assert cores.thread_budget() == 6
    assert cores.os.environ[cores.OPENCV_THREADS] == "5"
    assert cores.threads_each(4) == 1
    assert cores.worker_environment(2) == {cores.THREADS: "3", cores.OPENCV_THREADS: "3"}


def test_nonsense_in_the_variable_counts_as_unset(many_cores: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cores, "available_cores", lambda: 4)
    monkeypatch.setenv(cores.THREADS, "all")
    assert cores.thread_budget() == 4


def test_libraries_follow_the_budget():
    code = (
        "import os; os.environ['OMP_NUM_THREADS'] = '1'; os.environ.pop('OPENCV_FOR_THREADS_NUM', None);"
        "from latentsync.utils import cores; cores._affinity = lambda: 4; cores.set_thread_budget();"
        "import cv2, torch; print(torch.get_num_threads(), cv2.getNumThreads(), cores.codec_threads())"
    )
    assert run(code) == "1 1 1"


@pytest.mark.parametrize("package", PROGRAMS)
def test_programs_set_the_budget_before_pytorch_is_imported(package: str):
    code = f"import os, sys; os.environ.pop('OMP_WAIT_POLICY', None); import {package};"
    assert run(code + "print('torch' in sys.modules, os.environ['OMP_WAIT_POLICY'])") == "False passive"


def test_workers_of_the_tests_divide_the_budget(monkeypatch: pytest.MonkeyPatch):
    """Also where the first process has set it, whose environment they inherit."""
    monkeypatch.setenv(cores.THREADS, "6")
    monkeypatch.setenv("PYTEST_XDIST_WORKER_COUNT", "2")
    assert run("from tests import conftest; from latentsync.utils import cores; print(cores.thread_budget())") == "3"


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PROJECT_ROOT)
    return done.stdout.strip()
