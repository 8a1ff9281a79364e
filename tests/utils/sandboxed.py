"""Functions that the tests of the sandbox run in it."""

import ctypes
import os
import time
from pathlib import Path
from typing import Any

from latentsync.utils.errors import UserError


def echo(path: Path, *args: Any) -> list:
    return [path, *args]


def pid(path: Path) -> int:
    return os.getpid()


def fail(path: Path) -> None:
    raise UserError("it is broken")


def defect(path: Path) -> float:
    return 1 / 0


def crash(path: Path) -> None:
    ctypes.string_at(0)


def leave(path: Path) -> None:
    os._exit(3)


def sleep(path: Path) -> None:
    time.sleep(600)


def read(path: Path) -> bytes:
    return path.read_bytes()


def spin(path: Path) -> None:
    while True:
        pass


def allocate(path: Path, size: int) -> int:
    return len(bytearray(size))


def open_files(path: Path) -> int:
    held = []
    try:
        while True:
            held.append(os.open(path, os.O_RDONLY))
    except OSError:
        return len(held)


def write(path: Path) -> None:
    (path / "written").write_bytes(bytes(100))


class _Payload:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.system, (f"touch '{self.path}/owned'",)


def malicious(path: Path) -> Any:
    return _Payload(path)
