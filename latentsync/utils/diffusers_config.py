"""Diffusers' JSON configs, read strictly: nothing unknown passes, nothing is looked up on a network."""

import inspect
import json
from pathlib import Path
from typing import Any, TypeVar

from latentsync.utils.errors import UserError

T = TypeVar("T")
# What diffusers' constructors raise, unchecked, on values they cannot use.
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
    try:
        return kind.from_config(values)
    except VALUE_ERRORS as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"{path}: {kind.__name__} cannot be built from this config ({reason})") from error


def read_config(path: Path) -> dict[str, Any]:
    """The keys and values of a diffusers config. Raises UserError for what is not one."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: the config cannot be read ({error.strerror})") from error
    except ValueError as error:  # JSONDecodeError, UnicodeDecodeError
        raise UserError(f"{path}: is not a JSON file ({error})") from error
    if not values or not isinstance(values, dict):
        raise UserError(f"{path}: is not a config of keys and values; give a JSON file that diffusers wrote")
    return values
