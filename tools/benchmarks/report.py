"""Figures, the machine they were measured on, and their formats."""

import json
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from latentsync.utils.files import write_text


@dataclass(frozen=True)
class Figure:
    """One measured number. `limit` is its target, an upper bound; `value` is None if it could not be measured."""

    section: str
    name: str
    value: float | None
    unit: str
    limit: float | None = None
    note: str = ""

    @property
    def verdict(self) -> str:
        if self.value is None:
            return "not measured"
        if self.limit is None:
            return ""
        return "met" if self.value <= self.limit else "MISSED"

    @property
    def cells(self) -> tuple[str, str, str, str, str]:
        """name, value, target, verdict, note."""
        value = "" if self.value is None else f"{_number(self.value)} {self.unit}".rstrip()
        target = "" if self.limit is None else f"<= {self.limit:g} {self.unit}".rstrip()
        return self.name, value, target, self.verdict, self.note


class Journal:
    """Figures measured so far, kept in a file, so that an interrupted benchmark continues with the next ones."""

    def __init__(self, path: Path | None = None) -> None:
        """`path`: the file, which may exist; None keeps nothing."""
        self._path, self._groups = path, dict[str, list[Figure]]()
        if path is not None and path.is_file():
            groups = json.loads(path.read_text(encoding="utf-8"))
            self._groups = {name: [Figure(**row) for row in rows] for name, rows in groups.items()}

    def measure(self, name: str, call: Callable[[], list[Figure]]) -> list[Figure]:
        """The figures of the group `name`, measured by `call` unless they are known."""
        if name not in self._groups:
            self._groups[name] = call()
            if self._path is not None:
                rows = {group: [asdict(figure) for figure in figures] for group, figures in self._groups.items()}
                write_text(self._path, lambda file: json.dump(rows, file))
        return self._groups[name]


HEADINGS = ("measured", "figure", "target", "", "conditions")


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 1000 else f"{value:.3g}"


def machine() -> dict[str, str]:
    """The machine and the versions that figures depend on."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "CPU": f"{_cpu_name()}, {os.cpu_count()} cores",
        "RAM": f"{memory:.0f} GiB",
        "GPU": ", ".join(gpus) or "none",
        "OS": _os_name(),
        "Python": platform.python_version(),
        "torch": torch.__version__,
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _os_name() -> str:
    try:
        name = platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return platform.platform()
    return f"{name}, {platform.system()} {platform.release()}"


def as_text(figures: Sequence[Figure], about: dict[str, str], command: str) -> str:
    """A table for a terminal."""
    rows = [HEADINGS, *(figure.cells for figure in figures)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    lines = [f"{key}: {value}" for key, value in about.items()] + [f"command: {command}", ""]
    section = None
    for row, figure in zip(rows, [None, *figures], strict=True):
        if figure is not None and figure.section != section:
            section = figure.section
            lines.append(f"-- {section}")
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def as_markdown(figures: Sequence[Figure], about: dict[str, str], command: str) -> str:
    """A Markdown table for the documentation."""
    lines = [f"- {key}: {value}" for key, value in about.items()] + [f"- Command: `{command}`", ""]
    lines += ["| section | measured | figure | target | | conditions |", "|---|---|---|---|---|---|"]
    lines += [f"| {' | '.join((figure.section, *figure.cells))} |" for figure in figures]
    return "\n".join(lines) + "\n"


def as_json(figures: Sequence[Figure], about: dict[str, str], command: str) -> str:
    """JSON for programs."""
    rows = [asdict(figure) | {"verdict": figure.verdict} for figure in figures]
    return json.dumps({"machine": about, "command": command, "figures": rows}, indent=2) + "\n"
