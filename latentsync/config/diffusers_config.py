"""Diffusers' JSON configs, read strictly and offline; unknown keys are errors."""

import inspect
import json
from pathlib import Path
from typing import Any, TypeVar

from latentsync.config.schema import check_numbers
from latentsync.utils.errors import UserError

T = TypeVar("T")
MAX_LAYERS, MAX_BLOCKS, MAX_SIZE = 64, 16, 2**20  # layers of a block, blocks of a network, any other number
# Raised by diffusers' constructors for invalid values.
VALUE_ERRORS = (TypeError, ValueError, RuntimeError, LookupError, AttributeError, ArithmeticError)


def build_from_config(kind: type[T], path: str | Path) -> T:
    """An instance of a diffusers class (`ConfigMixin`) from its JSON file, weights fresh.

    Raises:
        UserError: the file cannot be read, is for another class, or has keys or values the class does not take.
    """
    values = read_config(Path(path))
    made_for = values.get("_class_name", kind.__name__)
    if made_for != kind.__name__:
        raise UserError(f"{path}: is the config of {made_for}, not of {kind.__name__}")
    values = {name: value for name, value in values.items() if not name.startswith("_")}
    unknown = sorted(set(values) - set(inspect.signature(kind.__init__).parameters))
    if unknown:
        raise UserError(f"{path}: unknown keys {', '.join(unknown)}; is this the config of {kind.__name__}?")
    _check_sizes(Path(path), values)
    try:
        return kind(**values)  # `from_config` imports every compatible class first
    except VALUE_ERRORS as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"{path}: {kind.__name__} cannot be built from this config ({reason})") from error


def _check_sizes(path: Path, values: dict[str, Any]) -> None:
    """Raise UserError for sizes that could not be built in reasonable time; diffusers does not check them."""
    for name, value in values.items():
        for number in value if isinstance(value, list) else [value]:
            most = MAX_LAYERS if name == "layers_per_block" else MAX_SIZE
            if isinstance(number, int) and number > most:
                raise UserError(f"{path}: {name} is {number}; at most {most} is accepted")
        if isinstance(value, list) and len(value) > MAX_BLOCKS and name != "trained_betas":
            raise UserError(f"{path}: {name} has {len(value)} entries; at most {MAX_BLOCKS} are accepted")


def read_config(path: Path) -> dict[str, Any]:
    """The keys and values of a diffusers config. Raises UserError if the file is not a valid one."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: the config cannot be read ({error.strerror})") from error
    except RecursionError as error:
        raise UserError(f"{path}: is nested too deeply for a config") from error
    except ValueError as error:  # JSONDecodeError, UnicodeDecodeError
        raise UserError(f"{path}: is not a JSON file ({error})") from error
    if not values or not isinstance(values, dict):
        raise UserError(f"{path}: is not a config of keys and values; give a JSON file in the format of diffusers")
    try:
        check_numbers(values)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error
    return values
