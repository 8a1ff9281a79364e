"""The installable package: what the lock files and the wheel hold, and an installation into an empty environment."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from latentsync.utils import paths
from latentsync.utils.paths import PROJECT_ROOT

LOCKS = ("requirements.txt", "requirements-cuda.txt", "requirements-dev.txt")
PROJECT = tomllib.loads((PROJECT_ROOT / "pyproject.toml").read_text())["project"]


def locked(name: str) -> dict[str, str]:
    """Version by package of a lock file; packages whose version depends on the platform stand there twice."""
    text = (PROJECT_ROOT / name).read_text()
    assert len(re.findall("^[a-z0-9].*==", text, re.MULTILINE)) == len(re.findall(r"==.*\\\n    --hash=sha256:", text))
    assert "://" not in text, "a lock file names no package host"
    return dict(re.findall(r"^([a-z0-9.-]+)(?:\[.*\])?==(\S+)", text, re.MULTILINE))


def normalized(requirement: str) -> str:
    return re.split(r"[\[<>=! @]", requirement)[0].lower().replace("_", "-")


def test_lock_files_cover_what_is_declared() -> None:
    runtime, cuda, development = (locked(name) for name in LOCKS)
    extras = PROJECT["optional-dependencies"]
    for requirement in [*PROJECT["dependencies"], *extras["serve"], *extras["train"]]:
        assert normalized(requirement) in runtime
    for requirement in extras["dev"]:
        assert normalized(requirement) in {**runtime, **development}
    assert not runtime.keys() & development.keys() and not runtime.keys() & cuda.keys()
    assert not {"pytest", "ruff", "mypy", "selenium"} & runtime.keys(), "test tools stay out of the production image"
    assert not [name for name in runtime if name.startswith(("nvidia-", "triton"))], "no CUDA on CPU machines"


def test_repackaged_packages_are_locked_in_the_same_release() -> None:
    runtime = locked("requirements.txt")
    for folder in (path.parent for path in (PROJECT_ROOT / "packages").glob("*/pyproject.toml")):
        project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
        assert project["name"] == folder.name
        assert project["version"] == f"{runtime[folder.name]}+relaxed"


def test_project_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert paths.project_path("configs/audio.yaml") == PROJECT_ROOT / "configs" / "audio.yaml"
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "audio.yaml").touch()
    assert paths.project_path("configs/audio.yaml") == Path("configs/audio.yaml")
    monkeypatch.setattr(paths, "CHECKPOINTS_DIR", tmp_path / "mine")
    assert paths.project_path("checkpoints/own.pt") == tmp_path / "mine" / "own.pt"
    assert paths.project_path("checkpoints/embedded/vae") == PROJECT_ROOT / "checkpoints" / "embedded" / "vae"


@pytest.mark.slow
def test_plain_pip_install_runs_elsewhere(tmp_path: Path) -> None:
    """Fetches packages. `pip install .` into an empty environment, then command and Python API in another folder."""
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    run = {"cwd": tmp_path, "check": True, "env": os.environ | {"HOME": str(tmp_path), "PYTHONPATH": ""}}
    subprocess.run([tmp_path / "venv/bin/pip", "install", "--quiet", str(PROJECT_ROOT)], **run)
    subprocess.run([tmp_path / "venv/bin/pip", "check"], **run)
    subprocess.run([tmp_path / "venv/bin/latentsync", "infer", "--max_seconds", "0.5", "--quiet"], **run)
    assert (tmp_path / "outputs" / "demo.mp4").stat().st_size > 1000
    assets = PROJECT_ROOT / "assets"
    script = (
        "from latentsync import load_pipeline\n"
        f"print(load_pipeline()({str(assets / 'demo_portrait.png')!r}, {str(assets / 'demo_voice.wav')!r}, 'r.mp4', "
        "max_seconds=0.5).num_frames)"
    )
    subprocess.run([tmp_path / "venv/bin/python", "-c", script], **run)
    assert (tmp_path / "r.mp4").stat().st_size > 1000
