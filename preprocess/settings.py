"""Settings that determine the output of data processing."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from latentsync.constants import FPS
from latentsync.data.clips import compile_pattern
from latentsync.faces.factory import DETECTORS
from latentsync.metrics.clip_sync import SCORERS
from latentsync.metrics.image_quality import QUALITY_METRICS
from latentsync.utils.errors import UserError

# Increase when a change of the code gives other clips with equal settings: sources are then processed again.
VERSION = 2

ALWAYS = ("probe", "resample", "segments")
STEPS = ("probe", "resample", "shots", "segments", "faces", "face_size", "alignment", "sync", "quality")
DEFAULT_STEPS = ("probe", "resample", "shots", "segments", "faces", "sync", "quality")
NEED_FACES = ("face_size", "alignment", "sync", "quality")
MANY_FACES = ("split", "largest", "drop")


def setting(
    default: Any, text: str, *, choices: Sequence[str] = (), low: float | None = None, high: float | None = None
) -> Any:
    """A field of `ProcessSettings` with its help text and valid values, from which the command line is generated."""
    return field(default=default, metadata={"help": text, "choices": tuple(choices), "low": low, "high": high})


@dataclass(frozen=True)
class ProcessSettings:
    """Settings of all steps, which are also the arguments of the command line. Raises UserError for invalid values."""

    steps: tuple[str, ...] = setting(DEFAULT_STEPS, f"steps to run, of {','.join(STEPS)}")
    resolution: int = setting(256, "side of the aligned faces in pixels", low=32, high=1024)
    segment_seconds: float = setting(5.0, "length of the longest clips", low=0.64, high=60)
    min_seconds: float = setting(2.0, "length of the shortest clips")
    shot_threshold: float = setting(2.0, "threshold of PySceneDetect's adaptive detector", low=1, high=255)
    audio_track: int = setting(0, "index of the audio track to use", low=0, high=255)
    detector: str = setting("auto", "face detector", choices=DETECTORS)
    many_faces: str = setting(
        "split", "several people: a clip each, the largest face only, or drop the segment", choices=MANY_FACES
    )
    smooth: bool = setting(True, "do not smooth the face's position")
    min_face_size: int = setting(80, "smallest face width in pixels, for the face_size step", low=1, high=8192)
    max_alignment_error: float = setting(
        0.05, "largest distance of the anchors as a share of the side, for the alignment step", low=0, high=1
    )
    sync_scorer: str = setting("auto", "SyncNet to use", choices=SCORERS)
    sync_conf_threshold: float | None = setting(None, "lowest sync confidence (default: 3; embedded: 0.15)")
    min_preference: float | None = setting(
        None,
        "lowest share of the clip's other audio that fits worse (default: none; embedded: 0.9); 0: no check",
    )
    max_offset: int = setting(6, "largest audio-visual offset to correct, in frames", low=0, high=15)
    quality_measure: str = setting("auto", "image quality metric", choices=QUALITY_METRICS)
    min_quality: float | None = setting(None, "lowest image quality (default: 40, or 0.45 for sharpness)")
    keep_silent: bool = setting(False, "keep images and videos without audio, in faces.txt only")
    person_pattern: str | None = setting(
        None, "regular expression for the person in a path (default: the folder, or the file name up to its last _)"
    )
    crf: int = setting(10, "H.264 quality, 0 (lossless) to 51", low=0, high=51)
    device: str = setting("cpu", "device of the networks: cpu, cuda or cuda:N")

    def __post_init__(self) -> None:
        self._check_steps()
        if self.person_pattern is not None:
            compile_pattern(self.person_pattern)
        for item in dataclasses.fields(self):
            value, limits = getattr(self, item.name), item.metadata
            if limits["choices"] and value not in limits["choices"]:
                choices = ", ".join(limits["choices"])
                raise UserError(f"--{item.name} {value!r} is unknown; choose one of {choices}")
            if limits["low"] is not None:
                _check_range(item.name, value, limits["low"], limits["high"])
        if self.resolution % 8:
            raise UserError(f"--resolution must be divisible by 8, not {self.resolution}; the networks need it")
        _check_range("min_seconds", self.min_seconds, 1 / FPS, self.segment_seconds)

    @property
    def segment_frames(self) -> int:
        return round(self.segment_seconds * FPS)

    @property
    def min_frames(self) -> int:
        return max(1, round(Fraction(self.min_seconds) * FPS))

    def runs(self, step: str) -> bool:
        return step in self.steps

    def digest(self, tool_names: dict[str, str] | None = None) -> str:
        """16 hex digits that are equal for settings that give equal clips.

        tool_names: names that "auto" resolves to (detector, scorer, quality metric); depend on the weights present.
        """
        values = dataclasses.asdict(self)
        del values["device"]
        for step, names in _ONLY_FOR.items():
            if not self.runs(step):
                for name in names:
                    del values[name]
        content = {"version": VERSION, "settings": values, "tools": tool_names or {}}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    def _check_steps(self) -> None:
        unknown = [step for step in self.steps if step not in STEPS]
        if unknown:
            raise UserError(f"--steps: unknown step {unknown[0]!r}; choose from {', '.join(STEPS)}")
        without = [step for step in NEED_FACES if self.runs(step)]
        if without and not self.runs("faces"):
            raise UserError(f"--steps: {without[0]} needs aligned faces; add faces, or leave it out")
        ordered = tuple(step for step in STEPS if step in self.steps or step in ALWAYS)
        object.__setattr__(self, "steps", ordered)


# Settings that have no effect if their step is off.
_ONLY_FOR = {
    "shots": ("shot_threshold",),
    "faces": ("resolution", "detector", "many_faces", "smooth"),
    "face_size": ("min_face_size",),
    "alignment": ("max_alignment_error",),
    "sync": ("sync_scorer", "sync_conf_threshold", "min_preference", "max_offset"),
    "quality": ("quality_measure", "min_quality"),
}


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise UserError(f"--{name} must be between {low:g} and {high:g}, not {value:g}")
