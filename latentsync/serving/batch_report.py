"""The report page of a batch: a table of all rows with their outcome and a player."""

import os
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from latentsync import __version__
from latentsync.serving.batch import BatchRow
from latentsync.utils.batch import FAILED, Outcome
from latentsync.utils.errors import one_line
from latentsync.utils.files import write_text
from latentsync.utils.progress import duration
from latentsync.utils.templates import render

TEMPLATE = Path(__file__).with_name("batch_report.html.j2")


def write_report(path: Path, results: Sequence[Outcome[BatchRow]], total: int) -> None:
    """Write the page, which links to the results relative to its folder. `total`: number of rows, done or not.

    Raises:
        UserError: it cannot be written.
    """
    counts = Counter(result.status for result in results)
    page = render(
        TEMPLATE,
        rows=[_row(result, path.parent) for result in results],
        counts=", ".join(f"{number} {status}" for status, number in sorted(counts.items())) or "none finished",
        total=total,
        written=datetime.now().astimezone().isoformat(timespec="seconds"),
        version=__version__,
    )
    write_text(path, lambda file: file.write(page))


def _row(result: Outcome[BatchRow], folder: Path) -> dict[str, Any]:
    row = result.row
    changed = row.options.model_dump(mode="json", exclude_defaults=True)
    return {
        "line": row.line,
        "status": result.status,
        "video": one_line(row.video),
        "audio": "" if row.audio is None else one_line(row.audio),
        "out": one_line(row.out),
        "address": "" if result.status == FAILED else quote(os.path.relpath(row.out, folder)),
        "options": ", ".join(f"{name}={value}" for name, value in changed.items()),
        "seconds": duration(result.seconds) if result.seconds else "",
        "reason": result.reason,
    }
