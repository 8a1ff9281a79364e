"""The installable package: contents of lock files and wheel, and an installation into an empty environment."""

import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from latentsync.utils import paths
from latentsync.utils.paths import PROJECT_ROOT
from tests.pipelines.scenes import clip
from tests.tiny_model import TinyFiles

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


def test_lock_files_cover_all_declared_dependencies() -> None:
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
    versions = locked("requirements.txt") | locked("requirements-dev.txt")
    for folder in (path.parent for path in (PROJECT_ROOT / "packages").glob("*/pyproject.toml")):
        project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
        assert project["name"] == folder.name
        assert project["version"] == f"{versions[folder.name]}+relaxed"


def test_project_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert paths.project_path("configs/audio.yaml") == PROJECT_ROOT / "configs" / "audio.yaml"
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "audio.yaml").touch()
    assert paths.project_path("configs/audio.yaml") == Path("configs/audio.yaml")
    monkeypatch.setattr(paths, "CHECKPOINTS_DIR", tmp_path / "mine")
    assert paths.project_path("checkpoints/own.pt") == tmp_path / "mine" / "own.pt"
    assert paths.project_path("checkpoints/embedded/vae") == PROJECT_ROOT / "checkpoints" / "embedded" / "vae"


def closure(names: set[str]) -> set[str]:
    """Installed distributions that these need, with themselves."""
    found: set[str] = set()
    while names:
        name = names.pop()
        found.add(name)
        try:
            requirements = map(Requirement, importlib.metadata.requires(name) or [])
        except importlib.metadata.PackageNotFoundError:
            continue
        needed = (item.name for item in requirements if item.marker is None or item.marker.evaluate({"extra": ""}))
        names |= {normalized(name) for name in needed} - found
    return found


def test_inference_needs_no_extra(tmp_path: Path, tiny_files: TinyFiles) -> None:
    """With the packages that only extras install made unimportable: inference, download, a clear message of serve."""
    extras = {normalized(name) for group in PROJECT["optional-dependencies"].values() for name in group}
    optional = closure(extras) - closure({normalized(name) for name in PROJECT["dependencies"]})
    modules = importlib.metadata.packages_distributions().items()
    blocked = [module for module, owners in modules if {*map(normalized, owners)} <= optional]
    assert {"decord", "accelerate", "gradio", "librosa", "peft"} <= {*blocked}

    def run(*words: object) -> subprocess.CompletedProcess[str]:
        program = (
            f"import sys; sys.modules.update(dict.fromkeys({blocked})); from latentsync.cli import main;"
            f"sys.exit(main({[str(word) for word in words]}))"
        )
        return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=PROJECT_ROOT)

    video = clip(tmp_path / "video.mp4", 25, tone_seconds=1.0)
    model = ("--inference_ckpt_path", tiny_files.unet, "--unet_config_path", tiny_files.unet_config)
    model += ("--vae_path", tiny_files.vae, "--whisper_path", tiny_files.whisper)
    model += ("--scheduler_config_path", tiny_files.scheduler_config, "--inference_steps", 1, "--max_seconds", 0.1)
    inputs = ("--video_path", video, "--audio_path", video, "--face", "speaker")
    done = run("infer", *inputs, "--video_out_path", tmp_path / "out.mp4", *model)
    assert done.returncode == 0, done.stderr
    assert run("download", "--list").returncode == 0
    refused = run("serve")
    assert refused.returncode == 1 and "is not installed; " in refused.stderr
    assert len(refused.stderr.splitlines()) == 1


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
