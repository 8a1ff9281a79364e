"""Compare methods on a list of clips: `python -m eval.run --pairs list.csv --methods DIR NAME=pipeline:MODEL ...`.

A row of the list is a video, the voice it is to speak (its own sound if none is given) and an id; a method is a folder
of results by id, NAME=FOLDER, or NAME=pipeline:MODEL, which runs a model for the results that are missing. The videos
themselves are always measured as "ground truth".

Written to --output_dir: index.html (table, plots, players side by side), summary.csv, summary.md, summary.json
(settings and versions too), clips.csv (every value), results/ (what models made), values/ (kept measurements: the same
command again goes on where it stopped). A measure whose weights are not here reads "n/a (needs FILE)". A clip that
cannot be measured is a row with its reason. Exit codes: 0 written, 1 something is wrong with what was given, or no
clip could be measured, 2 wrong usage.
"""

import argparse
import logging
import os
import platform
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from eval import inference_videos
from eval.inference_videos import BatchInference, open_pipeline
from eval.kept_values import KeptValues
from eval.measures import MeasureSettings, Tools, Values
from eval.measuring import measure
from eval.methods import Method, parse_methods
from eval.output_folder import output_folder
from eval.page import write_page
from eval.pairs import Pair, read_pairs
from eval.table import Failure, as_csv, as_json, as_markdown, clips_as_csv, figures
from latentsync import __version__
from latentsync.arguments import OptionParser, add_option_arguments, given_options
from latentsync.loading import pick_device
from latentsync.metrics.clip_sync import SCORERS
from latentsync.options import parse_options as parse_generation
from latentsync.utils.commands import command
from latentsync.utils.errors import UserError, one_line
from latentsync.utils.files import write_text

logger = logging.getLogger("eval")
PACKAGES = ("torch", "numpy", "mediapipe", "opencv-python", "av")


@dataclass
class Comparison:
    """All that was measured: values by (method, id), and the clips that failed."""

    cells: dict[tuple[str, str], Values] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)


def build_parser() -> OptionParser:
    parser = OptionParser(
        prog="python -m eval.run",
        usage="%(prog)s --pairs CSV --output_dir DIR [--option value ...]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--pairs", type=Path, required=True, help="CSV with the columns video, audio, id")
    add("--methods", nargs="*", default=[], help="DIR, NAME=DIR or NAME=pipeline:MODEL (default: the videos alone)")
    add("--output_dir", type=Path, required=True, help="where everything goes")
    add(
        "--resolution", type=int, default=256, help="side of the aligned faces that are compared (default: %(default)s)"
    )
    add("--every", type=int, default=5, help="LPIPS, CSIM and FID look at every n-th frame (default: %(default)s)")
    add("--stride", type=int, default=8, help="frames from one window of FVD to the next (default: %(default)s)")
    add("--sync_scorer", choices=SCORERS, default="auto", help="auto: the published SyncNet where its weights are")
    add("--untrained_lpips", action="store_true", help="without VGG16's weights: LPIPS on an untrained one, named so")
    add("--device", help="cuda, cuda:N, mps or cpu (default: the best available)")
    add_option_arguments(parser, leave_out=("model",))  # methods name their models
    return parser


def parse_options(argv: Sequence[str] | None) -> argparse.Namespace:
    """Options of the command line. Exits with 2 on wrong usage."""
    parser = build_parser()
    options = parser.parse_args(argv)
    if not 64 <= options.resolution <= 1024:
        parser.error("--resolution must lie between 64 and 1024")
    if options.every < 1 or options.stride < 1:
        parser.error("--every and --stride must be 1 or more")
    return options


def synthesise(options: argparse.Namespace, methods: Sequence[Method], pairs: Sequence[Pair]) -> Iterator[Failure]:
    """Run each model for what is missing; yields the pairs it could not do."""
    for method in methods:
        if method.model is None:
            continue
        settings = options.generation.model_copy(update={"model": method.model})
        batch = BatchInference(settings, method.folder, lambda given=settings: open_pipeline(given, options.device))
        for row in batch(pairs):
            logger.info("%s, %s: %s %s", method.name, row.id, row.status, one_line(row.reason))
            if row.status == inference_videos.FAILED:
                yield Failure(row.id, method.name, row.reason)


