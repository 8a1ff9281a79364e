"""Command-line arguments generated from the options of a generation."""

import argparse
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from latentsync.option_info import Group, Option
from latentsync.options import OPTIONS, RENAMED, up_to_date
from latentsync.utils.errors import did_you_mean


class OptionParser(argparse.ArgumentParser):
    """An argument parser without abbreviations that suggests a similar name for an unknown argument."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(allow_abbrev=False, **arguments)

    def parse_args(  # type: ignore[override]  # argparse declares overloads
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        found, unknown = self.parse_known_args(args, namespace)
        if unknown:
            names = [action.dest for action in self._actions if action.help != argparse.SUPPRESS]
            near = did_you_mean(unknown[0].lstrip("-").partition("=")[0], names, "--")
            self.error(f"unrecognized arguments: {' '.join(unknown)}{near}")
        return found


def add_option_arguments(parser: argparse.ArgumentParser, leave_out: Collection[str] = ()) -> None:
    """Add an argument for each field of `GenerationOptions` except those in `leave_out`, grouped by `Group`.

    Values stay strings and are absent from the namespace unless given. `given_options` collects them, and
    `latentsync.options.parse_options` validates them, with the same messages as on every other surface.
    """
    for group in Group:
        section = parser.add_argument_group(group.value)
        for option in OPTIONS.values():
            if option.show.group is group and option.name not in leave_out:
                _add(section, option.name, option, argument_help(option))
    for old, name in RENAMED.items():
        if name not in leave_out:
            _add(parser, old, OPTIONS[name], argparse.SUPPRESS)


def given_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Options given on the command line, by name."""
    given = {name: value for name, value in vars(arguments).items() if name in OPTIONS or name in RENAMED}
    return dict(up_to_date(name, value) for name, value in given.items())


def argument_help(option: Option) -> str:
    """Description of an option in one line, with range and default; in lower case, as argparse writes."""
    first, _, rest = option.help.rstrip(".").partition(" ")
    first = first.lower() if first[1:].islower() else first  # LoRA and HDR stay
    span = f"{option.range}; " if option.range and not option.choices else ""
    return f"{first} {rest} ({span}default: {option.default_text})"


def _add(section: Any, flag: str, option: Option, text: str) -> None:
    rest: Mapping[str, Any] = {"action": "store_true"}
    if option.type is not bool:
        values = "{" + ",".join(option.choices) + "}" if option.choices else option.show.metavar
        rest = {"metavar": values or option.type.__name__.upper().replace("STR", "NAME")}
    section.add_argument(f"--{flag}", dest=flag, default=argparse.SUPPRESS, help=text, **rest)
