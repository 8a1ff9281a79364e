"""Methods to compare: folders of results, or models to run for missing results.

DIR             results made elsewhere, DIR/<id>.mp4 (or .mov, .mkv, .webm, .avi); named after the folder
NAME=DIR        the same under another name
NAME=pipeline:MODEL    a model of this project, run for missing results
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from eval.pairs import Pair
from latentsync.checkpoints.registry import model_names
from latentsync.utils.errors import UserError

GROUND_TRUTH = "ground truth"
PIPELINE = "pipeline:"
SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi")


@dataclass(frozen=True)
class Method:
    """`folder` holds the results; None for the ground truth, whose results are the videos. `model` generates them."""

    name: str
    folder: Path | None
    model: str | None = None

    @property
    def is_ground_truth(self) -> bool:
        return self.folder is None

    def result(self, pair: Pair) -> Path:
        """The result for a pair. Raises UserError unless there is exactly one."""
        if self.folder is None:
            return pair.video
        found = [path for path in (self.folder / f"{pair.id}{suffix}" for suffix in SUFFIXES) if path.is_file()]
        if len(found) != 1:
            problem = f"several results for {pair.id!r}" if found else f"no result for {pair.id!r}"
            raise UserError(f"{self.folder}: {problem}; one file named {pair.id}.mp4 (or {', '.join(SUFFIXES[1:])})")
        return found[0]


def parse_methods(words: Sequence[str], results_dir: Path) -> list[Method]:
    """Parse the methods of the command line, the ground truth first; models write their results to `results_dir`/name.

    Raises:
        UserError: a folder does not exist, a model is unknown, or two methods have one name.
    """
    methods = [Method(GROUND_TRUTH, None), *(_parse(word, results_dir) for word in words)]
    names = [method.name for method in methods]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"two methods are named {name!r}; rename one, as in other=FOLDER")
    return methods


def _parse(word: str, results_dir: Path) -> Method:
    name, equals, value = word.partition("=")
    if not equals or Path(word).is_dir():
        return _folder_method(Path(word).resolve().name, Path(word))
    if not name.strip() or "/" in name or name.startswith(".") or not name.isprintable():
        raise UserError(f"{word}: {name!r} cannot name a method; use letters, digits, dashes")
    if not value.startswith(PIPELINE):
        return _folder_method(name, Path(value))
    model = value.removeprefix(PIPELINE)
    if model not in model_names():
        raise UserError(f"{word}: there is no model {model!r}; choose one of {', '.join(model_names())}")
    return Method(name, results_dir / name, model)


def _folder_method(name: str, folder: Path) -> Method:
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder of results; give one, or NAME={PIPELINE}MODEL to generate them")
    return Method(name, folder)
