"""From the values of single clips to the figures of a model, and how these are shown."""

import json
import math
import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

RELATIONS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
PREFERENCE_SEEN, PREFERENCE_UNSEEN = 0.98, 0.93
OFFSET_SHARE, OFFSET_TOLERANCE = 0.98, 1
REAL_SHARE, SHUFFLED_TIMES = 0.75, 3.0
OPEN_IN_SILENCE = 0.15
SYNC_KINDS = ("real", "self-driven", "other voice", "shuffled")
Entry = dict[str, Any]


@dataclass(frozen=True)
class Figure:
    """One measured number and what it should be; `value` is None where it could not be measured."""

    section: str
    name: str
    value: float | None
    unit: str = ""
    relation: str = ""
    target: float | None = None
    note: str = ""

    @property
    def verdict(self) -> str:
        if self.value is None:
            return "not measured"
        if self.target is None:
            return ""
        return "met" if RELATIONS[self.relation](self.value, self.target) else "MISSED"

    @property
    def cells(self) -> tuple[str, ...]:
        """section, name, value, target, verdict, note."""
        target = "" if self.target is None else f"{self.relation} {shown(self.target, self.unit)}"
        return self.section, self.name, shown(self.value, self.unit), target, self.verdict, self.note


def shown(value: float | None, unit: str = "") -> str:
    """A number for readers; shares as percentages."""
    if value is None:
        return ""
    if unit == "%":
        return f"{100 * value:.1f} %"
    return f"{value:.4g} {unit}".rstrip()


def mean(values: Iterable[float]) -> float | None:
    """Mean of the finite values, None when there are none."""
    finite = [value for value in values if math.isfinite(value)]
    return fmean(finite) if finite else None


def ratio(above: float | None, below: float | None) -> float | None:
    """None where it is not defined."""
    return None if above is None or not below else above / below


def syncnet_figures(entries: Sequence[Entry]) -> list[Figure]:
    """From `measure_syncnet` of real clips: preference over all windows of a group, offsets over clips."""
    figures = []
    for group, chosen, target in _groups(entries):
        note = f"{sum(entry['windows'] for entry in chosen)} windows of {len(chosen)} clips of {_people(chosen)} people"
        name = f"in-sync window preferred, {group} people"
        figures.append(Figure("SyncNet", name, _share("preference", chosen), "%", ">=", target, note))
        moved = "the sound of each clip moved by the offset found in it"
        corrected = _share("corrected_preference", chosen)
        figures.append(Figure("SyncNet", f"{name}, offset corrected", corrected, "%", note=moved))
    figures.append(_offset_figure("offset", entries, f"{len(entries)} real clips"))
    return figures + (_aligned_figures(entries) if all("aligned_offset" in entry for entry in entries) else [])


def _aligned_figures(entries: Sequence[Entry]) -> list[Figure]:
    """The figures that have targets, of recordings that another SyncNet has put in sync."""
    moved = sum(entry["reference_offset"] != 0 for entry in entries)
    note = f"another SyncNet moved the sound of {moved} of {len(entries)} clips"
    figures = []
    for group, chosen, target in _groups(entries):
        name = f"in-sync window preferred, {group} people, put in sync"
        figures.append(Figure("SyncNet", name, _share("aligned_preference", chosen), "%", ">=", target, note))
    return [*figures, _offset_figure("aligned_offset", entries, note, ", put in sync")]


def _groups(entries: Sequence[Entry]) -> list[tuple[str, list[Entry], float]]:
    """Name, entries and target of the people seen in training, and of the others."""
    kinds = (("seen", True, PREFERENCE_SEEN), ("unseen", False, PREFERENCE_UNSEEN))
    return [(name, [entry for entry in entries if entry["seen"] is seen], target) for name, seen, target in kinds]


def _share(key: str, entries: Sequence[Entry]) -> float | None:
    """Mean of a value over all windows of the clips."""
    windows = sum(entry["windows"] for entry in entries)
    return ratio(sum(entry[key] * entry["windows"] for entry in entries), windows)


def _offset_figure(key: str, entries: Sequence[Entry], note: str, more: str = "") -> Figure:
    near = mean(float(abs(entry[key]) <= OFFSET_TOLERANCE) for entry in entries)
    name = f"offset within {OFFSET_TOLERANCE} frame{more}"
    return Figure("SyncNet", name, near, "%", ">=", OFFSET_SHARE, note)


