"""Update the option tables in README and docs: `python -m tools.option_tables`.

A table is everything between `<!-- options: STYLE -->` and `<!-- end of options -->`. STYLE is `command line` (names
with dashes) or `jobs` (field names of the API and column names of lists). Prints the changed files.
"""

import re
import sys
from pathlib import Path

from latentsync.option_info import Group, Option
from latentsync.options import OPTIONS
from latentsync.utils.errors import UserError
from latentsync.utils.paths import PROJECT_ROOT

FILES = ("README.md", "docs/serving.md")
BLOCK = re.compile(r"(?<=<!-- options: )(command line|jobs)( -->\n).*?(?=<!-- end of options -->)", re.DOTALL)


def table(style: str) -> str:
    """The options as a Markdown table, grouped."""
    lines = ["| option | values | default | meaning |", "|---|---|---|---|"]
    for group in Group:
        lines.append(f"| **{group.value}** | | | |")
        lines += [_row(option, style) for option in OPTIONS.values() if option.show.group is group]
    return "\n".join(lines) + "\n"


def fill(text: str) -> str:
    """A document with up-to-date tables. Raises UserError if it has none."""
    filled, count = BLOCK.subn(lambda match: f"{match[1]}{match[2]}{table(match[1])}", text)
    if not count:
        raise UserError("no table of options; mark its place with <!-- options: STYLE --> and <!-- end of options -->")
    return filled


def outdated(root: Path = PROJECT_ROOT) -> dict[Path, str]:
    """Files with outdated tables, and their updated texts."""
    texts = {root / name: (root / name).read_text(encoding="utf-8") for name in FILES}
    return {path: filled for path, text in texts.items() if (filled := fill(text)) != text}


def _row(option: Option, style: str) -> str:
    name = f"--{option.name}" if style == "command line" else option.name
    kinds = " or ".join(suffix[1:].upper() for suffix in option.show.file_types) or "image"
    values = {bool: "on, off" if style == "jobs" else "switch", Path: f"{kinds} file", str: "text"}
    return f"| `{name}` | {option.range or values[option.type]} | {option.default_text} | {option.help} |"


def main() -> int:
    for path, text in outdated().items():
        path.write_text(text, encoding="utf-8")
        print(path.relative_to(PROJECT_ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
