"""Lip-sync a list of videos in one process: `python -m eval.inference_videos --pairs list.csv --output_dir out`.

Writes out/<id>.mp4 for each row of the list, <id>.json with the digests of its inputs and its settings, and
inference.csv with the status of each row. Existing results of the same inputs and settings are kept, so that the same
command resumes an interrupted run. Rows that fail are reported and do not stop the others. Exit codes: 0 all rows are
done, 1 invalid input, 2 wrong usage, 3 some rows failed, 4 all rows failed.
"""

import argparse
import json
import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.output_folder import output_folder
from eval.pairs import Pair, read_pairs
from latentsync.arguments import OptionParser, add_option_arguments, given_options
from latentsync.checkpoints.fingerprint import files_of, fingerprint
from latentsync.checkpoints.registry import default_name, resolve
from latentsync.options import AUTO, QUANTIZE_HELP, WEIGHTS, WEIGHTS_HELP, GenerationOptions, parse_options
from latentsync.utils.batch import DONE, FAILED, KEPT, Outcome, exit_code, run_rows
from latentsync.utils.commands import command
from latentsync.utils.errors import one_line
from latentsync.utils.files import read_json, write_text
from latentsync.utils.tables import write_csv

if TYPE_CHECKING:
    from latentsync.pipelines.lipsync_pipeline import LipsyncPipeline
    from latentsync.pipelines.result import LipsyncResult

logger = logging.getLogger("inference_videos")


class BatchInference:
    """Runs a model on pairs. The pipeline is loaded when the first result is missing."""

    def __init__(
        self,
        options: GenerationOptions,
        folder: Path,
        open_pipeline: Callable[[], "LipsyncPipeline"],
        precision: Mapping[str, Any] | None = None,
    ) -> None:
        """`precision`: see `precision_of`; results of another one are generated again."""
        self.options, self.folder, self.precision = options, folder, precision or {}
        self._open = open_pipeline
        self._pipeline: LipsyncPipeline | None = None
        self._weights = weights_fingerprint(options.model)

    def __call__(self, pairs: Sequence[Pair]) -> Iterator[Outcome[Pair]]:
        """Yield the outcome of each pair. Raises UserError if the folder is not writable or in use."""
        with output_folder(self.folder):
            yield from run_rows(pairs, self._run)

    def _run(self, pair: Pair) -> Iterator[Outcome[Pair]]:
        target, record = self.folder / f"{pair.id}.mp4", self.folder / f"{pair.id}.json"
        inputs = self._inputs(pair)
        if target.is_file() and read_json(record) == inputs:
            yield Outcome(pair, KEPT)
            return
        record.unlink(missing_ok=True)  # it must not outlive the old result
        start = time.perf_counter()
        result = self._generate(pair, target)
        write_text(record, lambda file: json.dump(inputs, file, indent=2))
        yield Outcome(pair, DONE, seconds=time.perf_counter() - start, frames=result.num_frames)

    def _generate(self, pair: Pair, target: Path) -> "LipsyncResult":
        if self._pipeline is None:
            self._pipeline = self._open()
        return self._pipeline(pair.video, pair.driving_audio, target, options=self.options)

    def _inputs(self, pair: Pair) -> dict[str, Any]:
        from latentsync.data.cache import file_digest

        mask, lora = self.options.mask_image_path, self.options.lora
        own = {} if lora is None else {"lora": file_digest(lora)}
        return {
            "video": file_digest(pair.video),
            "audio": file_digest(pair.driving_audio),
            "mask": mask and file_digest(mask),
            "weights": self._weights,
            **own,
            **self.precision,
            "settings": self.options.model_dump(mode="json"),
        }


def weights_fingerprint(model: str) -> str:
    """Identify the files of a model. Raises UserError as `resolve`."""
    return fingerprint(files_of(resolve(model)))


def write_rows(path: Path, rows: Sequence[Outcome[Pair]]) -> None:
    """Write the status of each pair as CSV."""
    cells = ([row.row.id, row.status, f"{row.seconds:.2f}", row.frames, row.reason] for row in rows)
    write_csv(path, ["id", "status", "seconds", "frames", "reason"], cells)


def pick_model(name: str, device: str | None) -> str:
    """Resolve "auto" to the best model that is present and that the device can run."""
    if name != AUTO:
        return name
    from latentsync.loading import pick_device

    return default_name(pick_device(device))[0]


def add_generation_options(parser: argparse.ArgumentParser, leave_out: Sequence[str] = ()) -> None:
    """Add `--device`, `--quantize`, `--weights` and the generation options."""
    parser.add_argument("--device", help="cuda, cuda:N, mps or cpu (default: the best one available)")
    parser.add_argument("--quantize", action="store_true", help=QUANTIZE_HELP)
    parser.add_argument("--weights", dest="stored_weights", choices=WEIGHTS, default="full", help=WEIGHTS_HELP)
    add_option_arguments(parser, leave_out=leave_out)


def generation_options(arguments: argparse.Namespace, model: str) -> GenerationOptions:
    """Generation options of the command line, for a model. Raises UserError for a value out of range."""
    return parse_options(given_options(arguments) | {"model": model})


def precision_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the command line changes in the arithmetic of the networks; empty by default."""
    changes = {"quantize": arguments.quantize, "stored_weights": arguments.stored_weights}
    return {name: value for name, value in changes.items() if value not in (False, "full")}


def open_pipeline(options: GenerationOptions, arguments: argparse.Namespace) -> "LipsyncPipeline":
    from latentsync import load_pipeline

    return load_pipeline(
        options.model,
        arguments.device,
        lora=options.lora,
        lora_scale=options.lora_scale,
        preset=options.preset,
        weights=arguments.stored_weights,
        quantize=arguments.quantize,
    )


def build_parser() -> OptionParser:
    parser = OptionParser(
        prog="latentsync eval videos",
        usage="%(prog)s --pairs CSV --output_dir DIR [--option value ...]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--pairs", type=Path, required=True, help="CSV with the columns video, audio, id, group")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder of the results")
    add_generation_options(parser)
    return parser


def run(options: argparse.Namespace) -> list[Outcome[Pair]]:
    """Run all pairs, and write the rows to inference.csv."""
    pairs = read_pairs(options.pairs)
    chosen = generation_options(options, pick_model(given_options(options).get("model", AUTO), options.device))
    batch = BatchInference(chosen, options.output_dir, partial(open_pipeline, chosen, options), precision_of(options))
    rows = []
    for row in batch(pairs):
        rows.append(row)
        logger.info("%d/%d %s: %s %s", len(rows), len(pairs), row.row.id, row.status, one_line(row.reason))
        write_rows(options.output_dir / "inference.csv", rows)
    return rows


@command
def main(argv: Sequence[str] | None = None) -> int:
    options = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logger.setLevel(logging.INFO)
    rows = run(options)
    if failed := sum(row.status == FAILED for row in rows):
        print(f"error: {failed} rows failed, see {options.output_dir / 'inference.csv'}", file=sys.stderr)
    return exit_code(rows)


if __name__ == "__main__":
    sys.exit(main())
