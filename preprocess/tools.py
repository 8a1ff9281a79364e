"""Networks of the steps, loaded on first use, once per process."""

from latentsync.data.cache import file_digest
from latentsync.faces.detector import FaceDetector
from latentsync.faces.factory import create_detector
from latentsync.metrics.clip_sync import ClipSyncScorer, open_sync_scorer
from latentsync.metrics.image_quality import QualityMetric, open_quality_metric
from preprocess.settings import ProcessSettings

SECOND_SCORER = "embedded"


class Tools:
    """Detector, sync scorer and quality metric of the settings. Leaving the context closes the detectors."""

    def __init__(self, settings: ProcessSettings) -> None:
        self._settings = settings
        self._detector: FaceDetector | None = None
        self._still_detector: FaceDetector | None = None
        self._scorer: ClipSyncScorer | None = None
        self._second_scorer: ClipSyncScorer | None = None
        self._quality: QualityMetric | None = None

    def __enter__(self) -> "Tools":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the detectors; they are loaded again when needed."""
        for detector in (self._detector, self._still_detector):
            if detector is not None:
                detector.close()
        self._detector = self._still_detector = None

    @property
    def detector(self) -> FaceDetector:
        """For consecutive frames; call `reset()` between clips."""
        if self._detector is None:
            self._detector = create_detector(self._settings.detector, self._settings.device)
        return self._detector

    @property
    def still_detector(self) -> FaceDetector:
        """For unrelated images."""
        if self._still_detector is None:
            self._still_detector = create_detector(self._settings.detector, self._settings.device, static=True)
        return self._still_detector

    @property
    def scorer(self) -> ClipSyncScorer:
        if self._scorer is None:
            self._scorer = open_sync_scorer(self._settings.sync_scorer, self._settings.device)
        return self._scorer

    @property
    def second_scorer(self) -> ClipSyncScorer | None:
        """The shipped SyncNet if another network scores sync; None if it is the only scorer."""
        if self.scorer.name == SECOND_SCORER:
            return None
        if self._second_scorer is None:
            self._second_scorer = open_sync_scorer(SECOND_SCORER, self._settings.device)
        return self._second_scorer

    @property
    def quality(self) -> QualityMetric:
        if self._quality is None:
            self._quality = open_quality_metric(self._settings.quality_measure, self._settings.device)
        return self._quality

    def names(self) -> dict[str, str]:
        """Resolved names of "auto", for the steps that run; for a sync scorer with the digests of its weights."""
        names = {}
        if self._settings.runs("faces"):
            names["detector"] = type(self.detector).__name__
        if self._settings.runs("sync"):
            names["sync_scorer"] = " ".join([self.scorer.name, *map(file_digest, self.scorer.files)])
        if self._settings.runs("quality"):
            names["quality_measure"] = self.quality.name
        return names
