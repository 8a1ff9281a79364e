"""Programs whose standard output or error is closed, full, or without a reader finish their work."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from latentsync.utils.paths import PACKAGE_PARENT

PROGRAM = """
import logging, os, sys
from latentsync.utils.commands import command

@command
def main(argv=None):
    logging.basicConfig()
    for number in range(3):
        print("line", number)
        logging.warning("warning %d", number)
    with open(argv[0], "wb") as result:
        os.write(2, b"of a library")
        result.write(b"the result")

sys.exit(command(main)(sys.argv[1:]))  # as in the latentsync command
"""
FULL = "error: standard output cannot be written (No space left on device)"


@pytest.mark.parametrize(
    ("redirection", "code", "message"),
    [
        (">&-", 0, None),
        ("2>&-", 0, None),
        ("<&- >&- 2>&-", 0, None),
        ("2>/dev/full", 0, None),
        (">/dev/full", 1, FULL),
        (">/dev/full 2>&1", 1, None),
    ],
)
def test_work_is_finished(tmp_path: Path, redirection: str, code: int, message: str | None) -> None:
    run = _run(tmp_path, redirection)
    assert (tmp_path / "result").read_bytes() == b"the result"
    assert run.returncode == code, run.stderr
    assert "Traceback" not in run.stderr and "Exception" not in run.stderr
    assert run.stderr.count("error:") == (message is not None)
    assert message is None or message in run.stderr


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_reader_that_has_exited(tmp_path: Path, stream: str) -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as closed:
        run = _run(tmp_path, "", **{stream: closed})
    assert (tmp_path / "result").read_bytes() == b"the result"
    assert run.returncode == (1 if stream == "stdout" else 0)  # some of the output was lost
    assert "Traceback" not in (run.stderr or "") and "error" not in (run.stderr or "")


def test_a_current_folder_that_is_gone(tmp_path: Path) -> None:
    run = _run(tmp_path, "", before="mkdir gone; cd gone; rmdir ../gone;")
    assert run.returncode == 1
    assert run.stderr.strip().splitlines()[-1].startswith("error: the current folder cannot be reached")


def _run(folder: Path, redirection: str, before: str = "", **streams) -> subprocess.CompletedProcess:
    (folder / "program.py").write_text(PROGRAM)
    words = f"{before} exec {sys.executable} {folder}/program.py {folder}/result {redirection}"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    environment["PYTHONPATH"] = str(PACKAGE_PARENT)
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | streams
    return subprocess.run(["bash", "-c", words], cwd=folder, env=environment, text=True, **streams)