def sync_figures(entries: Sequence[Entry], scorer: str) -> list[Figure]:
    """From `sync_values` of results, found in each entry under "sync", then the scorer's name."""
    scored = [entry["sync"][scorer] for entry in entries]
    means = {kind: mean(values[kind]["confidence"] for values in scored) for kind in SYNC_KINDS}
    section = f"sync, scored by {scorer}"
    note = f"mean of {len(scored)} clips of {_people(entries)} people"
    figures = [Figure(section, f"confidence, {kind}", means[kind], note=note) for kind in SYNC_KINDS]
    real = ratio(means["other voice"], means["real"])
    times = ratio(means["other voice"], means["shuffled"])
    near = mean(float(abs(values["other voice"]["offset"]) <= OFFSET_TOLERANCE) for values in scored)
    return [
        *figures,
        Figure(section, "other voice / real", real, "%", ">=", REAL_SHARE),
        Figure(section, "other voice / shuffled", times, "times", ">=", SHUFFLED_TIMES),
        Figure(section, f"other voice, offset within {OFFSET_TOLERANCE} frame", near, "%"),
    ]


def reconstruction_figures(entries: Sequence[Entry], lpips_name: str) -> list[Figure]:
    """From `measure_reconstruction`, found in each entry under "mouth": the model must beat the pasted reference."""
    figures = []
    for key, name, unit, relation in (
        ("lpips", lpips_name, "", "<"),
        ("psnr", "PSNR", "dB", ">"),
        ("ssim", "SSIM", "", ">"),
    ):
        made, pasted, codec = (
            mean(entry["mouth"][what][key] for entry in entries) for what in ("model", "pasted", "codec")
        )
        note = f"target: the reference's mouth pasted; autoencoder alone {shown(codec, unit)}"
        figures.append(Figure("mouth, self-reconstruction", name, made, unit, relation, pasted, note))
    return figures


def silence_figures(entries: Sequence[Entry]) -> list[Figure]:
    """From `measure_silence`, found in each entry under "opening"; clips in which no mouth was seen do not count."""
    tried = [entry["opening"] for entry in entries if "opening" in entry]
    measured = [values for values in tried if math.isfinite(values["silence"] + values["speech"])]
    means = {
        key: mean(values[key] for values in measured) for key in ("silence", "speech", "real_speech", "input_silence")
    }
    note = (
        f"{len(measured)} of {len(tried)} clips; of the face's height {shown(means['silence'])} in silence, "
        f"{shown(means['speech'])} in speech, {shown(means['input_silence'])} in the frames given for the silence"
    )
    closed = ratio(means["silence"], means["speech"])
    moved = ratio(means["speech"], means["real_speech"])  # a mouth that never opens would meet the target as well
    return [
        Figure("mouth, silence", "opening in silence / in speech", closed, "%", "<=", OPEN_IN_SILENCE, note),
        Figure("mouth, silence", "opening in speech / in real speech", moved, "%"),
    ]


def as_markdown(figures: Sequence[Figure], entries: Sequence[Entry], about: dict[str, str], command: str) -> str:
    """The figures, and the confidences of each clip."""
    lines = [f"- {key}: {value}" for key, value in about.items()] + [f"- Command: `{command}`", ""]
    lines += _table(("section", "measured", "figure", "target", "", "conditions"), [item.cells for item in figures])
    scorers = list(dict.fromkeys(name for entry in entries for name in entry.get("sync", {})))
    for scorer in scorers:
        lines += ["", f"Confidence (offset) of each clip, scored by {scorer}:", ""]
        lines += _table(("clip", "voice", "person", *SYNC_KINDS), [_sync_row(entry, scorer) for entry in entries])
    return "\n".join(lines) + "\n"


def as_json(figures: Sequence[Figure], content: dict[str, Any]) -> str:
    """Figures and everything else for programs; a value that is not a number becomes null."""
    rows = [asdict(figure) | {"verdict": figure.verdict} for figure in figures]
    return json.dumps(_finite({**content, "figures": rows}), indent=2, allow_nan=False) + "\n"


def _sync_row(entry: Entry, scorer: str) -> list[str]:
    values = entry["sync"][scorer]
    cells = [f"{values[kind]['confidence']:.3f} ({values[kind]['offset']:+d})" for kind in SYNC_KINDS]
    return [entry["clip"], entry["voice"], "seen" if entry["seen"] else "unseen", *cells]


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (headings, ["---"] * len(headings), *rows)]


def _people(entries: Sequence[Entry]) -> int:
    return len({entry["person"] for entry in entries})


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
