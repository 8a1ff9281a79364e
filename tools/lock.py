"""Write the lock files requirements*.txt from pyproject.toml: `python tools/lock.py [--upgrade]`. Needs uv.

They list every package, with exact versions and the hashes of all its files. Install them without dependency
resolution (`pip install --no-deps -r requirements.txt`), because packages/README.md corrects declared dependencies.

requirements.txt       inference, serving, training and evaluation
requirements-cuda.txt  additional packages of PyTorch's CUDA build on Linux
requirements-dev.txt   tests and checks, in addition
"""

import argparse
import re
import subprocess
import tempfile
import tomllib
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RUNTIME, CUDA, DEVELOPMENT = "requirements.txt", "requirements-cuda.txt", "requirements-dev.txt"
HEADER = "# Written by tools/lock.py from pyproject.toml.\n# pip install --no-deps {files}\n"
BUILD = ["hatchling>=1.27", "editables>=0.5"]  # install the project itself without build isolation
BLOCK = re.compile(r"^[a-z0-9][^\n]*\n(?:    [^\n]*\n)*", re.MULTILINE)
OF_CUDA = re.compile(r"nvidia-|cuda-|triton$")
REPACKAGED = " @ {root:uri}/"


def read_project(folder: Path) -> dict:
    return tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def requirements(declared: Iterable[str]) -> tuple[list[str], list[str]]:
    """(requirements to resolve, pinned requirements of the repackaged packages, whose dependencies are corrected)."""
    resolved, fixed = [], []
    for requirement in declared:
        if REPACKAGED not in requirement:
            resolved.append(requirement)
            continue
        package = read_project(ROOT / requirement.partition(REPACKAGED)[2])
        resolved += package["dependencies"]
        fixed.append(f"{package['name']}=={package['version'].partition('+')[0]}")
    return resolved, fixed


def compile_lock(wanted: list[str], preferred: str, *options: str) -> dict[str, str]:
    """Lock file lines by package. preferred: existing lock files, whose versions are kept if they still fit."""
    words = ["uv", "pip", "compile", "-", "--universal", "--python-version=3.11", "--generate-hashes", "--no-annotate"]
    with tempfile.NamedTemporaryFile("w+", suffix=".txt") as lock:
        lock.write(preferred)
        lock.flush()
        subprocess.run(
            [*words, *options, "--no-header", "--quiet", f"--output-file={lock.name}"],
            input="\n".join(wanted),
            check=True,
            text=True,
        )
        text = Path(lock.name).read_text(encoding="utf-8")
    blocks: dict[str, str] = {}
    for block in BLOCK.findall(text):
        name = re.split(r"[=\[ ]", block)[0]
        blocks[name] = blocks.get(name, "") + block
    return blocks


def write(name: str, blocks: dict[str, str], *together: str) -> None:
    header = HEADER.format(files=" ".join(f"-r {file}" for file in (*together, name)))
    (ROOT / name).write_text(header + "".join(blocks[key] for key in sorted(blocks)), encoding="utf-8")
    print(f"{name}: {len(blocks)} packages")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--upgrade", action="store_true", help="upgrade to the newest versions that pyproject.toml allows"
    )
    upgrade = parser.parse_args().upgrade
    files = [ROOT / name for name in (RUNTIME, CUDA, DEVELOPMENT)]
    preferred = "" if upgrade else "".join(path.read_text(encoding="utf-8") for path in files if path.exists())

    project = read_project(ROOT)
    extras = project["optional-dependencies"]
    runtime, fixed = requirements([*project["dependencies"], *extras["serve"], *extras["train"], *BUILD])
    development, fixed_development = requirements(extras["dev"])
    everything = compile_lock([*runtime, *development], preferred)
    everything |= compile_lock([*fixed, *fixed_development], preferred, "--no-deps")
    pins = "".join(everything.values())
    production = compile_lock(runtime, pins) | compile_lock(fixed, pins, "--no-deps")
    cuda = {name: block for name, block in production.items() if OF_CUDA.match(name)}
    write(RUNTIME, {name: block for name, block in production.items() if name not in cuda})
    write(CUDA, cuda, RUNTIME)
    write(DEVELOPMENT, {name: block for name, block in everything.items() if name not in production}, RUNTIME)


if __name__ == "__main__":
    main()
