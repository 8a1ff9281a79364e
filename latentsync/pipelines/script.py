"""Scripts: the lines of several speakers in one video.

A script is a CSV with the columns start, end, face, audio, text and voice, or a JSON array of objects with these keys.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from pydantic_core import from_json

from latentsync.options import FACE_PATTERN, FACE_VALUES, MAX_SECONDS
from latentsync.utils.errors import UserError, did_you_mean
from latentsync.utils.files import write_text
from latentsync.utils.tables import read_csv

FIELDS = ("start", "end", "face", "audio", "text", "voice")
TIME = re.compile(r"(?:(?:(\d+):)?(\d+):)?(\d+(?:[.,]\d+)?)")
MOST_CUES = 1000


@dataclass(frozen=True)
class Cue:
    """One utterance.

    Args:
        place: file and line or number, for messages.
        start: seconds of the video, from its first frame.
        end: where it ends; None for where its audio does.
        face: see the option `face`; None for that option's value.
        audio: name of a file as the script gives it; None for `text`.
        text, voice: to be spoken; see these options.
    """

    place: str
    start: Fraction
    end: Fraction | None = None
    face: str | None = None
    audio: str | None = None
    text: str | None = None
    voice: str | None = None


def read_script(path: Path, name: str | None = None) -> list[Cue]:
    """The cues of a script, in its order. `name`: that of the file for messages.

    Raises:
        UserError: the file cannot be read, or a cue is not valid; the message names its line or number.
    """
    shown = str(path) if name is None else name
    rows = _json_rows(path, shown) if shown.lower().endswith(".json") else _csv_rows(path, shown)
    if not 1 <= len(rows) <= MOST_CUES:
        raise UserError(f"{shown}: the script has {len(rows)} cues; give 1 to {MOST_CUES}")
    return [_cue(values, place) for place, values in rows]


def audio_names(cues: Sequence[Cue]) -> list[str]:
    """Names of the audio files that a script uses, each once."""
    return list(dict.fromkeys(cue.audio for cue in cues if cue.audio is not None))


def find_audio(cue: Cue, folder: Path, files: Mapping[str, Path] | None) -> Path:
    """The audio file of a cue, from the names in `files`, or relative to `folder`. Raises UserError."""
    assert cue.audio is not None
    if files is None:
        return folder / cue.audio
    if cue.audio not in files:
        raise UserError(f"{cue.place}: there is no audio {cue.audio!r}; choose one of {', '.join(files) or 'none'}")
    return files[cue.audio]


def parse_time(text: object, place: str) -> Fraction:
    """Seconds from a number, or from text such as 12.5, 1:02.5 or 0:01:02,500. Raises UserError."""
    match = TIME.fullmatch(str(text).strip())
    if match is None:
        raise UserError(f"{place}: {str(text)[:40]!r} is not a time; write seconds, or [hours:]minutes:seconds")
    hours, minutes, seconds = (Fraction((part or "0").replace(",", ".")) for part in match.groups())
    time = 3600 * hours + 60 * minutes + seconds
    if time > MAX_SECONDS:
        raise UserError(f"{place}: {str(text)[:40]} is later than the {MAX_SECONDS} s that a video may last")
    return time


def write_script(path: Path, cues: Sequence[Cue]) -> None:
    """Write cues as JSON."""
    values = [
        {name: float(value) if isinstance(value, Fraction) else value for name, value in vars(cue).items()}
        for cue in cues
    ]
    kept = [{name: cue[name] for name in FIELDS if cue[name] is not None} for cue in values]
    write_text(path, lambda file: json.dump(kept, file))


def _csv_rows(path: Path, shown: str) -> list[tuple[str, dict[str, Any]]]:
    names, rows = read_csv(path, FIELDS)
    _check_names(names, shown)
    for line, row in rows:
        if None in row:
            raise UserError(f"{shown}: line {line} has more cells than columns; put texts with commas in quotes")
    return [(f"{shown}: line {line}", {name: cell for name, cell in row.items() if cell}) for line, row in rows]


def _json_rows(path: Path, shown: str) -> list[tuple[str, dict[str, Any]]]:
    try:
        cues = from_json(path.read_bytes(), allow_inf_nan=False)
    except FileNotFoundError as error:
        raise UserError(f"{shown}: no such script") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{shown}: cannot be read as JSON ({error})") from error
    if not isinstance(cues, list) or not all(isinstance(cue, dict) for cue in cues):
        raise UserError(f"{shown}: expected an array of objects with the keys {', '.join(FIELDS)}")
    found = []
    for number, cue in enumerate(cues):
        place = f"{shown}: cue {number + 1}"
        _check_names(list(cue), place)
        found.append((place, {name: value for name, value in cue.items() if value not in (None, "")}))
    return found


def _check_names(names: list[str], place: str) -> None:
    unknown = [str(name) for name in names if name not in FIELDS]
    if unknown:
        near = did_you_mean(unknown[0], FIELDS) or f"; there are {', '.join(FIELDS)}"
        raise UserError(f"{place}: unknown names {', '.join(unknown)}{near}")


def _cue(values: Mapping[str, Any], place: str) -> Cue:
    if "start" not in values:
        raise UserError(f"{place}: start is missing")
    if ("audio" in values) == ("text" in values):
        raise UserError(f"{place}: give audio or text, and only one of them")
    start = parse_time(values["start"], place)
    end = parse_time(values["end"], place) if "end" in values else None
    if end is not None and end <= start:
        raise UserError(f"{place}: its end {float(end):g} s is not later than its start {float(start):g} s")
    texts = {name: str(values[name]).strip() for name in ("face", "audio", "text", "voice") if name in values}
    if "face" in texts and re.fullmatch(FACE_PATTERN, texts["face"]) is None:
        raise UserError(f"{place}: face must be {FACE_VALUES}, not {texts['face'][:40]!r}")
    return Cue(place, start, end, **texts)


def check_overlaps(cues: list[tuple[Cue, str, Fraction, Fraction]]) -> None:
    """Raise UserError where one face has two cues at the same time. `cues`: cue, face, start and end in seconds."""
    last: dict[str, tuple[Cue, Fraction]] = {}
    for cue, face, start, end in sorted(cues, key=lambda item: item[2]):
        other, until = last.get(face, (cue, -math.inf))
        if start < until:
            raise UserError(f"{cue.place}: overlaps with {other.place.rpartition(': ')[2]}, of the same face {face}")
        last[face] = (cue, end)
