"""Check the container files without building them: `python -m tools.check_containers`. One line for each thing wrong.

Dockerfiles: a pinned base, a user other than root, a health check, port 8000, every COPY source in the repository and
let through by .dockerignore, nothing fetched by ADD, no secret values, package lists of apt removed, a command that is
a list and whose program exists and is copied. Compose file: builds that exist, declared volumes, ports that lead to
8000, no secret values.
"""

import fnmatch
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import yaml

from latentsync.constants import PROJECT_ROOT
from latentsync.utils.errors import UserError

DOCKERFILES = ("Dockerfile", "Dockerfile.cpu")
COMPOSE = "docker-compose.yml"
PORT = "8000"
SECRET = re.compile(r"(key|token|secret|password|passwd|credential)", re.IGNORECASE)
PIN = re.compile(r"[\w.-]+(\[[\w,-]+\])?==[\w.+!-]+( *;.*)?")


@dataclass(frozen=True)
class Instruction:
    line: int
    name: str
    value: str

    def words(self) -> list[str] | None:
        """The value as a JSON list of strings; None where it is not one."""
        try:
            words = json.loads(self.value)
        except json.JSONDecodeError:
            return None
        return words if isinstance(words, list) and all(isinstance(word, str) for word in words) else None


def main() -> int:
    try:
        problems = check(PROJECT_ROOT)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


def check(root: Path) -> list[str]:
    """What is wrong with the container files of the repository at `root`."""
    files = repository_files(root)
    ignored = read_ignore(root / ".dockerignore")
    problems = []
    for name in DOCKERFILES:
        if (root / name).is_file():
            problems += [f"{name}:{problem}" for problem in check_dockerfile(root, name, files, ignored)]
        else:
            problems.append(f"{name}: is missing")
    return problems + [f"{COMPOSE}: {problem}" for problem in check_compose(root)]


