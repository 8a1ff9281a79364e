"""Plain mappings (YAML, JSON, keyword dicts) -> validated, frozen dataclasses, by pydantic.

A schema is a dataclass with `@section`. Its type hints define the values of each key; its `__post_init__` refuses
combinations with `require`. Every problem is a `UserError` that names the key and the values it accepts.
"""

import dataclasses
import difflib
import functools
import typing
from collections.abc import Mapping
from typing import Any, TypeVar, dataclass_transform

from pydantic import ConfigDict, ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass

from latentsync.utils.errors import UserError

T = TypeVar("T")
Key = tuple[str, ...]

# Strict, because YAML has types: "16" is text. Model sections are validated with the schema of their network.
CONFIG = ConfigDict(strict=True, extra="forbid", arbitrary_types_allowed=True)
EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "tuple_type": "a list",
}


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
    """A value that does not fit its schema. `key`: where it is, outermost section first."""

    def __init__(self, key: Key, problem: str):
        super().__init__(f"{'.'.join(key)}: {problem}" if key else problem)
        self.key, self.problem = key, problem

    def __reduce__(self) -> tuple[type["SchemaError"], tuple[Key, str]]:
        return SchemaError, (self.key, self.problem)  # to other processes


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(dataclasses.field,))
def section(cls: type[T]) -> type[T]:
    """Make a class a frozen dataclass of keyword arguments that raises `SchemaError` for values that do not fit."""
    made: Any = pydantic_dataclass(frozen=True, kw_only=True, config=CONFIG)(cls)
    init = made.__init__

    @functools.wraps(init)
    def checked(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            init(self, *args, **kwargs)
        except ValidationError as error:
            raise _first_problem(error, made) from error
        except UserError as error:
            raise _as_schema_error(error) from error

    made.__init__ = checked
    return made


def require(condition: object, message: str) -> None:
    """Raise `UserError(message)` unless `condition` holds: for the `__post_init__` of a schema."""
    if not condition:
        raise UserError(message)


def require_positive(section: Any, *names: str) -> None:
    """Every named value of a section is above 0."""
    for name in names:
        require(getattr(section, name) > 0, f"{name} must be above 0, got {getattr(section, name)}")


def require_not_negative(section: Any, *names: str) -> None:
    """Every named value of a section is at least 0."""
    for name in names:
        require(getattr(section, name) >= 0, f"{name} must be at least 0, got {getattr(section, name)}")


def build(schema: type[T], values: object, key: Key = ()) -> T:
    """An instance of the section `schema` from plain `values` at `key`. Raises SchemaError."""
    if not isinstance(values, Mapping):
        raise SchemaError(key, f"expected a group of keys, got {_short(values)}")
    hints = typing.get_type_hints(schema)
    arguments = {str(name): _argument(hints.get(name), value, (*key, str(name))) for name, value in values.items()}
    try:
        return schema(**arguments)
    except SchemaError as error:
        raise SchemaError(key + error.key, error.problem) from error


def _argument(hint: Any, value: Any, key: Key) -> Any:
    """Groups of keys as sections, lists as tuples, everything else as it is."""
    if isinstance(hint, type) and dataclasses.is_dataclass(hint) and not dataclasses.is_dataclass(value):
        return build(hint, value, key)
    return _as_tuple(value)


def _as_tuple(value: Any) -> Any:
    return tuple(_as_tuple(entry) for entry in value) if isinstance(value, list) else value


def _first_problem(error: ValidationError, schema: type) -> SchemaError:
    """Pydantic's first complaint, in one line."""
    problems = error.errors(include_url=False)
    if problems[0]["type"] == "value_error":  # raised by a __post_init__
        return _as_schema_error(problems[0]["ctx"]["error"])
    # For a union, report the member that was validated furthest.
    same_field = [each for each in problems if each["loc"][0] == problems[0]["loc"][0]]
    details = max(same_field, key=lambda each: len(each["loc"]))
    kind, value, key = details["type"], details["input"], _key(details["loc"])
    if kind == "missing" and len(details["loc"]) > 1:  # of the entries of a tuple
        return SchemaError((str(details["loc"][0]),), f"too few entries in {_short(value)}")
    if kind in ("missing", "missing_argument", "missing_keyword_only_argument"):
        names = [str(each["loc"][-1]) for each in problems if each["type"] == kind]
        return SchemaError((), f"missing {', '.join(names)}")
    if kind in ("unexpected_keyword_argument", "extra_forbidden"):
        return SchemaError(
            key, f"unknown key{_suggestion(key[-1], [field.name for field in dataclasses.fields(schema)])}"
        )
    if kind == "literal_error":
        allowed = details["ctx"]["expected"].replace(" or ", ", ")
        return SchemaError(key, f"{value!r} is not one of {allowed}")
    expected = EXPECTED.get(kind)
    return SchemaError(key, f"{f'expected {expected}' if expected else details['msg']}, got {_short(value)}")


def _as_schema_error(error: Exception) -> SchemaError:
    return error if isinstance(error, SchemaError) else SchemaError((), str(error))


def _key(location: tuple[int | str, ...]) -> Key:
    """Pydantic's location as a key: the field, with the place in its list; members of unions are left out."""
    name, *rest = location
    return (str(name) + "".join(f"[{part}]" for part in rest if isinstance(part, int)),)


def _short(value: Any) -> str:
    shown = list(value) if isinstance(value, tuple) else value
    text = repr(shown)
    return f"{type(shown).__name__} {text if len(text) <= 60 else text[:57] + '...'}"


def _suggestion(key: str, known: list[str]) -> str:
    close = difflib.get_close_matches(key, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known keys: {', '.join(sorted(known))}"
