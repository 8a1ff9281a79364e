"""The methods that are compared: folders of results, or models that are run where results are missing.

DIR             results made elsewhere, DIR/<id>.mp4 (or .mov, .mkv, .webm, .avi); the folder's name is the method's
NAME=DIR        the same under a name of its own
NAME=pipeline:MODEL    a model of this project, run for what is missing
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from eval.pairs import Pair
from latentsync.utils.errors import UserError
from latentsync.utils.registry import model_names

GROUND_TRUTH = "ground truth"
PIPELINE = "pipeline:"
SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi")


@dataclass(frozen=True)
class Method:
    """`folder` holds the results; None for the ground truth, whose results are the videos. `model` makes them."""

    name: str
    folder: Path | None
    model: str | None = None

    @property
    def is_ground_truth(self) -> bool:
        return self.folder is None

    def result(self, pair: Pair) -> Path:
        """The result for a pair. Raises UserError when there is none, or more than one."""
        if self.folder is None:
            return pair.video
        found = [path for path in (self.folder / f"{pair.id}{suffix}" for suffix in SUFFIXES) if path.is_file()]
        if len(found) != 1:
            what = f"several results for {pair.id!r}" if found else f"no result for {pair.id!r}"
            raise UserError(f"{self.folder}: {what}; one file named {pair.id}.mp4 (or {', '.join(SUFFIXES[1:])})")
        return found[0]


def parse_methods(words: Sequence[str], results_dir: Path) -> list[Method]:
    """Methods of the command line, the ground truth before them; models put their results into `results_dir`/name.

    Raises:
        UserError: a folder does not exist, a model is unknown, or two methods have one name.
    """
    methods = [Method(GROUND_TRUTH, None), *(_parse(word, results_dir) for word in words)]
    names = [method.name for method in methods]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"two methods are called {name!r}; name one of them, as in other=FOLDER")
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
        raise UserError(f"{folder}: no such folder of results; give one, or NAME={PIPELINE}MODEL to make them")
    return Method(name, folder)
