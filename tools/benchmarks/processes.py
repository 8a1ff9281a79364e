"""Benchmarks of whole processes: peak memory of the command line, duration of the demo."""

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from latentsync.utils.errors import UserError
from latentsync.utils.paths import PROJECT_ROOT
from tools.benchmarks import CROP_WIDTHS, SIZES
from tools.benchmarks.inputs import loop_clip, make_clip, make_speech
from tools.benchmarks.report import Figure

GROWTH_LIMIT = 1.1
PEAK_LIMIT_GB = 2.5
DEMO_LIMIT_S = 60.0
SHORT_SECONDS, LONG_SECONDS = 30.0, 600.0
CLIP_SECONDS = 10.0
CHEAP = ["--model", "embedded", "--inference_steps", "1", "--guidance_scale", "1", "--quiet"]

# A small process in between, because Linux counts the parent's memory before `exec` as the child's peak.
LAUNCHER = """
import json, resource, subprocess, sys
code = subprocess.run(sys.argv[2:], stdout=subprocess.DEVNULL).returncode
unit = 1 if sys.platform == "darwin" else 1024
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit
with open(sys.argv[1], "w") as file:
    json.dump({"code": code, "peak": peak}, file)
"""


def measure_memory(folder: Path, long_seconds: float, options: Sequence[str] = ()) -> list[Figure]:
    """Peak resident memory of `scripts.inference` on a short and a long 720p clip, and their ratio."""
    clip = make_clip(folder / "clip.mp4", SIZES["720p"], CROP_WIDTHS["720p"], min(CLIP_SECONDS, long_seconds))
    short_seconds = min(SHORT_SECONDS, long_seconds)
    peaks, walls = [], []
    for seconds in (short_seconds, long_seconds):
        video = loop_clip(clip, folder / f"video_{seconds:g}.mp4", seconds)
        voice = make_speech(folder / f"voice_{seconds:g}.wav", seconds)
        start = time.perf_counter()
        peaks.append(peak_memory(_command(video, voice, folder / "result.mp4", options), folder) / 1e9)
        walls.append(time.perf_counter() - start)
        video.unlink()
    note = "720p, " + " ".join([*CHEAP[:-1], *options])
    return [
        Figure("memory", f"peak RSS, {short_seconds:g} s", peaks[0], "GB", PEAK_LIMIT_GB, f"{note}; {walls[0]:.0f} s"),
        Figure("memory", f"peak RSS, {long_seconds:g} s", peaks[1], "GB", PEAK_LIMIT_GB, f"{note}; {walls[1]:.0f} s"),
        Figure("memory", "long / short", peaks[1] / peaks[0], "x", GROWTH_LIMIT),
    ]


def _command(video: Path, voice: Path, target: Path, options: Sequence[str]) -> list[str]:
    files = ["--video_path", str(video), "--audio_path", str(voice), "--video_out_path", str(target)]
    return [sys.executable, "-m", "scripts.inference", *files, *CHEAP, *options]


def peak_memory(command: Sequence[str], folder: Path) -> int:
    """Largest resident set of a command in bytes. Raises UserError if the command fails."""
    report = folder / "peak.json"
    subprocess.run([sys.executable, "-c", LAUNCHER, str(report), *command], cwd=PROJECT_ROOT, check=True)
    result = json.loads(report.read_text())
    if result["code"]:
        raise UserError(f"{shlex.join(command)}: failed with exit code {result['code']}, see its message above")
    return result["peak"]


def measure_demo(folder: Path, options: Sequence[str] = ()) -> list[Figure]:
    """Wall-clock time of the demo in an environment that is already set up."""
    start = time.perf_counter()
    subprocess.run(
        ["bash", str(PROJECT_ROOT / "inference.sh"), *options], cwd=folder, check=True, stdout=subprocess.DEVNULL
    )
    wall = time.perf_counter() - start
    return [Figure("demo", " ".join(["./inference.sh", *options]), wall, "s", DEMO_LIMIT_S, "start-up included")]
