"""Relative links in all Markdown files lead to files and headings that exist."""

import re
from collections.abc import Iterator
from pathlib import Path

from latentsync.utils.paths import PROJECT_ROOT

FOLDERS = "docs recipes integrations packages assets checkpoints/embedded ECCV2022-RIFE".split()
PAGES = [*PROJECT_ROOT.glob("*.md"), *(page for name in FOLDERS for page in (PROJECT_ROOT / name).rglob("*.md"))]
FENCED = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)


def headings(path: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    found = re.findall(r"^#+ (.*)$", FENCED.sub("", path.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


def broken_links(page: Path) -> Iterator[str]:
    for link in re.findall(r"\]\(([^)\s]+)\)", FENCED.sub("", page.read_text(encoding="utf-8"))):
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        if "://" not in link and not (target.exists() and (not anchor or anchor in headings(target))):
            yield link


def test_links() -> None:
    broken = {str(page): links for page in PAGES if (links := list(broken_links(page)))}
    assert not broken and len(PAGES) > 20


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text(
        "# One, two `x`\n[a](#one-two-x) [b](b.md) [c](a.md#gone) [d](https://x.example/y)\n"
    )
    assert list(broken_links(tmp_path / "a.md")) == ["b.md", "a.md#gone"]
