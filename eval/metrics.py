"""The metrics of a comparison: names, definitions and networks."""

import argparse
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from latentsync.data.cache import file_digest
from latentsync.metrics.clip_sync import SCORERS, ClipSyncScorer, open_sync_scorer
from latentsync.metrics.fvd import I3D, STRIDE, VideoFeatures
from latentsync.metrics.landmarks import FaceMesh
from latentsync.options import parse_options
from latentsync.pretrained import mobilenet
from latentsync.pretrained.face_embedding import RECOGNITION, FaceEmbedder
from latentsync.pretrained.inception import CHECKPOINT as INCEPTION
from latentsync.pretrained.inception import FIDInception
from latentsync.pretrained.lip_reader import CHECKPOINT as LIP_READER
from latentsync.pretrained.lip_reader import LipReader
from latentsync.pretrained.mobilenet import MobileNetDistance
from latentsync.pretrained.perceptual import LPIPS, VGG16
from latentsync.utils.paths import PROJECT_ROOT

VERSION = 8  # of the metric code; increase it to invalidate cached values
HIGHER, LOWER, ONE, ZERO = "higher is better", "lower is better", "best at 1", "best at 0"
AS_REAL = "as the ground truth"


@dataclass(frozen=True)
class Metric:
    """One column of a comparison.

    Args:
        key: name in files.
        title, unit, better, about: texts for readers.
        needs_own_audio: defined only if a video is driven by its own audio, so that it is the ground truth.
        of_set: computed over all clips together.
    """

    key: str
    title: str
    unit: str
    better: str
    about: str
    needs_own_audio: bool = False
    of_set: bool = False


METRICS = (
    Metric("lse_c", "LSE-C", "", HIGHER, "sync confidence: median minus minimum of the distances over offsets"),
    Metric("lse_d", "LSE-D", "", LOWER, "smallest audio-visual distance over offsets"),
    Metric("offset", "|offset|", "frames", ZERO, "audio-visual offset with the smallest distance"),
    Metric("lmd_mouth", "LMD mouth", "%", LOWER, "distance of the lip landmarks, relative to the eye distance", True),
    Metric("lmd_face", "LMD face", "%", LOWER, "distance of all 468 landmarks, relative to the eye distance", True),
    Metric("lip_score", "LipScore", "", HIGHER, "similarity of a lip reader's features of result and source", True),
    Metric("psnr", "PSNR face", "dB", HIGHER, "aligned face", True),
    Metric("psnr_mouth", "PSNR mouth", "dB", HIGHER, "mouth box", True),
    Metric("ssim", "SSIM face", "", HIGHER, "aligned face", True),
    Metric("ssim_mouth", "SSIM mouth", "", HIGHER, "mouth box", True),
    Metric("lpips", "LPIPS face", "", LOWER, "aligned face", True),
    Metric("lpips_mouth", "LPIPS mouth", "", LOWER, "mouth box", True),
    Metric("mobilenet", "MobileNetV2 distance face", "", LOWER, "ImageNet features, aligned face", True),
    Metric("mobilenet_mouth", "MobileNetV2 distance mouth", "", LOWER, "ImageNet features, mouth box", True),
    Metric("sharpness", "sharpness mouth", "x", ONE, "deviation from the 5x5 mean, relative to the source, mouth box"),
    Metric("laplacian", "Laplacian mouth", "x", ONE, "mean |Laplacian|, relative to the source, mouth box"),
    Metric("csim", "CSIM", "", HIGHER, "cosine similarity of the face embeddings of result and source"),
    Metric("fid", "FID face", "", LOWER, "Frechet distance between the faces of results and sources", of_set=True),
    Metric("fid_mouth", "FID mouth", "", LOWER, "the same of the mouth boxes", of_set=True),
    Metric("kid", "KID face", "", LOWER, "kernel distance between the faces of results and sources", of_set=True),
    Metric("kid_mouth", "KID mouth", "", LOWER, "the same of the mouth boxes", of_set=True),
    Metric("fvd", "FVD", "", LOWER, "distance between 16-frame windows of results and sources", of_set=True),
    Metric("leak", "leak", "%", ZERO, "mouth opening in silence, relative to the face height"),
    Metric(
        "leak_ratio", "silence opening ratio", "%", ZERO, "mouth opening in silence, relative to the source's there"
    ),
    Metric("opening", "opening", "%", AS_REAL, "mouth opening during speech, relative to the face height"),
    Metric(
        "around_mouth", "change around mouth", "levels", LOWER, "difference from the source in the regenerated region"
    ),
    Metric("boundary", "boundary", "levels/px", ZERO, "edge added around the regenerated region"),
    Metric("jitter", "jitter", "x", ONE, "landmark jitter of brows, eyes, nose and cheeks, relative to the source"),
    Metric("lip_jitter", "lip jitter", "x", AS_REAL, "landmark jitter of the lips, relative to the source"),
    Metric("flicker", "flicker", "levels", AS_REAL, "luma change of the mouth that motion does not explain"),
    Metric("seam", "seam", "x", ONE, "flicker where a chunk begins, relative to the flicker inside chunks"),
    Metric("lip_seam", "lip seam", "x", ONE, "lip motion where a chunk begins, relative to that inside chunks"),
)
OF_INCEPTION = ("fid", "fid_mouth", "kid", "kid_mouth")


