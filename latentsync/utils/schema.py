"""Plain mappings (YAML, JSON, keyword dicts) -> validated, frozen dataclasses.

A schema is a dataclass. Its type hints say what each key may hold; its `__post_init__` refuses combinations.
Every problem is a `UserError` that names the key and what it may hold; nothing unknown passes silently.
"""

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from latentsync.utils.errors import UserError

T = TypeVar("T")
Key = tuple[str, ...]


def require(condition: bool, message: str) -> None:
    """Raise `UserError(message)` unless `condition` holds: for the `__post_init__` of a schema."""
    if not condition:
        raise UserError(message)


def require_positive(section: Any, *names: str) -> None:
    """Every named value of a section is above 0."""
    for name in names:
        require(getattr(section, name) > 0, f"{name} must be above 0, got {getattr(section, name)}")


def check_numbers(values: Any) -> None:
    """Raise ValueError for a whole number of more than 64 bits anywhere in plain nested values."""
    if isinstance(values, Mapping):
        for name, value in values.items():
            check_numbers(name)
            check_numbers(value)
    elif isinstance(values, list | tuple):
        for value in values:
            check_numbers(value)
    elif isinstance(values, int) and not -(2**63) <= values < 2**63:
        raise ValueError(f"holds a whole number of {values.bit_length()} bits, more than 64")


class SchemaError(UserError):
    """A value that does not fit its schema. `key`: where it lies, outermost section first."""

    def __init__(self, key: Key, problem: str):
        super().__init__(f"{'.'.join(key)}: {problem}" if key else problem)
        self.key, self.problem = key, problem

    def __reduce__(self) -> tuple[type["SchemaError"], tuple[Key, str]]:
        return SchemaError, (self.key, self.problem)  # to other processes


def build(schema: type[T], values: Mapping[str, Any], key: Key = ()) -> T:
    """An instance of the dataclass `schema` from `values`, which lie at `key`. Raises SchemaError."""
    if not isinstance(values, Mapping):
        raise SchemaError(key, f"expected a group of keys, got {_short(values)}")
    fields = {field.name: field for field in dataclasses.fields(schema)}
    for name in values:
        if name not in fields:
            raise SchemaError((*key, str(name)), f"unknown key{_suggestion(str(name), list(fields))}")
    hints = typing.get_type_hints(schema)
    arguments = {name: convert(hints[name], value, (*key, name)) for name, value in values.items()}
    missing = [name for name, field in fields.items() if name not in arguments and _is_required(field)]
    if missing:
        raise SchemaError(key, f"missing {', '.join(missing)}")
    try:
        return schema(**arguments)
    except UserError as error:
        raise SchemaError(key, str(error)) from error


def convert(hint: Any, value: Any, key: Key) -> Any:
    """`value` as the type `hint`, with the lossless conversions YAML needs (int -> float, list -> tuple)."""
    if dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else build(hint, value, key)
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return _convert_union(typing.get_args(hint), value, key)
    if origin is typing.Literal:
        allowed = typing.get_args(hint)
        if value not in allowed or isinstance(value, bool) != isinstance(allowed[0], bool):
            raise SchemaError(key, f"{value!r} is not one of {', '.join(map(repr, allowed))}")
        return value
    if origin is tuple:
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise SchemaError(key, f"expected a list, got {_short(value)}")
        item = typing.get_args(hint)[0]
        return tuple(convert(item, entry, (*key[:-1], f"{key[-1]}[{index}]")) for index, entry in enumerate(value))
    return _convert_scalar(hint, value, key)


def _convert_union(options: tuple[Any, ...], value: Any, key: Key) -> Any:
    if value is None and type(None) in options:
        return None
    options = tuple(option for option in options if option is not type(None))
    is_list = isinstance(value, Sequence) and not isinstance(value, str)
    for option in options:  # a list goes to the tuple option, everything else to the scalar one
        if (typing.get_origin(option) is tuple) == is_list:
            return convert(option, value, key)
    return convert(options[0], value, key)


def _convert_scalar(hint: Any, value: Any, key: Key) -> Any:
    if hint is Any or isinstance(hint, TypeVar):  # a generic section was built by whoever knows its type
        return value
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
        return value
    raise SchemaError(key, f"expected {_type_name(hint)}, got {_short(value)}")


def _is_required(field: dataclasses.Field) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _type_name(hint: type) -> str:
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    return names.get(hint, hint.__name__)


def _short(value: Any) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"


def _suggestion(key: str, known: list[str]) -> str:
    close = difflib.get_close_matches(key, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known keys: {', '.join(sorted(known))}"
