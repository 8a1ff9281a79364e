"""Compare methods on a list of clips: `python -m eval.run --pairs list.csv --methods DIR NAME=pipeline:MODEL ...`.

A row of the list is a video, the audio that drives it (by default its own), an id and a group. A method is a folder of
results by id, NAME=FOLDER, or NAME=pipeline:MODEL, which runs a model for missing results. The videos themselves are
always evaluated as "ground truth".

Writes to --output_dir: index.html (table, plots, videos side by side), summary.csv, summary.md, summary.json (with
settings and versions), clips.csv (every value), results/ (videos made by models), values/ (metric cache: the same
command resumes an interrupted run). A metric without its weights reads "n/a (needs FILE)". A clip that fails is a row
with its reason. Exit codes: 0 written, 1 invalid input or no clip could be evaluated, 2 wrong usage.
"""

import argparse
import logging
import os
import platform
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from eval import inference_videos
from eval.clip_metrics import compute_metrics
from eval.inference_videos import BatchInference, add_generation_options, chosen_options, generation_options
from eval.methods import Method, parse_methods
from eval.metric_cache import MetricCache
from eval.metrics import ClipMetrics, MetricModels, MetricSettings
from eval.output_folder import output_folder
from eval.pairs import Pair, read_pairs
from eval.report import Report
from eval.summary import Failure, summarize
from latentsync import __version__
from latentsync.loading import load_pipeline, pick_device
from latentsync.metrics.clip_sync import SCORERS
from latentsync.utils.errors import UserError, one_line

logger = logging.getLogger("eval")
PACKAGES = ("torch", "numpy", "mediapipe", "opencv-python", "av")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m eval.run",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--pairs", type=Path, required=True, help="CSV with the columns video, audio, id, group")
    add("--methods", nargs="*", default=[], help="DIR, NAME=DIR or NAME=pipeline:MODEL (default: only the videos)")
    add("--output_dir", type=Path, required=True, help="output folder")
    add("--resolution", type=int, default=256, help="side of the aligned faces in pixels (default: %(default)s)")
    add(
        "--every",
        type=int,
        default=5,
        help="use every n-th frame for metrics of large networks (default: %(default)s)",
    )
    add("--stride", type=int, default=8, help="frames between the windows of FVD (default: %(default)s)")
    add(
        "--sync_scorer",
        choices=SCORERS,
        default="auto",
        help="auto prefers the published SyncNet, if present",
    )
    add("--untrained_lpips", action="store_true", help="without VGG16's weights, compute LPIPS on an untrained trunk")
    add_generation_options(parser)
    return parser


def parse_options(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line. Exits with 2 on wrong usage."""
    parser = build_parser()
    options = parser.parse_args(argv)
    if not 64 <= options.resolution <= 1024:
        parser.error("--resolution must be between 64 and 1024")
    if options.every < 1 or options.stride < 1:
        parser.error("--every and --stride must be 1 or more")
    return options


def generate(options: argparse.Namespace, methods: Sequence[Method], pairs: Sequence[Pair]) -> Iterator[Failure]:
    """Run each model for missing results; yields the pairs that failed."""
    for method in methods:
        if method.model is None:
            continue
        chosen = generation_options(options, method.model)
        batch = BatchInference(chosen, method.folder, lambda name=method.model: load_pipeline(name, options.device))
        for row in batch(pairs):
            logger.info("%s, %s: %s %s", method.name, row.id, row.status, one_line(row.reason))
            if row.status == inference_videos.FAILED:
                yield Failure(row.id, method.name, row.reason)


def compute_all(
    methods: Sequence[Method], pairs: Sequence[Pair], models: MetricModels, cache: MetricCache, failed: list[Failure]
) -> tuple[dict[tuple[str, str], ClipMetrics], list[Failure]]:
    """Metrics of every method on every pair but those that `failed` already; and all failures."""
    cells: dict[tuple[str, str], ClipMetrics] = {}
    failures = list(failed)
    done = {(item.method, item.id) for item in failed}
    for pair in pairs:
        for method in methods:
            if (method.name, pair.id) in done:
                continue
            try:
                found = cache.get(pair, method, partial(compute_metrics, pair, method, models))
                cells[method.name, pair.id] = found
                logger.info("%s, %s: %d metrics of %d frames", method.name, pair.id, len(found.values), found.frames)
            except UserError as error:
                failures.append(Failure(pair.id, method.name, str(error)))
                logger.info("%s, %s: FAILED: %s", method.name, pair.id, one_line(error))
    return cells, failures


def versions() -> dict[str, str]:
    """Versions of this project, its libraries and the machine."""
    found = {"latentsync": __version__, "Python": platform.python_version(), "machine": platform.machine()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "unknown"
    return found


def run(options: argparse.Namespace, command: str) -> Path:
    """Compare the methods and write the report; returns its page."""
    pairs = read_pairs(options.pairs)
    methods = parse_methods(options.methods, options.output_dir / "results")
    with output_folder(options.output_dir):
        report = compare(options, methods, pairs, command)
        page = report.write(options.output_dir)
    if not report.cells:
        raise UserError(f"{options.pairs}: no clip could be evaluated; see {page}")
    return page


def compare(options: argparse.Namespace, methods: Sequence[Method], pairs: Sequence[Pair], command: str) -> Report:
    """Generate missing results and compute all metrics, with a cache in `values/`."""
    settings = MetricSettings(
        options.resolution,
        options.every,
        options.stride,
        options.sync_scorer,
        options.untrained_lpips,
        getattr(options, "face", "largest"),
    )
    about: dict[str, Any] = {"versions": versions(), "device": str(pick_device(options.device))}
    about |= {"command": command, "date": datetime.now(UTC).isoformat(timespec="seconds")}
    with closing(MetricModels(settings, about["device"])) as models:
        cache = MetricCache(options.output_dir / "values", models, about)
        failed = list(generate(options, methods, pairs))
        cells, failures = compute_all(methods, pairs, models, cache, failed)
        about |= {"settings": cache.settings, "notes": models.notes()}
    about["inference"] = {method.name: inference_of(options, method.model) for method in methods if method.model}
    summaries = summarize(cells, [method.name for method in methods], pairs)
    return Report(methods, pairs, cells, summaries, failures, about["notes"], about, conditions_of(about))


def inference_of(options: argparse.Namespace, model: str) -> dict[str, Any]:
    """Options and weights that results of a model were made with."""
    chosen = chosen_options(generation_options(options, model))
    return {**chosen, "weights": inference_videos.weights_fingerprint(model)}


def conditions_of(about: dict[str, Any]) -> dict[str, str]:
    """Settings and versions in a few lines, for readers."""
    settings = {key: value for key, value in about["settings"].items() if key != "weights"}
    return {
        "Command": about["command"],
        "Date": about["date"],
        "Settings": _listed(settings),
        "Weights": ", ".join(about["settings"]["weights"]) or "only those in the repository",
        "Inference": "; ".join(f"{name}: {_listed(values)}" for name, values in about["inference"].items()) or "none",
        "Versions": f"{_listed(about['versions'])}, on {about['device']}",
    }


def _listed(values: dict[str, Any]) -> str:
    """Comma-separated; None is the model's default."""
    return ", ".join(f"{key} {'default' if value is None else value}" for key, value in values.items())


def main(argv: Sequence[str] | None = None) -> int:
    options = parse_options(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logger.setLevel(logging.INFO)
    words = sys.argv[1:] if argv is None else argv
    try:
        page = run(options, f"python -m eval.run {shlex.join(words)}")
    except UserError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 1
    print(os.fspath(page))
    return 0


if __name__ == "__main__":
    sys.exit(main())
