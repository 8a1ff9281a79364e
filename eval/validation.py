"""Metrics of a model in training: its validation video, and the mouth it reconstructs with the real one hidden.

The sync scorer is that of the evaluation, not the network of the sync loss: a model that is trained against a SyncNet
scores well with it even where others disagree.

Legend: T frames, N samples, R pixels.
"""

import logging
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np

from eval.clip_metrics import face_metrics
from eval.frames import PairedFaces
from eval.metrics import MetricModels, MetricSettings
from eval.reconstruction import chunks_of, longest_track, regenerate
from eval.summary import SET_DISTANCES
from latentsync.checkpoints.registry import DOWNLOAD_COMMAND
from latentsync.constants import SAMPLE_RATE, SAMPLES_PER_FRAME
from latentsync.media.audio import load_audio
from latentsync.metrics.clip_sync import ClipSyncScorer
from latentsync.options import GenerationOptions
from latentsync.pipelines.lipsync_pipeline import LipsyncPipeline
from latentsync.utils.errors import UserError

logger = logging.getLogger(__name__)
MAX_FRAMES = 64  # of the reconstruction
OF_RESULT = ("leak", "opening", "csim", "sharpness", "boundary", "jitter", "lip_jitter", "flicker")
OF_RECONSTRUCTION = ("psnr_mouth", "ssim_mouth", "lpips_mouth", "mobilenet_mouth")


def validation_models(device: str = "cpu") -> MetricModels:
    """The networks of the metrics of validation videos, loaded on first use."""
    models = MetricModels(MetricSettings(), device)
    models.missing |= dict.fromkeys(SET_DISTANCES, "needs many clips")
    models.missing["lip_score"] = "is not part of validation"
    return models


class Validation:
    """Metrics by name of a validation video; those that cannot be computed are left out and logged.

    `sync_confidence` and `sync_offset` of the published SyncNet if its weights are present, else of the shipped one;
    `OF_RESULT` on the video; `OF_RECONSTRUCTION` on the first frames of the source, driven by its own audio, with
    reference frames from elsewhere in it (`eval.reconstruction`). The last need a source with audio and a face in view
    for twice the length of a chunk.

    Args:
        video, audio: inputs of the results.
        num_frames: frames of a chunk.
        loss_weights: weights of the SyncNet of the sync loss, to warn if it is the scorer as well.
        models: networks of the metrics, which several videos share; see `validation_models`.
    """

    def __init__(
        self,
        video: Path,
        audio: Path,
        num_frames: int,
        loss_weights: Path | None = None,
        models: MetricModels | None = None,
    ) -> None:
        self.video, self.audio, self.num_frames, self.loss_weights = video, audio, num_frames, loss_weights
        self.models = models or validation_models()
        self._source: tuple[np.ndarray, np.ndarray] | None = None

    def result_metrics(self, pipeline: LipsyncPipeline, result: Path) -> dict[str, float]:
        """Sync and `OF_RESULT` of a lip-synced video, at the resolution of the pipeline that made it."""
        self._set_resolution(pipeline)
        wave = load_audio(self.audio, SAMPLE_RATE)
        return {**self._sync(result, wave), **self._result(result, wave)}

    def _set_resolution(self, pipeline: LipsyncPipeline) -> None:
        self.models.settings = replace(self.models.settings, resolution=pipeline.resolution)

    @cached_property
    def _scorer(self) -> ClipSyncScorer:
        scorer = self.models.sync
        logger.info("validation: sync is scored by %s", scorer.name)
        if self.loss_weights is not None and self.loss_weights.resolve() in {path.resolve() for path in scorer.files}:
            logger.warning(
                "validation: the network that scores sync is also the sync loss, so its confidence rises in any case; "
                "for an independent one, run `%s auxiliary`",
                DOWNLOAD_COMMAND,
            )
        return scorer

    def _sync(self, result: Path, wave: np.ndarray) -> dict[str, float]:
        try:
            score = self._scorer.score_video(result, wave)[0]
        except UserError as error:
            logger.warning("validation without sync: %s", error)
            return {}
        return {"sync_confidence": score.confidence, "sync_offset": float(score.offset)}

    def _result(self, result: Path, wave: np.ndarray) -> dict[str, float]:
        try:
            faces = PairedFaces(self.video, result, self.models.settings.resolution)
            metrics = face_metrics(faces, wave, self.models, faces.num_frames, compared=False)
        except UserError as error:
            logger.warning("validation without metrics of the video: %s", error)
            return {}
        return {key: metrics.values[key] for key in OF_RESULT if key in metrics.values}

    def reconstruction_metrics(self, pipeline: LipsyncPipeline) -> dict[str, float]:
        """`OF_RECONSTRUCTION` of the source's first frames; {} if it does not have enough."""
        self._set_resolution(pipeline)
        if self._source is None:
            self._source = self._read_source(pipeline.resolution)
        real, wave = self._source
        if not len(real):
            return {}
        made = regenerate(pipeline, real, wave, GenerationOptions(), self.num_frames)
        metrics = face_metrics(chunks_of(made, real), wave, self.models, len(real), compared=True)
        return {key: metrics.values[key] for key in OF_RECONSTRUCTION if key in metrics.values}

    def _read_source(self, resolution: int) -> tuple[np.ndarray, np.ndarray]:
        """Faces (T, R, R, 3) and audio (N,) to reconstruct; none if the source does not have enough."""
        nothing = np.empty((0, resolution, resolution, 3), np.uint8), np.empty(0, np.float32)
        try:
            faces, wave = longest_track(self.video, resolution, MAX_FRAMES)
        except UserError as error:
            logger.info("validation without a reconstruction: %s", error)
            return nothing
        if min(len(faces), len(wave) // SAMPLES_PER_FRAME) < 2 * self.num_frames:
            logger.info(
                "validation without a reconstruction: %s has a face and audio for %d frames, %d are needed",
                *(self.video, min(len(faces), len(wave) // SAMPLES_PER_FRAME), 2 * self.num_frames),
            )
            return nothing
        return faces, wave