def measure_all(
    methods: Sequence[Method], pairs: Sequence[Pair], tools: Tools, kept: KeptValues, failed: Sequence[Failure]
) -> Comparison:
    """Every method on every pair but those that `failed` already."""
    result = Comparison(failures=list(failed))
    done = {(item.method, item.id) for item in failed}
    for pair in pairs:
        for method in methods:
            if (method.name, pair.id) in done:
                continue
            try:
                values = kept.get(pair, method, lambda pair=pair, method=method: measure(pair, method, tools))
                result.cells[method.name, pair.id] = values
                logger.info(
                    "%s, %s: %d measures of %d frames", method.name, pair.id, len(values.numbers), values.frames
                )
            except UserError as error:
                result.failures.append(Failure(pair.id, method.name, str(error)))
                logger.info("%s, %s: FAILED: %s", method.name, pair.id, one_line(error))
    return result


def versions() -> dict[str, str]:
    """Of this project, its libraries and the machine."""
    found = {"latentsync": __version__, "Python": platform.python_version(), "machine": platform.machine()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "unknown"
    return found


def run(options: argparse.Namespace, command: str) -> Path:
    """Run the comparison; returns the path of the page."""
    options.generation = parse_generation(given_options(options))
    pairs = read_pairs(options.pairs)
    methods = parse_methods(options.methods, options.output_dir / "results")
    with output_folder(options.output_dir):
        result, about = compare(options, methods, pairs)
        about |= {"command": command, "date": datetime.now(UTC).isoformat(timespec="seconds")}
        page = write_all(options.output_dir, methods, pairs, result, about)
    if not result.cells:
        raise UserError(f"{options.pairs}: no clip could be measured; {page} says why of each")
    return page


def compare(
    options: argparse.Namespace, methods: Sequence[Method], pairs: Sequence[Pair]
) -> tuple[Comparison, dict[str, Any]]:
    """What was measured, and with what."""
    settings = MeasureSettings(
        options.resolution,
        options.every,
        options.stride,
        options.sync_scorer,
        options.untrained_lpips,
        options.generation.face,
    )
    tools = Tools(settings, str(pick_device(options.device)))
    about: dict[str, Any] = {"versions": versions(), "device": tools.device}
    try:
        kept = KeptValues(options.output_dir / "values", tools, about)
        failed = list(synthesise(options, methods, pairs))
        result = measure_all(methods, pairs, tools, kept, failed)
        about |= {"settings": kept.settings, "notes": tools.notes()}
        about["inference"] = {m.name: inference_of(options, m.model) for m in methods if m.model}
    finally:
        tools.close()
    return result, about


def inference_of(options: argparse.Namespace, model: str) -> dict[str, Any]:
    """What results of a model were made with."""
    settings = options.generation.model_copy(update={"model": model})
    return {**settings.model_dump(mode="json"), "weights": inference_videos.weights_fingerprint(model)}


def write_all(
    folder: Path, methods: Sequence[Method], pairs: Sequence[Pair], result: Comparison, about: dict[str, Any]
) -> Path:
    """All files but the kept values; returns the page."""
    names, ids = [method.name for method in methods], [pair.id for pair in pairs]
    rows = figures(result.cells, names, ids)
    conditions = conditions_of(about)
    texts = {
        "summary.csv": as_csv(rows),
        "summary.md": as_markdown(rows, result.failures, about["notes"], conditions),
        "summary.json": as_json(rows, result.cells, result.failures, about),
        "clips.csv": clips_as_csv(result.cells, result.failures),
    }
    for name, text in texts.items():
        write_text(folder / name, lambda file, text=text: file.write(text))
    write_page(folder / "index.html", methods, pairs, rows, result.cells, result.failures, about["notes"], conditions)
    return folder / "index.html"


def conditions_of(about: dict[str, Any]) -> dict[str, str]:
    """Settings and versions in a few lines for readers."""
    settings = {key: value for key, value in about["settings"].items() if key != "weights"}
    return {
        "Command": about["command"],
        "Date": about["date"],
        "Settings": _listed(settings),
        "Weights": ", ".join(about["settings"]["weights"]) or "none but what ships",
        "Inference": "; ".join(f"{name}: {_listed(values)}" for name, values in about["inference"].items()) or "none",
        "Versions": f"{_listed(about['versions'])}, on {about['device']}",
    }


def _listed(values: dict[str, Any]) -> str:
    """None stands for what the model itself sets."""
    return ", ".join(f"{key} {'default' if value is None else value}" for key, value in values.items())


@command
def main(argv: Sequence[str] | None = None) -> int:
    options = parse_options(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logger.setLevel(logging.INFO)
    words = sys.argv[1:] if argv is None else argv
    page = run(options, f"python -m eval.run {shlex.join(words)}")
    print(os.fspath(page))
    return 0


if __name__ == "__main__":
    sys.exit(main())
