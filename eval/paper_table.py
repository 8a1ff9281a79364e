"""The published table on your copy of a test set: `python -m eval.paper_table --videos hdtf.txt --model NAME`.

Drives each video by its own audio, evaluates the results, and writes table.md with a row in the columns of the paper,
under the published rows. docs/evaluation.md describes crops, weights and the unknown parts of the published protocol.
Unknown options are passed to `eval.run`. Exit codes: 0 done, 1 invalid input, 2 wrong usage.
"""

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from eval import run as comparison
from eval.metrics import MetricModels, metric_settings
from eval.report import Report
from eval.summary import shown
from latentsync.checkpoints.registry import DOWNLOAD_COMMAND, entry
from latentsync.utils.commands import command
from latentsync.utils.errors import UserError
from latentsync.utils.files import write_text

# Column of the paper -> metric here, decimals.
TABLE = {"FID": ("fid", 2), "SSIM": ("ssim", 3), "Sync-C": ("lse_c", 2), "LMD": ("lmd_mouth", 2), "FVD": ("fvd", 1)}
# HDTF, as published with LatentSync. LMD is in a unit of its own.
PUBLISHED: Mapping[str, tuple[float, ...]] = {
    "Wav2Lip, published": (12.5, 0.70, 8.2, 0.34, 304),
    "MuseTalk, published": (9.35, 0.74, 6.8, 0.56, 247),
    "LatentSync, published": (7.22, 0.79, 8.9, 0.30, 162.7),
}
AS_PUBLISHED = ("--every", "1", "--chunk_overlap", "0")  # frames of the metrics, and inference


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m eval.paper_table",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--videos", type=Path, required=True, help="text file, one video a line, relative to the file")
    add("--model", default="latentsync-1.5", help="name of a registered model (default: %(default)s)")
    add("--output_dir", type=Path, default=Path("output/paper_table"), help="output folder (default: %(default)s)")
    add("--partial", action="store_true", help="leave out metrics whose weights are missing")
    return parser


def read_list(path: Path) -> list[Path]:
    """Videos of a list. Raises UserError if it cannot be read, is empty, or names a missing file."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as a list of videos; write one path a line") from error
    videos = [path.parent / line.strip() for line in lines if line.strip()]
    if not videos:
        raise UserError(f"{path}: the list is empty; write one path a line")
    missing = [video for video in videos if not video.is_file()]
    if missing:
        raise UserError(f"{path}: {len(missing)} of {len(videos)} videos do not exist, the first is {missing[0]}")
    return videos


def check_weights(model: str, options: argparse.Namespace) -> None:
    """Raises UserError if weights of the model, or those that a column of the table needs, are missing."""
    models = MetricModels(metric_settings(options))
    needed = [models.missing[key] for key, _ in TABLE.values() if key in models.missing]
    if models.sync.name != "syncnet_v2":
        needed.append("needs the published SyncNet and its face detector (syncnet_v2.model, sfd_face.pth)")
    names = ["auxiliary", "inception"] if needed else []
    if entry(model).missing():
        needed, names = [*needed, f"needs the weights of {model}"], [model, *names]
    if needed:
        listed, more = "; ".join(dict.fromkeys(needed)), " --model ".join(names)
        raise UserError(f"the table {listed}; run `{DOWNLOAD_COMMAND} {more}`, or pass --partial to leave out columns")


def table(report: Report, model: str) -> str:
    """The published rows and that of a model, as Markdown."""
    values = {item.metric: item.value for item in report.summaries[0].aggregates if item.method == model}
    rows = [(name, *map(shown, numbers)) for name, numbers in PUBLISHED.items()]
    own = ["n/a" if values[key] is None else f"{values[key]:.{digits}f}" for key, digits in TABLE.values()]
    rows.append((f"{model}, {len(report.pairs)} videos here", *own))
    lines = [("method", *TABLE), ("---",) * (1 + len(TABLE)), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def run(options: argparse.Namespace, passed_on: Sequence[str], command: str) -> str:
    """Generate, evaluate, and write the table; returns it."""
    folder = options.output_dir
    videos = read_list(options.videos)
    names = [f"{index:04d}_{video.stem}"[:80] for index, video in enumerate(videos)]
    rows = ((video.absolute(), "", name, "") for video, name in zip(videos, names, strict=True))
    chosen = comparison.options_of_model(options.model, folder, rows, [*AS_PUBLISHED, *passed_on])
    if not options.partial:
        check_weights(options.model, chosen)
    text = table(comparison.run(chosen, command), options.model)
    write_text(folder / "table.md", lambda file: file.write(f"{text}\n- Command: `{command}`\n"))
    return text


@command
def main(argv: Sequence[str] | None = None) -> int:
    words = sys.argv[1:] if argv is None else argv
    options, passed_on = build_parser().parse_known_args(words)
    comparison.log_progress()
    print(run(options, passed_on, shlex.join(["python", "-m", "eval.paper_table", *words])), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
