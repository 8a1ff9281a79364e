"""What is measured of a clip, with what, and what the figures mean.

Legend: T frames, F frames of a chunk, R pixels of an aligned face, W windows.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from latentsync.data.cache import file_digest
from latentsync.metrics.clip_sync import ClipSyncScorer, open_sync_scorer
from latentsync.metrics.fvd import I3D, STRIDE, VideoFeatures
from latentsync.metrics.landmarks import FaceMesh
from latentsync.models.face_embedding import RECOGNITION, FaceEmbedder
from latentsync.models.inception import CHECKPOINT as INCEPTION
from latentsync.models.inception import FIDInception
from latentsync.models.perceptual import LPIPS, VGG16
from latentsync.utils.registry import PROJECT_ROOT

VERSION = 3  # of the measuring code: a change makes every value measured before void
HIGH, LOW, ONE, ZERO = "higher is better", "lower is better", "best at 1", "best at 0"


@dataclass(frozen=True)
class Measure:
    """One column: how it is called and read. `needs_own`: only where a video speaks its own sound."""

    key: str
    title: str
    unit: str
    better: str
    about: str
    needs_own: bool = False
    of_set: bool = False  # one value for all clips together


MEASURES = (
    Measure("lse_c", "LSE-C", "", HIGH, "sync confidence: median less minimum of the distances over offsets"),
    Measure("lse_d", "LSE-D", "", LOW, "least distance of picture and sound over offsets"),
    Measure("offset", "|offset|", "frames", ZERO, "frames between picture and sound where they fit best"),
    Measure("lmd_mouth", "LMD mouth", "%", LOW, "lip points from the real ones, of the eye distance", True),
    Measure("lmd_face", "LMD face", "%", LOW, "all 468 points from the real ones, of the eye distance", True),
    Measure("psnr", "PSNR", "dB", HIGH, "of the aligned face", True),
    Measure("ssim", "SSIM", "", HIGH, "of the aligned face", True),
    Measure("lpips", "LPIPS", "", LOW, "of the aligned face", True),
    Measure("csim", "CSIM", "", HIGH, "cosine of the face embeddings of result and source"),
    Measure("fid", "FID", "", LOW, "faces of the results against those of the sources", of_set=True),
    Measure("fvd", "FVD", "", LOW, "16-frame windows of the results against those of the sources", of_set=True),
    Measure("leak", "leak", "%", ZERO, "opening of the mouth while the voice is silent, of the face's height"),
    Measure("opening", "opening", "%", "as the ground truth", "the same while it speaks"),
    Measure("boundary", "boundary", "levels/px", ZERO, "edge that the regenerated region adds"),
    Measure("jitter", "jitter", "x", ONE, "trembling of brows, eyes, nose and cheeks over the source's"),
    Measure("lip_jitter", "lip jitter", "x", "as the ground truth", "trembling of the lips over the source's"),
    Measure("flicker", "flicker", "levels", "as the ground truth", "change of the mouth's luma beyond its motion"),
)


@dataclass(frozen=True)
class MeasureSettings:
    """What the values depend on besides the files.

    resolution: side of the aligned faces; every: LPIPS, CSIM and FID look at every n-th frame; stride: of FVD's
    windows; sync: scorer; untrained_lpips: without VGG16's weights use an untrained one of seed 0, named so; face: whom
    of several.
    """

    resolution: int = 256
    every: int = 5
    stride: int = STRIDE
    sync: str = "auto"
    untrained_lpips: bool = False
    face: str = "largest"


@dataclass
class Values:
    """Of one clip: numbers by measure, the reason for each that is missing, features and curves by name."""

    numbers: dict[str, float] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    arrays: dict[str, Any] = field(default_factory=dict)
    frames: int = 0
    faces: int = 0  # of them with a face in the source


class Tools:
    """The networks of all measures, each loaded when first used; those without weights have a reason in `missing`."""

    def __init__(self, settings: MeasureSettings, device: str = "cpu") -> None:
        self.settings, self.device = settings, device
        self.missing = _missing(settings)
        self._loaded: dict[str, Any] = {}

    @property
    def sync(self) -> ClipSyncScorer:
        return self._get("sync", lambda: open_sync_scorer(self.settings.sync, self.device))

    @property
    def mesh(self) -> FaceMesh:
        return self._get("mesh", FaceMesh)

    @property
    def lpips(self) -> LPIPS:
        return self._get("lpips", lambda: LPIPS(random_trunk=not VGG16.is_file()).to(self.device))

    @property
    def embedder(self) -> FaceEmbedder:
        return self._get("csim", lambda: FaceEmbedder.from_pretrained().to(self.device))

    @property
    def inception(self) -> FIDInception:
        return self._get("fid", lambda: FIDInception.from_pretrained().to(self.device))

    @property
    def i3d(self) -> VideoFeatures:
        return self._get("fvd", lambda: VideoFeatures.from_pretrained(device=self.device))

    def has(self, key: str) -> bool:
        """Whether a measure can be taken at all."""
        return key not in self.missing

    def notes(self) -> dict[str, str]:
        """What to say of a measure beside its title: which network gave it."""
        scorer = f"scored by {self.sync.name}"
        notes = {key: scorer for key in ("lse_c", "lse_d", "offset")}
        if self.has("lpips") and not VGG16.is_file():
            notes["lpips"] = "untrained VGG16 of seed 0, not the published LPIPS"
        return notes

    def identity(self) -> dict[str, Any]:
        """All that a value depends on but the files it is of: part of the name under which it is kept."""
        present = [path for path in (VGG16, RECOGNITION, INCEPTION, I3D) if path.is_file()]
        weights = {_short(path): file_digest(path) for path in (*present, *self.sync.files)}
        return {"version": VERSION, **asdict(self.settings), "scorer": self.sync.name, "weights": weights}

    def close(self) -> None:
        """Release the mesh network."""
        if "mesh" in self._loaded:
            self._loaded.pop("mesh").close()

    def _get(self, name: str, load: Callable[[], Any]) -> Any:
        if name not in self._loaded:
            self._loaded[name] = load()
        return self._loaded[name]


def _missing(settings: MeasureSettings) -> dict[str, str]:
    """Measure -> which file it needs, for those whose weights are not here."""
    needed = {"csim": RECOGNITION, "fid": INCEPTION, "fvd": I3D}
    if not settings.untrained_lpips:
        needed["lpips"] = VGG16
    return {key: f"needs {_short(path)}" for key, path in needed.items() if not path.is_file()}


def _short(path: Path) -> str:
    return str(path.relative_to(PROJECT_ROOT)) if path.is_relative_to(PROJECT_ROOT) else str(path)
