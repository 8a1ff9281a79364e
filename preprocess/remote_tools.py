"""Networks in actors with a GPU each, for workers that decode, track and encode on CPUs of a Ray cluster.

A worker sends a batch of images, or a whole clip, in one call. Without such actors each worker has its own networks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from latentsync.faces.detector import BatchDetector, Face, FaceDetector
from latentsync.metrics.clip_sync import ClipSync, ClipSyncScorer
from latentsync.metrics.image_quality import QualityMetric
from preprocess.settings import ProcessSettings
from preprocess.tools import Tools

SCORER_FACTS = ("name", "min_frames", "default_threshold", "default_preference")


class Networks:
    """The actor: the networks of the settings, on their device. Detectors with state between frames are not used."""

    def __init__(self, settings: ProcessSettings) -> None:
        self._tools = Tools(settings)

    def batch_size(self) -> int:
        """Images that the detector takes at once; 0 for a detector that must see one clip after another."""
        detector = self._tools.detector
        return detector.batch_size if isinstance(detector, BatchDetector) else 0

    def detect(self, images: Sequence[np.ndarray]) -> list[list[Face]]:
        """Faces of each image (H, W, 3) uint8."""
        detector = self._tools.detector
        assert isinstance(detector, BatchDetector)
        return detector.detect_batch(images)

    def about_scorer(self, second: bool) -> dict[str, Any] | None:
        """The attributes of a sync scorer, see `ClipSyncScorer`; None if there is no second one."""
        scorer = self._scorer(second)
        return None if scorer is None else {name: getattr(scorer, name) for name in SCORER_FACTS}

    def score(self, second: bool, faces: np.ndarray, wave: np.ndarray) -> ClipSync:
        """Sync of aligned faces (T, R, R, 3) uint8 and audio (N,)."""
        scorer = self._scorer(second)
        assert scorer is not None
        return scorer.score_faces(faces, wave)

    def about_quality(self) -> tuple[str, float]:
        """Name and default threshold of the quality metric."""
        return self._tools.quality.name, self._tools.quality.default_threshold

    def quality(self, image: np.ndarray) -> float:
        """Quality of a face (R, R, 3) uint8."""
        return self._tools.quality.compute(image)

    def _scorer(self, second: bool) -> ClipSyncScorer | None:
        return self._tools.second_scorer if second else self._tools.scorer


class RemoteTools(Tools):
    """`Tools` whose networks run in an actor; a detector with state between frames stays in the worker."""

    def __init__(self, settings: ProcessSettings, networks: Any) -> None:
        """networks: the handle of a `Networks` actor."""
        super().__init__(settings)
        self._networks = networks

    @property
    def detector(self) -> FaceDetector:
        if self._detector is None and (size := _call(self._networks.batch_size)):
            self._detector = RemoteDetector(self._networks, size)
        return super().detector

    @property
    def still_detector(self) -> FaceDetector:
        return self.detector if isinstance(self.detector, RemoteDetector) else super().still_detector

    @property
    def scorer(self) -> ClipSyncScorer:
        if self._scorer is None:
            facts = _call(self._networks.about_scorer, False)
            self._scorer = RemoteScorer(self._networks, False, **facts)
        return self._scorer

    @property
    def second_scorer(self) -> ClipSyncScorer | None:
        if self._second_scorer is None and (facts := _call(self._networks.about_scorer, True)):
            self._second_scorer = RemoteScorer(self._networks, True, **facts)
        return self._second_scorer

    @property
    def quality(self) -> QualityMetric:
        if self._quality is None:
            self._quality = RemoteQuality(self._networks, *_call(self._networks.about_quality))
        return self._quality


@dataclass
class RemoteDetector:
    """`latentsync.faces.detector.BatchDetector` in an actor."""

    networks: Any
    batch_size: int

    def detect(self, image: np.ndarray) -> list[Face]:
        return self.detect_batch([image])[0]

    def detect_batch(self, images: Sequence[np.ndarray]) -> list[list[Face]]:
        return _call(self.networks.detect, list(images))

    def reset(self) -> None:
        """No-op: there is no temporal state."""

    def close(self) -> None:
        """The actor belongs to the run."""


@dataclass
class RemoteScorer:
    """`latentsync.metrics.clip_sync.ClipSyncScorer` in an actor, for clips of data processing."""

    networks: Any
    second: bool
    name: str
    min_frames: int
    default_threshold: float
    default_preference: float | None
    files: tuple = ()

    def score_faces(self, faces: np.ndarray, wave: np.ndarray) -> ClipSync:
        return _call(self.networks.score, self.second, faces, wave)

    def score_video(self, path: object, wave: object = None, face: str | None = None) -> list[ClipSync]:
        raise NotImplementedError("data processing scores the faces it has")


@dataclass
class RemoteQuality:
    """`latentsync.metrics.image_quality.QualityMetric` in an actor."""

    networks: Any
    name: str
    default_threshold: float

    def compute(self, image: np.ndarray) -> float:
        return _call(self.networks.quality, image)


def _call(method: Any, *arguments: Any) -> Any:
    """Call a method of the actor and wait. An error that it raises is raised here."""
    import ray

    return ray.get(method.remote(*arguments))
