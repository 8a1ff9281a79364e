"""How the surfaces present an option of `GenerationOptions`: its heading, its valid values in words, its refusals."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from latentsync.utils.errors import did_you_mean

MAX_SEED = 2**63 - 1
MAX_NAME = 300  # characters
MAX_SHOWN = 40  # characters of a refused value


class Group(StrEnum):
    """Headings under which options are listed, in this order."""

    MODEL = "model"
    QUALITY = "quality and speed"
    FACES = "face selection"
    DUBBING = "dubbing"
    TIMING = "timing and frame rate"
    OUTPUT = "output"


@dataclass(frozen=True)
class Show:
    """How the surfaces present an option.

    Args:
        group: its heading.
        advanced: folded away on the page.
        unset: meaning of None in words, e.g. "the model's own".
        metavar: placeholder of its value in `--help`.
        expects: which texts are valid, for messages.
        suggestions: some of these texts, for the page.
        file_types: of a file that is no image: its suffixes.
        is_long: a text of several lines.
    """

    group: Group
    advanced: bool = False
    unset: str | None = None
    metavar: str | None = None
    expects: str | None = None
    suggestions: tuple[str, ...] = ()
    file_types: tuple[str, ...] = ()
    is_long: bool = False


@dataclass(frozen=True)
class Option:
    """One field of `GenerationOptions`, as the surfaces need it.

    type: bool, int, float, str or Path. choices: all valid texts, empty where there are others. words: texts that are
    valid besides numbers. low, high: of a number, both included. show: how it is presented.
    """

    name: str
    type: type
    choices: tuple[str, ...]
    words: tuple[str, ...]
    low: float | None
    high: float | None
    default: Any
    help: str
    show: Show

    @classmethod
    def of(cls, name: str, field: FieldInfo) -> "Option":
        members = [FieldInfo.from_annotation(kind) for kind in _kinds(field.annotation) if kind is not NoneType]
        kinds = [item.annotation for item in members]
        texts = tuple(text for kind in kinds if get_origin(kind) is Literal for text in get_args(kind))
        has_choices = get_origin(kinds[0]) is Literal
        metadata = [*field.metadata, *members[0].metadata]
        found = {key: getattr(item, key) for item in metadata for key in ("ge", "le") if hasattr(item, key)}
        return cls(
            name,
            str if has_choices else kinds[0],  # type: ignore[arg-type]  # a type, since it is no Literal
            texts if has_choices else (),
            () if has_choices else texts,
            found.get("ge"),
            found.get("le"),
            field.default,
            field.description or "",
            next(item for item in metadata if isinstance(item, Show)),
        )

    @property
    def is_file(self) -> bool:
        return self.type is Path

    @property
    def range(self) -> str:
        """Valid values in a few words; empty where any will do."""
        if self.choices:
            return ", ".join(self.choices)
        if self.low is None or self.high is None:
            return ""
        numbers = f"{self.low:g} or more" if self.high >= MAX_SEED else f"{self.low:g} to {self.high:g}"
        return ", or ".join((numbers, *self.words))

    @property
    def default_text(self) -> str:
        if self.default is None:
            return self.show.unset or "none"
        return ("on" if self.default else "off") if self.type is bool else str(self.default).removesuffix(".0")

    def refusal(self, value: object) -> str:
        """Why a value is not valid, and which ones are."""
        kinds = {
            bool: "true or false",
            int: "a whole number",
            float: "a number",
            str: f"a name of 1 to {MAX_NAME} characters",
        }
        expected = self.show.expects or (f"one of {self.range}" if self.choices else kinds.get(self.type, "a file"))
        if self.type in (int, float):
            expected += f" from {self.range.replace(' or more', ' up')}"
        near = did_you_mean(value, self.choices or self.words or self.show.suggestions)
        return f"{self.name} must be {expected}, not {shorten(value)}{near}"


def _kinds(annotation: Any) -> tuple[Any, ...]:
    """Members of a union; the type itself where it is none."""
    return (annotation,) if get_origin(annotation) is Literal else get_args(annotation) or (annotation,)


def shorten(value: object) -> str:
    """A refused value for a message."""
    text = ascii(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."
