"""Settings that determine the output of data processing."""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from fractions import Fraction

from latentsync.data.clips import compile_pattern
from latentsync.faces.factory import DETECTORS
from latentsync.utils.errors import UserError
from preprocess.clip import FPS

# Increase when a change of the code gives other clips with equal settings: sources are then processed again.
VERSION = 1

ALWAYS = ("probe", "resample", "segments")
OPTIONAL = ("shots", "faces", "face_size", "alignment", "sync", "quality")
STEPS = ("probe", "resample", "shots", "segments", "faces", "face_size", "alignment", "sync", "quality")
DEFAULT_STEPS = ("probe", "resample", "shots", "segments", "faces", "sync", "quality")
NEED_FACES = ("face_size", "alignment", "sync", "quality")
MANY_FACES = ("split", "largest", "drop")


@dataclass(frozen=True)
class ProcessSettings:
    """Options of all steps. Raises UserError for invalid values.

    steps: steps to run, of `STEPS`; probe, resample and segments always run. Without "faces" whole frames are kept.
    resolution: side of the aligned faces in pixels.
    segment_seconds, min_seconds: longest and shortest clip, in whole frames of 1/25 s.
    shot_threshold: PySceneDetect's adaptive ratio.
    audio_track: audio track of the source, 0 first.
    detector: auto | mediapipe | insightface, as in inference.
    many_faces: one clip for each person ("split"), the largest face alone, or none at all ("drop").
    smooth: filter the anchors, so that crops do not jitter.
    min_face_size: for the face_size step, smallest width of the face in pixels of the source.
    max_alignment_error: for the alignment step, largest distance of the anchor points from their places in the aligned
        face, as a share of its side.
    sync_scorer: auto | syncnet_v2 | embedded. sync_conf_threshold: smallest confidence, None for the scorer's own.
    max_offset: largest audio-visual offset that is corrected, in frames.
    quality_measure: auto | hyperiqa | sharpness. min_quality: None for the metric's own.
    keep_silent: keep images and videos without audio as well, for models that use faces only.
    person_pattern: regular expression for the person in a source's path, see `tools.write_fileslist`; None: its folder,
        or without one, its name up to the last underscore.
    crf: x264 quality of the clips, 0 (lossless) to 51.
    device: device of the networks; does not affect the output.
    """

    steps: tuple[str, ...] = DEFAULT_STEPS
    resolution: int = 256
    segment_seconds: float = 5.0
    min_seconds: float = 2.0
    shot_threshold: float = 2.0
    audio_track: int = 0
    detector: str = "auto"
    many_faces: str = "split"
    smooth: bool = True
    min_face_size: int = 80
    max_alignment_error: float = 0.05
    sync_scorer: str = "auto"
    sync_conf_threshold: float | None = None
    max_offset: int = 6
    quality_measure: str = "auto"
    min_quality: float | None = None
    keep_silent: bool = False
    person_pattern: str | None = None
    crf: int = 10
    device: str = "cpu"

    def __post_init__(self) -> None:
        self._check_steps()
        if self.person_pattern is not None:
            compile_pattern(self.person_pattern)
        _check_choice("--detector", self.detector, DETECTORS)
        _check_choice("--many_faces", self.many_faces, MANY_FACES)
        _check_range("--resolution", self.resolution, 32, 1024)
        if self.resolution % 8:
            raise UserError(f"--resolution must be divisible by 8, not {self.resolution}; the networks need it")
        _check_range("--segment_seconds", self.segment_seconds, 0.64, 60)
        _check_range("--min_seconds", self.min_seconds, 1 / FPS, self.segment_seconds)
        _check_range("--shot_threshold", self.shot_threshold, 1, 255)
        _check_range("--audio_track", self.audio_track, 0, 255)
        _check_range("--min_face_size", self.min_face_size, 1, 8192)
        _check_range("--max_alignment_error", self.max_alignment_error, 0, 1)
        _check_range("--max_offset", self.max_offset, 0, 15)
        _check_range("--crf", self.crf, 0, 51)

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
    "sync": ("sync_scorer", "sync_conf_threshold", "max_offset"),
    "quality": ("quality_measure", "min_quality"),
}


def _check_choice(option: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UserError(f"{option} {value!r} is unknown; choose one of {', '.join(choices)}")


def _check_range(option: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise UserError(f"{option} must be between {low:g} and {high:g}, not {value:g}")
