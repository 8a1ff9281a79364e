"""Where the project's files are, in a checkout and in an installed package alike."""

import os
import sys
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]
PACKAGE_PARENT = _PACKAGE.parent  # the entry of sys.path that the package is imported from
_INSTALLED_TREE = _PACKAGE / "_project"  # files of the project besides the package in a wheel, see pyproject.toml

IS_CHECKOUT = not _INSTALLED_TREE.is_dir()
PROJECT_ROOT = PACKAGE_PARENT if IS_CHECKOUT else _INSTALLED_TREE
CONFIGS_DIR = PROJECT_ROOT / "configs"
BUNDLED_CHECKPOINTS = PROJECT_ROOT / "checkpoints"  # embedded/ is part of the project


def _checkpoints_dir() -> Path:
    if chosen := os.environ.get("LATENTSYNC_CHECKPOINTS"):
        return Path(chosen).expanduser().absolute()
    if IS_CHECKOUT:
        return BUNDLED_CHECKPOINTS
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "latentsync" / "checkpoints"


CHECKPOINTS_DIR = _checkpoints_dir()  # downloads and the user's own files


def project_path(path: str | Path) -> Path:
    """Resolve a path of a config: relative to the working directory if it is there, else to the project.

    Paths below `checkpoints/` are also looked for in `CHECKPOINTS_DIR`.
    """
    path = Path(path)
    if path.is_absolute() or path.exists():
        return path
    bundled = PROJECT_ROOT / path
    if path.parts[:1] == ("checkpoints",) and not bundled.exists():
        return CHECKPOINTS_DIR.joinpath(*path.parts[1:])
    return bundled


def import_project() -> None:
    """Make the top-level packages of the project (scripts, tools, eval, preprocess) importable from anywhere."""
    if str(PROJECT_ROOT) not in sys.path:
        sys.path.insert(0, str(PROJECT_ROOT))
