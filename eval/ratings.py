"""Blind comparisons by people: who sees which results, the saved votes, and their summary."""

import csv
import hashlib
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from itertools import combinations
from pathlib import Path

from scipy import stats

from eval.methods import Method
from eval.pairs import Pair
from latentsync.utils.errors import UserError

QUESTIONS = {
    "sync": "In which video do the lips fit the speech better?",
    "quality": "In which video does the mouth look more real?",
}
SAME = "same"
LEVEL = 0.95


@dataclass(frozen=True)
class Trial:
    """Two results of one clip."""

    id: str
    first: Method
    second: Method
    videos: tuple[Path, Path]

    @property
    def key(self) -> str:
        """Names the trial without naming the methods."""
        text = "\0".join((self.id, self.first.name, self.second.name))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def is_swapped(self, rater: str) -> bool:
        """Whether this rater sees the second method on the left."""
        return bool(hashlib.sha256(f"{rater}\0{self.key}".encode()).digest()[0] & 1)


@dataclass(frozen=True)
class Vote:
    """One answer; `winner` is the name of a method, or "same"."""

    time: str
    rater: str
    id: str
    first: str
    second: str
    question: str
    winner: str


@dataclass(frozen=True)
class Preference:
    """Votes on two methods. `share`: of `first`, ties counted half; p: two-sided sign test without ties.

    low, high: 95% Wilson interval of the share among the votes that are not ties; 0 and 1 without any. Votes of one
    rater are not independent of each other: with few raters the interval is too narrow.
    """

    question: str
    first: str
    second: str
    wins: int
    losses: int
    ties: int
    raters: int
    share: float
    low: float
    high: float
    p: float


def all_trials(methods: Sequence[Method], pairs: Sequence[Pair]) -> list[Trial]:
    """Every two methods on every clip that both have.

    Raises:
        UserError: no clip has results of two methods.
    """
    trials = []
    for pair in pairs:
        found = {}
        for method in methods:
            try:
                found[method] = method.result(pair)
            except UserError:
                continue
        trials += [Trial(pair.id, one, two, (found[one], found[two])) for one, two in combinations(found, 2)]
    if not trials:
        raise UserError("no clip has results of two methods; give folders with <id>.mp4")
    return trials


class Ballot:
    """Votes in a CSV file, to which each answer is appended at once."""

    def __init__(self, path: Path, trials: Sequence[Trial]) -> None:
        """Continue an existing file. Raises UserError if it is not a file of votes."""
        self.path = path
        self.trials = {trial.key: trial for trial in trials}
        self.votes = read_votes(path) if path.is_file() else []

    def open_trials(self, rater: str) -> list[Trial]:
        """The trials that a rater has not answered, in an order of their own."""
        answered = {(vote.id, vote.first, vote.second) for vote in self.votes if vote.rater == rater}
        left = [t for t in self.trials.values() if (t.id, t.first.name, t.second.name) not in answered]
        random.Random(rater).shuffle(left)
        return left

    def add(self, rater: str, key: str, answers: dict[str, str]) -> None:
        """Save the answers to a trial: question -> "left", "right" or "same".

        Raises:
            KeyError: unknown trial.
            UserError: the file cannot be written.
        """
        trial = self.trials[key]
        left, right = (trial.first, trial.second)[:: -1 if trial.is_swapped(rater) else 1]
        names = {"left": left.name, "right": right.name, SAME: SAME}
        now = datetime.now(UTC).isoformat(timespec="seconds")
        new = [
            Vote(now, rater, trial.id, trial.first.name, trial.second.name, question, names[answer])
            for question, answer in answers.items()
        ]
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
                if not file.tell():
                    writer.writeheader()
                writer.writerows(asdict(vote) for vote in new)
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written ({error.strerror}); free space") from error
        self.votes += new


COLUMNS = tuple(field.name for field in fields(Vote))


def read_votes(path: Path) -> list[Vote]:
    """Read saved votes. Raises UserError if there are none, or the file is not one of votes."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return [Vote(**row) for row in csv.DictReader(file)]  # type: ignore[arg-type]  # checked by the call
    except FileNotFoundError as error:
        raise UserError(f"{path}: no votes yet") from error
    except (OSError, TypeError, ValueError, csv.Error) as error:
        raise UserError(f"{path}: is not a file of votes; move it elsewhere") from error


def preferences(votes: Sequence[Vote]) -> list[Preference]:
    """Summarize the votes by question and methods. The last answer of a rater to a trial counts."""
    last = {(vote.rater, vote.id, vote.first, vote.second, vote.question): vote for vote in votes}
    groups: dict[tuple[str, str, str], list[Vote]] = {}
    for vote in last.values():
        groups.setdefault((vote.question, vote.first, vote.second), []).append(vote)
    return [_preference(*names, group) for names, group in sorted(groups.items())]


def _preference(question: str, first: str, second: str, votes: Sequence[Vote]) -> Preference:
    counts = Counter(vote.winner for vote in votes)
    wins, losses, ties = counts[first], counts[second], counts[SAME]
    low, high, p = 0.0, 1.0, 1.0
    if wins + losses:
        test = stats.binomtest(wins, wins + losses)
        interval = test.proportion_ci(LEVEL, method="wilson")
        low, high, p = float(interval.low), float(interval.high), float(test.pvalue)
    raters = len({vote.rater for vote in votes})
    share = (wins + ties / 2) / len(votes)
    return Preference(question, first, second, wins, losses, ties, raters, share, low, high, p)


def table(found: Sequence[Preference]) -> str:
    """A Markdown table."""
    lines = ["| question | methods | first | second | same | raters | share of the first | 95% without ties | p |"]
    lines.append("|---" * 9 + "|")
    for item in found:
        methods = f"{item.first} / {item.second}".replace("|", "\\|")
        numbers = f"{item.wins} | {item.losses} | {item.ties} | {item.raters} | {item.share:.0%}"
        lines.append(f"| {item.question} | {methods} | {numbers} | {item.low:.0%} to {item.high:.0%} | {item.p:.3g} |")
    return "\n".join(lines) + "\n"