@dataclass(frozen=True)
class MetricSettings:
    """Settings that affect the values.

    Args:
        resolution: side of the aligned faces in pixels.
        every: LPIPS, MobileNetV2 distance, CSIM and FID use every n-th frame.
        stride: frames between the starts of FVD windows.
        sync: name of the sync scorer.
        untrained_lpips: without VGG16's weights, use an untrained trunk with seed 0; the report notes it.
        face: which face to evaluate.
        chunk: frames of the methods' chunks, for the metrics of seams.
        overlap: frames that consecutive chunks share.
        seconds: evaluate only so much of each video, from its start.
    """

    resolution: int = 256
    every: int = 5
    stride: int = STRIDE
    sync: str = "auto"
    untrained_lpips: bool = False
    face: str = "largest"
    chunk: int = 16
    overlap: int = 0
    seconds: float | None = None


def add_metric_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `MetricSettings` except face, overlap and seconds, which are generation options."""
    add, defaults = parser.add_argument, MetricSettings()
    add("--resolution", type=int, default=defaults.resolution, help="side of aligned faces (default: %(default)s)")
    add("--every", type=int, default=defaults.every, help="use every n-th frame in metrics of large networks")
    add("--stride", type=int, default=defaults.stride, help="frames between the windows of FVD (default: %(default)s)")
    add("--chunk", type=int, default=defaults.chunk, help="frames of the methods' chunks, for seams (default: 16)")
    add("--sync_scorer", choices=SCORERS, default=defaults.sync, help="auto prefers the published SyncNet, if present")
    add(
        "--untrained_lpips",
        action="store_true",
        help="compute LPIPS with an untrained network if VGG16's weights are missing",
    )


def check_metric_options(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Exit with 2 on values out of range."""
    if not 64 <= options.resolution <= 1024:
        parser.error("--resolution must be between 64 and 1024")
    if options.every < 1 or options.stride < 1 or options.chunk < 2:
        parser.error("--every and --stride must be 1 or more, --chunk 2 or more")
    if metric_settings(options).overlap >= options.chunk:
        parser.error("--chunk_overlap must be smaller than --chunk")


def metric_settings(options: argparse.Namespace) -> MetricSettings:
    """Settings of the command line."""
    generation = ("face", "chunk_overlap", "max_seconds")
    chosen = parse_options({name: getattr(options, name) for name in generation if hasattr(options, name)})
    names = (options.resolution, options.every, options.stride, options.sync_scorer, options.untrained_lpips)
    return MetricSettings(*names, chosen.face, options.chunk, chosen.chunk_overlap, chosen.max_seconds)


@dataclass
class ClipMetrics:
    """Metrics of one clip.

    Args:
        values: values by metric.
        missing: reasons for missing values by metric.
        arrays: features and curves by name.
        frames, faces: number of frames, and number of frames in which the source shows a face.
    """

    values: dict[str, float] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    arrays: dict[str, Any] = field(default_factory=dict)
    frames: int = 0
    faces: int = 0


class MetricModels:
    """Networks of the metrics, loaded on first use. `missing`: the weights that each unavailable metric needs."""

    def __init__(self, settings: MetricSettings, device: str = "cpu") -> None:
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
    def mobilenet(self) -> MobileNetDistance:
        return self._get("mobilenet", lambda: MobileNetDistance().to(self.device))

    @property
    def embedder(self) -> FaceEmbedder:
        return self._get("csim", lambda: FaceEmbedder.from_pretrained().to(self.device))

    @property
    def lip_reader(self) -> LipReader:
        return self._get("lip_score", lambda: LipReader.from_pretrained(LIP_READER).to(self.device))

    @property
    def inception(self) -> FIDInception:
        return self._get("fid", lambda: FIDInception.from_pretrained().to(self.device))

    @property
    def i3d(self) -> VideoFeatures:
        return self._get("fvd", lambda: VideoFeatures.from_pretrained(device=self.device))

    def has(self, key: str) -> bool:
        """Whether the weights of a metric are available."""
        return key not in self.missing

    def notes(self) -> dict[str, str]:
        """Remarks by metric: which network computed it."""
        notes = dict.fromkeys(("lse_c", "lse_d", "offset"), f"scored by {self.sync.name}")
        if self.has("lpips") and not VGG16.is_file():
            notes |= dict.fromkeys(("lpips", "lpips_mouth"), "untrained VGG16 with seed 0, not the published LPIPS")
        return notes

    def identity(self) -> dict[str, Any]:
        """Settings and weights that affect the values; part of the cache key."""
        present = [path for path in (VGG16, RECOGNITION, INCEPTION, I3D, LIP_READER) if path.is_file()]
        weights = {_short(path): file_digest(path) for path in (*present, *self.sync.files)}
        if (path := mobilenet.find_weights()) is not None:
            weights[path.name] = file_digest(path)
        return {"version": VERSION, **asdict(self.settings), "scorer": self.sync.name, "weights": weights}

    def close(self) -> None:
        """Release the mesh network."""
        if "mesh" in self._loaded:
            self._loaded.pop("mesh").close()

    def _get(self, name: str, load: Callable[[], Any]) -> Any:
        if name not in self._loaded:
            self._loaded[name] = load()
        return self._loaded[name]


def _missing(settings: MetricSettings) -> dict[str, str]:
    """The weights that each unavailable metric needs."""
    needed = {"csim": RECOGNITION, "fvd": I3D, "lip_score": LIP_READER, **dict.fromkeys(OF_INCEPTION, INCEPTION)}
    if not settings.untrained_lpips:
        needed |= {"lpips": VGG16, "lpips_mouth": VGG16}
    missing = {key: f"needs {_short(path)}" for key, path in needed.items() if not path.is_file()}
    if mobilenet.find_weights() is None:
        missing |= dict.fromkeys(("mobilenet", "mobilenet_mouth"), f"needs `{mobilenet.INSTALL}`")
    return missing


def _short(path: Path) -> str:
    return str(path.relative_to(PROJECT_ROOT)) if path.is_relative_to(PROJECT_ROOT) else str(path)
