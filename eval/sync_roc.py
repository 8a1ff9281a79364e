"""How well data processing keeps true voices and drops other ones: `python -m eval.sync_roc --videos_dir FOLDER`.

Every clip is scored with its own audio and with that of other clips (dubbed). A clip is kept if its offset is within
the limit, both halves have the same offset, and its preference reaches the threshold, see
`latentsync.metrics.sync_gate`. The clips must be real recordings with the speaker's own voice. Writes roc.csv,
clips.csv and roc.png. Exit codes: 0 done, 1 invalid input, 2 wrong usage.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from eval.reconstruction import longest_track
from eval.videos import find_videos
from latentsync.metrics.clip_sync import SCORERS, ClipSync, ClipSyncScorer, open_sync_scorer
from latentsync.metrics.sync import offset_score
from latentsync.metrics.sync_gate import Evidence, gather
from latentsync.utils.commands import command
from latentsync.utils.errors import UserError, one_line
from latentsync.utils.tables import write_csv

RESOLUTION = 256  # of the aligned faces that are scored
MAX_OFFSET = 6  # frames, of data processing
MAX_FRAMES = 125  # five seconds, as in data processing
THRESHOLDS = np.round(np.arange(0.5, 1.0001, 0.01), 2)
SHOWN = (0.8, 0.85, 0.9, 0.95, 0.98)  # of the thresholds, in the summary
COLUMNS = ("video", "voice", "true", "offset", "confidence", "preference", "first_half", "second_half")


@dataclass(frozen=True)
class ScoredPair:
    """A video with the audio of `voice`, its own if they are equal."""

    video: Path
    voice: Path
    offset: int
    confidence: float
    evidence: Evidence

    @property
    def is_true(self) -> bool:
        return self.video == self.voice

    def is_kept(self, threshold: float) -> bool:
        """Whether data processing keeps it at a threshold of the preference."""
        return abs(self.offset) <= MAX_OFFSET and self.evidence.agrees and self.evidence.preference >= threshold

    def cells(self) -> tuple[object, ...]:
        """As `COLUMNS`."""
        halves = self.evidence.halves or ("", "")
        numbers = (f"{self.confidence:.4f}", f"{self.evidence.preference:.4f}", *halves)
        return self.video, self.voice, int(self.is_true), self.offset, *numbers


def score_pair(video: Path, voice: Path, vision: np.ndarray, audio: np.ndarray) -> ScoredPair:
    """Score the windows of a video against those of an audio; the longer of the two is cut."""
    count = min(len(vision), len(audio))
    vision, audio = vision[:count], audio[:count]
    score = offset_score(torch.from_numpy(vision), torch.from_numpy(audio))
    return ScoredPair(video, voice, score.offset, score.confidence, gather(vision, audio, score.offset))


def score_all(videos: Sequence[Path], scorer: ClipSyncScorer) -> dict[Path, ClipSync]:
    """Embeddings of each clip that can be scored; the others are reported."""
    found = {}
    for video in videos:
        try:
            found[video] = scorer.score_faces(*longest_track(video, RESOLUTION, MAX_FRAMES))
        except UserError as error:
            print(f"skipped: {one_line(error)}", file=sys.stderr)
    return found


def score_pairs(clips: dict[Path, ClipSync], dubs: int, seed: int = 0) -> Iterator[ScoredPair]:
    """Each clip with its own audio and with that of `dubs` others, drawn at random."""
    rng = np.random.default_rng(seed)
    for video, clip in clips.items():
        others = [path for path in clips if path != video]
        for index in rng.permutation(len(others))[:dubs]:
            yield score_pair(video, others[index], clip.vision, clips[others[index]].audio)
        yield score_pair(video, video, clip.vision, clip.audio)


def roc(found: Sequence[ScoredPair]) -> list[tuple[float, float, float]]:
    """(threshold, share of true clips kept, share of dubbed ones kept) for each threshold."""
    return [(float(each), *shares(found, partial(ScoredPair.is_kept, threshold=each))) for each in THRESHOLDS]


def shares(found: Sequence[ScoredPair], is_kept: Callable[[ScoredPair], bool]) -> tuple[float, float]:
    """Shares of true and of dubbed clips that a test keeps."""
    true, dubbed = (np.mean([is_kept(item) for item in found if item.is_true == kind]) for kind in (True, False))
    return float(true), float(dubbed)


def simpler_tests(found: Sequence[ScoredPair], least_confidence: float) -> dict[str, tuple[float, float]]:
    """`shares` of the score that the preference is added to."""

    def is_near(item: ScoredPair) -> bool:
        return item.confidence >= least_confidence and abs(item.offset) <= MAX_OFFSET

    return {
        "confidence and offset alone": shares(found, is_near),
        "and one offset in both halves": shares(found, lambda item: is_near(item) and item.evidence.agrees),
    }


def draw(rates: Sequence[tuple[float, float, float]], path: Path) -> None:
    """Plot the share of true clips over that of dubbed ones."""
    figure = Figure(figsize=(5, 5), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.plot([dubbed for *_, dubbed in rates], [true for _, true, _ in rates], marker=".")
    for threshold, true, dubbed in rates:
        if threshold in SHOWN:
            axes.annotate(f"{threshold:g}", (dubbed, true), textcoords="offset points", xytext=(6, -12))
    axes.set(xlabel="dubbed clips kept", ylabel="true clips kept", ylim=(0, 1.02))
    figure.savefig(path)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m eval.sync_roc", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--videos_dir", type=Path, required=True, help="real clips with the voice of the person shown")
    add("--output_dir", type=Path, default=Path("output/sync_roc"), help="folder of the results (default: %(default)s)")
    add("--scorer", choices=SCORERS, default="auto", help="sync scorer (default: %(default)s)")
    add("--device", default="cpu", help="cpu, cuda or cuda:N (default: %(default)s)")
    add("--dubs", type=int, default=8, help="other voices for each clip (default: %(default)s)")
    return parser


def run(args: argparse.Namespace) -> str:
    """Score all pairs and write the files; returns a summary."""
    scorer = open_sync_scorer(args.scorer, args.device)
    clips = score_all(find_videos(args.videos_dir), scorer)
    if len(clips) < 2:
        raise UserError(f"{args.videos_dir}: at least two clips that can be scored are needed, see above")
    found = list(score_pairs(clips, args.dubs))
    rates = roc(found)
    write_csv(args.output_dir / "clips.csv", COLUMNS, (item.cells() for item in found))
    write_csv(args.output_dir / "roc.csv", ("preference", "true_kept", "dubbed_kept"), rates)
    draw(rates, args.output_dir / "roc.png")
    kept = simpler_tests(found, scorer.default_threshold)
    kept |= {f"preference {threshold:.2f}": (true, dubbed) for threshold, true, dubbed in rates if threshold in SHOWN}
    lines = [f"{len(clips)} true clips, {len(found) - len(clips)} dubbed ones; kept of the true and of the dubbed:"]
    lines += [f"{name}: {true:.1%}, {dubbed:.1%}" for name, (true, dubbed) in kept.items()]
    return "\n".join(lines)


@command
def main(argv: Sequence[str] | None = None) -> int:
    print(run(build_parser().parse_args(argv)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
