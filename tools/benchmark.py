"""Measure speed and memory: `python -m tools.benchmark [SECTION]`.

geometry    time per frame of alignment and paste-back at 720p and 1080p
overhead    the pipeline without its networks, relative to decoding and encoding alone, at 1080p
memory      peak memory of the command line on 30 s and on 10 min of 720p video
demo        duration of ./inference.sh without arguments
networks    UNet and autoencoder of the full-size model on a CUDA device: attention kernels, compilation
gpu         the whole command with the full-size model on a CUDA device: speed, memory, idle time, kernels
precisions  faces of the embedded model in half precision, compared with float32
training    training speed and memory of the full-size configs on a CUDA device
startup     start of training on a list of 720 000 clips: seconds, memory of a process

All inputs are made from the demo's portrait and speech. Options after `--` are passed to the measured commands of
`memory` and `demo`. Exit codes: 0 measured (the table marks missed targets), 1 invalid input, 2 wrong usage.
"""

import argparse
import logging
import shlex
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from latentsync.utils.commands import command
from latentsync.utils.errors import UserError, one_line
from tools.benchmarks import COMPILED, EAGER, RESOLUTIONS
from tools.benchmarks.report import Figure, Journal, as_json, as_markdown, as_text, machine

Options = argparse.Namespace


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tools.benchmark",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("section", nargs="?", choices=[*sections(), "all"], default="all", help="benchmark to run (default: all)")
    add("--video", type=Path, help="overhead: a video of a person instead of the generated 1080p clip")
    lengths = "overhead (default 10), gpu (4): length of a run; memory (600): of the long clip"
    add("--seconds", type=float, help=lengths)
    add("--repeats", type=int, default=5, help="overhead: pairs of runs (default: %(default)s)")
    add("--resolution", type=int, help="side of the faces: overhead (default 256), networks and gpu (256 and 512)")
    add("--levers", choices=[EAGER, COMPILED], help="networks, gpu: only the eager or the compiled model")
    tiny = "networks, gpu, precisions: a tiny model, also without a GPU, to try the benchmark"
    add("--tiny", action="store_true", help=tiny)
    journal = "networks, gpu, training: figures so far; a new run measures the missing ones"
    add("--journal", type=Path, metavar="FILE", help=journal)
    add("--json", type=Path, metavar="FILE", help="write the figures as JSON")
    add("--markdown", type=Path, metavar="FILE", help="write the figures as a Markdown table")
    return parser


def sections() -> dict[str, Callable[[Options, Path], list[Figure]]]:
    """Benchmarks by name: functions of the options and a folder for their files.

    Each imports the packages it measures, which may be missing.
    """
    return {
        "geometry": _geometry,
        "overhead": _overhead,
        "memory": _memory,
        "demo": _demo,
        "networks": _networks,
        "gpu": _gpu,
        "precisions": _precisions,
        "training": _training,
        "startup": _startup,
    }


def _geometry(options: Options, folder: Path) -> list[Figure]:
    from tools.benchmarks import geometry

    return geometry.measure()


def _overhead(options: Options, folder: Path) -> list[Figure]:
    from tools.benchmarks import overhead

    return overhead.measure(
        folder, options.video, options.seconds or 10.0, options.repeats, options.resolution or RESOLUTIONS[0]
    )


def _memory(options: Options, folder: Path) -> list[Figure]:
    from tools.benchmarks import processes

    return processes.measure_memory(folder, options.seconds or processes.LONG_SECONDS, options.passed_on)


def _demo(options: Options, folder: Path) -> list[Figure]:
    from tools.benchmarks import processes

    return processes.measure_demo(folder, options.passed_on)


def _networks(options: Options, folder: Path) -> list[Figure]:
    from tools.benchmarks import networks

    return networks.measure(_resolutions(options), _modes(options), options.tiny, Journal(options.journal))


def _gpu(options: Options, folder: Path) -> list[Figure]:
    from tools.benchmarks import gpu

    seconds, journal = options.seconds or gpu.SECONDS, Journal(options.journal)
    return gpu.measure(folder, _resolutions(options), seconds, _modes(options), options.tiny, journal)


def _precisions(options: Options, folder: Path) -> list[Figure]:
    from tools.benchmarks import precisions

    return precisions.measure(options.tiny)


def _startup(options: Options, folder: Path) -> list[Figure]:
    from tools.benchmarks import startup

    return startup.measure(folder)


def _training(options: Options, folder: Path) -> list[Figure]:
    from tools.benchmarks import training

    return training.measure(folder, journal=Journal(options.journal))


def _modes(options: Options) -> list[str]:
    return [options.levers] if options.levers else [EAGER, COMPILED]


def _resolutions(options: Options) -> list[int]:
    return [options.resolution] if options.resolution else list(RESOLUTIONS)


def parse_options(argv: Sequence[str]) -> argparse.Namespace:
    """Options of this tool, with the arguments after `--` in `passed_on`. Exits with 2 on wrong usage."""
    argv = list(argv)
    end = argv.index("--") if "--" in argv else len(argv)
    parser = build_parser()
    options = parser.parse_args(argv[:end])
    if options.repeats < 1 or (options.seconds is not None and options.seconds < 1):
        parser.error("--repeats and --seconds must be 1 or more")
    if options.section in ("networks", "gpu") and options.resolution not in (None, *RESOLUTIONS):
        parser.error(f"--resolution of {options.section} must be one of {', '.join(map(str, RESOLUTIONS))}")
    options.passed_on = argv[end + 1 :]
    return options


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmarks, print the table and write the output files."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    argv = sys.argv[1:] if argv is None else argv
    options = parse_options(argv)
    chosen = sections() if options.section == "all" else {options.section: sections()[options.section]}
    figures: list[Figure] = []
    for name, measure in chosen.items():
        print(f"measuring {name} ...", file=sys.stderr)
        with tempfile.TemporaryDirectory(prefix="latentsync-benchmark-") as folder:
            try:
                figures += measure(options, Path(folder))
            except ModuleNotFoundError as error:
                if len(chosen) == 1:
                    raise UserError(f"{error}; the benchmark {name} needs it, install it") from error
                figures.append(Figure(name, "all", None, "", None, f"{one_line(error)}; install it"))
    about, command = machine(), shlex.join(["python", "-m", "tools.benchmark", *argv])
    print(as_text(figures, about, command))
    for path, render in ((options.json, as_json), (options.markdown, as_markdown)):
        if path is not None:
            path.write_text(render(figures, about, command), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
