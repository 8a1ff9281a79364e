"""Size and structure of the code as a Markdown table: `python -m tools.house_figures`.

Counts the Python files of the product (no tests), the duplicated blocks that pylint finds (if installed), the files
that a training step runs through, and the cost of loading the embedded model.
"""

import ast
import io
import itertools
import json
import statistics
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType

from torch import Tensor

from latentsync.config.unet import load_unet_config
from latentsync.models.unet_config import UNetConfig
from latentsync.training.distributed import make_accelerator, release
from latentsync.training.loop import Trainer
from latentsync.training.stopping import StopRequest
from latentsync.utils.paths import PROJECT_ROOT
from tools.benchmarks.report import machine
from tools.benchmarks.training import make_task, write_clips

FOLDERS = ("latentsync", "preprocess", "eval", "tools", "scripts", "recipes", "integrations", "ECCV2022-RIFE")
MIN_DUPLICATE = 6  # lines
LOADS = 3
# VmHWM, unlike ru_maxrss, does not include the memory of the parent process.
LOAD = """
import time
import latentsync
latentsync.load_pipeline("embedded", "cpu")
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(time.process_time(), int(peak.split()[1]) / 1024)
"""
Function = ast.FunctionDef | ast.AsyncFunctionDef


def product_files() -> list[Path]:
    return [PROJECT_ROOT / "gradio_app.py", *(path for name in FOLDERS for path in (PROJECT_ROOT / name).rglob("*.py"))]


def size_rows(files: list[Path]) -> Iterator[tuple[str, str]]:
    """Files, lines, functions, parameters and comments."""
    texts = [path.read_text(encoding="utf-8") for path in files]
    lines = [text.count("\n") for text in texts]
    functions = [node for text in texts for node in ast.walk(ast.parse(text)) if isinstance(node, Function)]
    lengths = sorted((node.end_lineno or node.lineno) - node.lineno + 1 for node in functions)
    parameters = [len(node.args.posonlyargs + node.args.args + node.args.kwonlyargs) for node in functions]
    tokens = [token for text in texts for token in tokenize.generate_tokens(io.StringIO(text).readline)]
    comments = sum(token.type == tokenize.COMMENT for token in tokens)
    yield "product files, lines", f"{len(files)}, {sum(lines)}"
    yield "lines of a file, median / max", f"{statistics.median(lines):.0f} / {max(lines)}"
    quantiles = f"{statistics.median(lengths):.0f} / {lengths[len(lengths) * 9 // 10]} / {lengths[-1]}"
    yield "lines of a function, median / p90 / max", quantiles
    yield "parameters of a function, max", f"{max(parameters)}"
    yield "lines with a comment", f"{comments / sum(lines):.1%}"


def count_duplicates(files: list[Path]) -> str:
    """Pairs of blocks that pylint reports as duplicates."""
    options = ["--disable=all", "--enable=duplicate-code", "--output-format=json", "--ignore-docstrings=y"]
    options += [f"--min-similarity-lines={MIN_DUPLICATE}", "--ignore-imports=y", "--ignore-signatures=y"]
    command = [sys.executable, "-m", "pylint", *options, *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=PROJECT_ROOT)
    try:
        return str(len(json.loads(done.stdout)))
    except ValueError:
        return "not measured (needs pylint)"


def step_files() -> list[str]:
    """Files of `latentsync/training` that run during one step of stage 2, on a tiny model."""
    seen: set[str] = set()

    def record(frame: FrameType, event: str, argument: object) -> None:
        seen.add(frame.f_code.co_filename)

    class TracedTrainer(Trainer):
        def _train_step(self, batches: Iterator) -> dict[str, Tensor | float]:
            sys.setprofile(record)
            try:
                return super()._train_step(batches)
            finally:
                sys.setprofile(None)

        def _log_and_save(self) -> None:
            pass

    config = load_unet_config(PROJECT_ROOT / "configs" / "unet" / "debug.yaml", UNetConfig)
    with TemporaryDirectory() as folder:
        clips = write_clips(Path(folder), config.data.resolution)
        data = replace(config.data, train_fileslist=str(clips), train_output_dir=f"{folder}/output")
        config = replace(config, data=data, run=replace(config.run, max_train_steps=1, max_train_epochs=-1))
        accelerator = make_accelerator(config.run)
        try:
            with StopRequest(0.0) as stop:
                TracedTrainer(make_task(config), config, accelerator).run(stop)
        finally:
            release(accelerator)
    return sorted(Path(name).name for name in seen if "/latentsync/training/" in name)


def load_cost() -> str:
    """Median CPU seconds and peak memory of loading the embedded model in a new process."""
    command = [sys.executable, "-c", LOAD]
    runs = [subprocess.run(command, capture_output=True, text=True, check=True, cwd=PROJECT_ROOT) for _ in range(LOADS)]
    seconds, peaks = zip(*(map(float, run.stdout.split()) for run in runs), strict=True)
    return f"{statistics.median(seconds):.1f} s, {statistics.median(peaks):.0f} MiB"


def main() -> int:
    files = product_files()
    crossed = step_files()
    rows = itertools.chain(
        size_rows(files),
        [
            (f"duplicated blocks of {MIN_DUPLICATE} lines or more, pairs", count_duplicates(files)),
            ("files of latentsync/training in a stage-2 step", f"{len(crossed)} ({', '.join(crossed)})"),
            (f'CPU time and peak RSS of load_pipeline("embedded"), median of {LOADS}', load_cost()),
        ],
    )
    print("| figure | value |\n|---|---|")
    for name, value in rows:
        print(f"| {name} | {value} |")
    print()
    for name, value in machine().items():
        print(f"- {name}: {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