def repository_files(root: Path) -> set[str]:
    """Paths that git tracks, or would with the next `git add`."""
    try:
        words = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        listed = subprocess.run(words, cwd=root, check=True, capture_output=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise UserError(f"{root}: git cannot list the files there ({error})") from error
    return {path for path in listed.split("\0") if path and (root / path).exists()}


def parse_dockerfile(text: str) -> list[Instruction]:
    """Instructions with their continued lines joined; comments left out."""
    found, parts, start = [], [], 0
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        start = start if parts else number
        parts.append(stripped.removesuffix("\\").strip())
        if not stripped.endswith("\\"):
            name, _, value = " ".join(parts).partition(" ")
            found.append(Instruction(start, name.upper(), value.strip()))
            parts = []
    return found


def check_dockerfile(root: Path, name: str, files: set[str], ignored: list[str]) -> Iterator[str]:
    steps = parse_dockerfile((root / name).read_text(encoding="utf-8"))

    def last(kind: str) -> Instruction:
        return next((step for step in reversed(steps) if step.name == kind), Instruction(0, kind, ""))

    stages = {step.value.split(" AS ")[-1].strip() for step in steps if step.name == "FROM" and " AS " in step.value}
    for step in steps:
        check_one = {"FROM": _base, "RUN": _run, "ADD": _add, "ENV": _environment, "ARG": _environment}.get(step.name)
        for problem in check_one(step, stages) if check_one else ():
            yield f"{step.line}: {problem}"
    if last("USER").value.split(":")[0] in ("", "root", "0"):
        yield "0: ends as root; give a USER"
    health = last("HEALTHCHECK").value
    if not health or health == "NONE":
        yield "0: has no HEALTHCHECK"
    if PORT not in last("EXPOSE").value.split():
        yield f"0: does not EXPOSE {PORT}"
    copied = list(_copied(steps))
    for line, source in copied:
        if not _holds(files, source):
            yield f"{line}: COPY {source}: not in the repository"
        elif is_ignored(source, ignored):
            yield f"{line}: COPY {source}: .dockerignore keeps it out"
        elif source.startswith("requirements"):
            yield from (f"{line}: {source}: {problem}" for problem in _loose_pins(root / source))
    yield from _command(last("CMD") if last("CMD").value else last("ENTRYPOINT"), {path for _, path in copied}, files)


def _base(step: Instruction, stages: set[str]) -> Iterator[str]:
    image = step.value.split()[0]
    tag = image.partition("@")[0].rpartition("/")[2].partition(":")[2]
    if image not in stages and "@sha256:" not in image and not re.search(r"\d+\.\d+", tag):
        yield f"FROM {image}: give a version"


def _run(step: Instruction, stages: set[str]) -> Iterator[str]:
    if re.search(r"\bapt(-get)? install\b", step.value):
        for wanted in ("--no-install-recommends", "apt-get update", "rm -rf /var/lib/apt/lists/*"):
            if wanted not in step.value:
                yield f"apt without `{wanted}` in the same RUN"
    if re.search(r"(curl|wget)[^|&;]*\|\s*(ba)?sh\b", step.value):
        yield "runs what it downloads"
    if "pip install" in step.value and "--no-cache-dir" not in step.value:
        yield "pip leaves its cache in the image; give --no-cache-dir"


def _add(step: Instruction, stages: set[str]) -> Iterator[str]:
    yield "ADD unpacks and downloads; use COPY"


def _environment(step: Instruction, stages: set[str]) -> Iterator[str]:
    for word in shlex.split(step.value):
        variable, _, value = word.partition("=")
        if value and SECRET.search(variable):
            yield f"{step.name} {variable}: a secret would stay in the image; give it when the container starts"


def _copied(steps: list[Instruction]) -> Iterator[tuple[int, str]]:
    """(line, source) of what comes from the repository."""
    for step in steps:
        words = step.words() or shlex.split(step.value)
        if step.name == "COPY" and not any(word.startswith("--from=") for word in words):
            sources = [word for word in words if not word.startswith("--")][:-1]
            yield from ((step.line, str(PurePosixPath(source))) for source in sources)


def _command(step: Instruction, copied: set[str], files: set[str]) -> Iterator[str]:
    words = step.words()
    if not words:
        yield f"{step.line}: the command must be a list in JSON, so that signals reach it"
        return
    if not re.fullmatch(r"python[\d.]*", words[0]) or len(words) < 2:
        yield f"{step.line}: the command must begin with python and a program of the repository"
        return
    program = f"{words[2].replace('.', '/')}.py" if words[1] == "-m" else words[1]
    if program not in files or not any(PurePosixPath(program).is_relative_to(path) for path in copied):
        yield f"{step.line}: {program}, which the command runs, is not copied into the image"


def _holds(files: set[str], source: str) -> bool:
    """Whether the repository has that file, or something in that folder."""
    return source in files or any(path.startswith(f"{source}/") for path in files)


def _loose_pins(path: Path) -> Iterator[str]:
    for line in path.read_text(encoding="utf-8").splitlines():
        wanted = line.partition("#")[0].strip()
        if wanted and not PIN.fullmatch(wanted):
            yield f"{wanted} is not pinned"


def read_ignore(path: Path) -> list[str]:
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def is_ignored(path: str, patterns: list[str]) -> bool:
    """Whether .dockerignore keeps a path out: the last pattern that fits it, or a folder it lies in, decides."""
    places = [str(place) for place in (PurePosixPath(path), *PurePosixPath(path).parents)][:-1]
    ignored = False
    for pattern in patterns:
        wanted = pattern.removeprefix("!").strip("/")
        if any(fnmatch.fnmatch(place, wanted) for place in places):
            ignored = not pattern.startswith("!")
    return ignored


def check_compose(root: Path) -> Iterator[str]:
    try:
        content = yaml.safe_load((root / COMPOSE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        yield "is missing"
        return
    except yaml.YAMLError as error:
        yield f"is not YAML: {' '.join(str(error).split())}"
        return
    for name, service in content["services"].items():
        for problem in _service(root, service, set(content.get("volumes") or {})):
            yield f"{name}: {problem}"


def _service(root: Path, service: dict, volumes: set[str]) -> Iterator[str]:
    dockerfile = service.get("build", {}).get("dockerfile", "Dockerfile")
    if dockerfile not in DOCKERFILES or not (root / dockerfile).is_file():
        yield f"{dockerfile}: no such Dockerfile"
    if service.get("privileged") or service.get("network_mode") == "host":
        yield "has the machine to itself; leave out privileged and network_mode: host"
    for port in service.get("ports", []):
        if str(port).rpartition(":")[2] != PORT:
            yield f"port {port}: the container listens on {PORT}"
    for volume in service.get("volumes", []):
        source = str(volume).partition(":")[0]
        if source not in volumes and not source.startswith((".", "/")):
            yield f"volume {source}: is not declared"
    if not isinstance(service.get("command", []), list):
        yield "command must be a list"
    for variable, value in (service.get("environment") or {}).items():
        if SECRET.search(variable) and not str(value).startswith("${"):
            yield f"{variable}: a secret's value does not belong in this file; take it from the environment"


if __name__ == "__main__":
    sys.exit(main())
