"""The container files pass their check, and each fault it is for is found."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tools.check_containers import COMPOSE, DOCKERFILES, PROJECT_ROOT, check, is_ignored, main, parse_dockerfile

DOCKERFILE = """\
FROM python:3.11.14-slim-bookworm
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --no-install-recommends --yes libgl1 \\
    # a remark between
    && rm -rf /var/lib/apt/lists/*
COPY requirements.txt ./
RUN pip install --no-cache-dir --requirement requirements.txt
COPY --chown=app app/ app/
USER 10001
EXPOSE 8000
HEALTHCHECK CMD ["python", "-c", "pass"]
CMD ["python", "-m", "app.serve"]
"""
SERVICES = {
    "services": {
        "page": {
            "build": {"context": ".", "dockerfile": "Dockerfile"},
            "ports": ["${BIND:-127.0.0.1}:80:8000"],
            "environment": {"APP_API_KEY": "${APP_API_KEY:?give one}"},
            "volumes": ["work:/work", "./models:/models"],
        }
    },
    "volumes": {"work": None},
}


def test_the_files_of_the_project_pass():
    assert check(PROJECT_ROOT) == []
    assert main() == 0


@pytest.fixture
def project(tmp_path) -> Path:
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "serve.py").touch()
    (tmp_path / "requirements.txt").write_text("torch==2.13.0\npkg[extra]==1.0  # why\n")
    for name in DOCKERFILES:
        (tmp_path / name).write_text(DOCKERFILE)
    (tmp_path / COMPOSE).write_text(yaml.safe_dump(SERVICES))
    (tmp_path / ".dockerignore").write_text("*\n!app\n!requirements.txt\n**/__pycache__\n")
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    return tmp_path


def test_a_sound_project_passes(project):
    assert check(project) == []


@pytest.mark.parametrize(
    ("given", "instead", "message"),
    [
        (":3.11.14-slim-bookworm", ":latest", "Dockerfile:1: FROM python:latest: give a version"),
        (":3.11.14-slim-bookworm", "", "Dockerfile:1: FROM python: give a version"),
        ("    && rm -rf /var/lib/apt/lists/*", "    && true", "apt without `rm -rf"),
        (" --no-install-recommends", "", "apt without `--no-install-recommends`"),
        (" --no-cache-dir", "", "pip leaves its cache"),
        ("USER 10001", "USER root", "ends as root"),
        ("USER 10001\n", "", "ends as root"),
        ("EXPOSE 8000", "EXPOSE 80", "does not EXPOSE 8000"),
        ('HEALTHCHECK CMD ["python", "-c", "pass"]\n', "", "has no HEALTHCHECK"),
        ("COPY --chown=app app/ app/", "COPY app/ gone/ ./", "COPY gone: not in the repository"),
        ("COPY requirements.txt ./", "ADD https://example.org/a.tar /a", "ADD unpacks and downloads"),
        ("USER 10001", "ENV APP_TOKEN=abc\nUSER 10001", "ENV APP_TOKEN: a secret"),
        ("USER 10001", "RUN curl -s https://example.org/x | sh\nUSER 10001", "runs what it downloads"),
        ('["python", "-m", "app.serve"]', "python -m app.serve", "must be a list in JSON"),
        ("app.serve", "app.gone", "app/gone.py, which the command runs"),
        ('["python", "-m", "app.serve"]', '["sleep", "9"]', "must begin with python"),
    ],
)
def test_faults_of_a_dockerfile_are_found(project, given, instead, message):
    assert given in DOCKERFILE
    (project / "Dockerfile").write_text(DOCKERFILE.replace(given, instead))
    problems = check(project)
    assert any(message in problem for problem in problems) and all(p.startswith("Dockerfile:") for p in problems)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda service: service.update(build={"dockerfile": "Dockerfile.gone"}), "no such Dockerfile"),
        (lambda service: service.update(privileged=True), "has the machine to itself"),
        (lambda service: service.update(ports=["8000:7860"]), "the container listens on 8000"),
        (lambda service: service["volumes"].append("models:/models"), "volume models: is not declared"),
        (lambda service: service.update(command="python x.py"), "command must be a list"),
        (lambda service: service["environment"].update(APP_API_KEY="abc"), "a secret's value does not belong"),
    ],
)
def test_faults_of_the_compose_file_are_found(project, change: Callable[[dict], None], message):
    content = yaml.safe_load(yaml.safe_dump(SERVICES))
    change(content["services"]["page"])
    (project / COMPOSE).write_text(yaml.safe_dump(content))
    assert [message in problem for problem in check(project)] == [True]


def test_other_faults_are_found(project, capsys):
    (project / "requirements.txt").write_text("torch>=2\n")
    assert any("torch>=2 is not pinned" in problem for problem in check(project))
    (project / ".dockerignore").write_text("*\n!requirements.txt\n")
    assert any(".dockerignore keeps it out" in problem for problem in check(project))
    (project / COMPOSE).write_text("services: [")
    assert any("is not YAML" in problem for problem in check(project))
    (project / COMPOSE).unlink()
    (project / "Dockerfile.cpu").unlink()
    assert {"Dockerfile.cpu: is missing", f"{COMPOSE}: is missing"} <= set(check(project))
    shutil.rmtree(project / ".git")


def test_continued_lines_are_one_instruction():
    steps = parse_dockerfile(DOCKERFILE)
    assert [(step.line, step.name) for step in steps[:3]] == [(1, "FROM"), (3, "RUN"), (6, "COPY")]
    assert steps[1].value.endswith("libgl1 && rm -rf /var/lib/apt/lists/*")


def test_the_last_pattern_that_fits_decides():
    patterns = ["*", "!app", "app/data", "**/__pycache__"]
    assert [is_ignored(path, patterns) for path in ("app", "app/a.py", "app/data/x", "other", "app/__pycache__")] == [
        False,
        False,
        True,
        True,
        True,
    ]
