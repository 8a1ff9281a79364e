"""Evaluate the embedded model on held-out videos: `python -m tools.evaluate_embedded VIDEOS ... --voices A.wav ...`.

Each video is driven by its own audio, by another voice, and by speech between silences. `eval.run` generates and
evaluates the results; unknown options are passed to it. `targets.md` in the output folder compares the summary with the
targets. Exit codes: 0 written, 1 invalid input, 2 wrong usage.
"""

import argparse
import operator
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.io import wavfile

from eval import run as comparison
from eval.methods import GROUND_TRUTH
from eval.report import PAGE, Report
from eval.videos import find_videos
from latentsync.constants import SAMPLE_RATE
from latentsync.data.clips import read_fileslist
from latentsync.media.audio import load_audio
from latentsync.utils.commands import command
from latentsync.utils.errors import UserError
from latentsync.utils.files import write_text
from latentsync.utils.paths import PROJECT_ROOT

SPEECH_SECONDS, SILENCE_SECONDS = 4.0, 1.5
OWN, OTHER, SILENCE = "own audio", "other voice", "silence"
RELATIONS = {">=": operator.ge, "<=": operator.le}


@dataclass(frozen=True)
class Target:
    """A value and its target; `value` is None if it could not be computed."""

    name: str
    value: float | None
    relation: str
    goal: float

    @property
    def cells(self) -> tuple[str, ...]:
        """Name, value, goal, verdict."""
        if self.value is None:
            return self.name, "n/a", f"{self.relation} {self.goal:g}", "not measured"
        verdict = "met" if RELATIONS[self.relation](self.value, self.goal) else "MISSED"
        return self.name, f"{self.value:.3g}", f"{self.relation} {self.goal:g}", verdict


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tools.evaluate_embedded",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("videos", nargs="+", type=Path, help="videos, or folders of videos, of people the model was not trained on")
    add("--voices", nargs="+", type=Path, help="audio files for the other voice, used in turn (default: the videos')")
    add("--speech", type=Path, default=PROJECT_ROOT / "assets" / "demo_voice.wav", help="audio of the silence test")
    add("--output_dir", type=Path, default=PROJECT_ROOT / "output" / "embedded" / "report", help="output folder")
    add("--model", default="embedded", help="name of a registered model (default: %(default)s)")
    add("--training_list", type=Path, help="file list of the training clips, to refuse videos that were trained on")
    return parser


def collect_videos(given: Sequence[Path], training_list: Path | None) -> list[Path]:
    """All videos, folders expanded.

    Raises:
        UserError: a folder has no videos, or a video was trained on.
    """
    videos = [video for path in given for video in (find_videos(path) if path.is_dir() else [path])]
    trained = [clip.path.stem for clip in read_fileslist(training_list)] if training_list else []
    for video in videos:
        if any(stem == video.stem or stem.startswith(f"{video.stem}_") for stem in trained):
            raise UserError(f"{video}: clips of it are in {training_list}; evaluate on videos that were not trained on")
    return videos


def pairs_of(videos: Sequence[Path], voices: Sequence[Path], silence: Path) -> list[list[object]]:
    """Rows of the list for `eval.run`: each video driven three ways, starting with the second voice."""

    rows: list[list[object]] = []
    for index, video in enumerate(videos):
        driven = {OWN: None, OTHER: voices[(index + 1) % len(voices)], SILENCE: silence}
        for group, audio in driven.items():
            name = f"{video.stem}_{group.replace(' ', '_')}"
            rows.append([video.absolute(), audio.absolute() if audio else "", name, group])
    return rows


def write_padded_speech(path: Path, speech: Path) -> None:
    """Write the start of a recording with digital silence before and after it, as WAV."""
    wave = load_audio(speech, SAMPLE_RATE)[: round(SPEECH_SECONDS * SAMPLE_RATE)]
    padded = np.pad(wave, round(SILENCE_SECONDS * SAMPLE_RATE))
    path.parent.mkdir(parents=True, exist_ok=True)
    wavfile.write(path, SAMPLE_RATE, padded.astype(np.float32))


def targets(report: Report, model: str) -> list[Target]:
    """Compare the summary of a model with the targets."""
    means = {
        (summary.group, item.method, item.metric): item.value
        for summary in report.summaries
        for item in summary.aggregates
    }
    other = {pair.id for pair in report.pairs if pair.group == OTHER}
    clips = [clip for (name, i), clip in report.cells.items() if name == model and i in other]
    offsets = [clip.values["offset"] <= 1 for clip in clips if "offset" in clip.values]
    in_sync = float(np.mean(offsets)) if offsets else None
    real_confidence, confidence = means[OTHER, GROUND_TRUTH, "lse_c"], means[OTHER, model, "lse_c"]
    leak, opening = means[SILENCE, model, "leak"], means[SILENCE, model, "opening"]
    return [
        Target("sync confidence, other voice / real", _ratio(confidence, real_confidence), ">=", 0.95),
        Target("clips with an offset within 1 frame, other voice", in_sync, ">=", 1),
        Target("mouth sharpness, other voice / source", means[OTHER, model, "sharpness"], ">=", 0.9),
        Target("mouth opening, silence / speech", _ratio(leak, opening), "<=", 0.05),
        Target("landmark jitter / source", means[OTHER, model, "jitter"], "<=", 1.2),
    ]


def _ratio(above: float | None, below: float | None) -> float | None:
    return None if above is None or not below else above / below


def run(options: argparse.Namespace, passed_on: Sequence[str], command: str) -> list[Target]:
    """Evaluate, and write report and targets."""
    folder = options.output_dir
    videos = collect_videos(options.videos, options.training_list)
    voices = options.voices or videos
    if len(videos) == 1 and voices == videos:
        raise UserError(f"{videos[0]}: give --voices, or more than one video")
    write_padded_speech(folder / "silence.wav", options.speech)
    rows = pairs_of(videos, voices, folder / "silence.wav")
    chosen = comparison.options_of_model(options.model, folder, rows, passed_on)
    found = targets(comparison.run(chosen, command), options.model)
    table = [("metric", "value", "target", ""), ("---",) * 4, *(target.cells for target in found)]
    text = "".join(f"| {' | '.join(row)} |\n" for row in table) + f"\n- Command: `{command}`\n"
    write_text(folder / "targets.md", lambda file: file.write(text))
    return found


@command
def main(argv: Sequence[str] | None = None) -> int:
    words = sys.argv[1:] if argv is None else argv
    options, passed_on = build_parser().parse_known_args(words)
    comparison.log_progress()
    found = run(options, passed_on, shlex.join(["python", "-m", "tools.evaluate_embedded", *words]))
    for target in found:
        print(": ".join(target.cells[:2]), f"(target {target.goal:g}, {target.cells[3]})")
    print(options.output_dir / PAGE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
