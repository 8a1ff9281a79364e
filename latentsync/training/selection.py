"""The best checkpoint of a run, chosen from its validation metrics by a named rule (`run.best_by`).

Each aspect of quality has a few metrics. Within an aspect, checkpoints are ranked by each metric and the ranks are
averaged, so that units do not matter. The rule `balanced` averages the aspects; the name of an aspect is the rule that
counts this aspect alone.
"""

import json
import logging
import math
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TextIO

import numpy as np
from scipy.stats import rankdata

from latentsync.utils.errors import UserError
from latentsync.utils.files import replaced, write_text

logger = logging.getLogger(__name__)
BALANCED = "balanced"
Cost = Callable[[float], float]


def _negative(value: float) -> float:
    return -value


def _from_one(ratio: float) -> float:
    """Too much is as bad as too little: 2 as 0.5."""
    return abs(math.log(ratio)) if ratio > 0 else math.inf


# Aspect -> metric -> cost, which is the lower the better. The metrics are those of `eval.validation` and, last, of the
# SyncNet's task.
ASPECTS: Mapping[str, Mapping[str, Cost]] = {
    "sync": {"sync_confidence": _negative, "sync_offset": abs},
    "mouth": {"psnr_mouth": _negative, "ssim_mouth": _negative, "lpips_mouth": float, "mobilenet_mouth": float},
    "identity": {"csim": _negative},
    "silence": {"leak": float},
    "sharpness": {"sharpness": _from_one},
    "accuracy": {"accuracy": _negative, "preference": _negative},
}
Row = Mapping[str, float]


def mean_ranks(rows: Sequence[Row], rule: str) -> np.ndarray | None:
    """Mean rank of each row of metrics by a rule, 1 for one that is the best in everything; None without its metrics.

    A row without a value that other rows have ranks last in it.
    """
    chosen = ASPECTS if rule == BALANCED else {rule: ASPECTS[rule]}
    aspects = []
    for metrics in chosen.values():
        ranks = [rankdata(costs) for costs in (_costs(rows, *item) for item in metrics.items()) if costs is not None]
        if ranks:
            aspects.append(np.mean(ranks, axis=0))
    return np.mean(aspects, axis=0) if aspects else None


def best_row(rows: Sequence[Row], rule: str) -> Row | None:
    """The row with the lowest mean rank, of equal ones the latest; None without metrics of the rule."""
    ranks = mean_ranks(rows, rule)
    return None if ranks is None else rows[int(np.flatnonzero(ranks == ranks.min())[-1])]


def _costs(rows: Sequence[Row], name: str, cost: Cost) -> list[float] | None:
    values = [row.get(name, math.nan) for row in rows]
    if not any(math.isfinite(value) for value in values):
        return None
    return [cost(value) if math.isfinite(value) else math.inf for value in values]


def keep_best(folder: Path, name: str, rows: Sequence[Row], rule: str) -> None:
    """Name the best export `NAME-best`, beside `NAME-best.json` with its step and metrics.

    Only steps whose exports `folder`/NAME-<step>.* exist take part. The best one is a hard link where the file system
    has them, otherwise a copy.

    Raises:
        UserError: the disk is full or fails.
    """
    exported = [row for row in rows if _exports(folder, name, row)]
    best = best_row(exported, rule) if exported else None
    if best is None:
        return
    about = {"rule": rule, "step": int(best["step"]), "metrics": {key: best[key] for key in best if key != "step"}}
    text = json.dumps(about, indent=2) + "\n"
    listed = folder / f"{name}-best.json"
    if listed.is_file() and listed.read_text(encoding="utf-8") == text:
        return
    for path in _exports(folder, name, best):
        place = folder / f"{name}-best{path.suffix}"
        try:
            with replaced(place) as temporary:
                _link(path, temporary)
        except OSError as error:
            raise UserError(f"{place}: cannot be written ({error.strerror}); free space") from error
    write_text(listed, partial(_write, text))
    logger.info("best checkpoint by %s so far: step %d", rule, about["step"])


def _exports(folder: Path, name: str, row: Row) -> list[Path]:
    return sorted(folder.glob(f"{name}-{int(row['step'])}.*"))


def _link(path: Path, place: Path) -> None:
    try:
        os.link(path, place)
    except OSError:
        shutil.copyfile(path, place)


def _write(text: str, file: TextIO) -> None:
    file.write(text)
