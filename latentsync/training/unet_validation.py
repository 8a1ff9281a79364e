"""Validation of a UNet in training: results for a few videos, and their metrics."""

import logging
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import torch

from latentsync.config.unet import UNetFileConfig
from latentsync.models.unet import UNet3DConditionModel
from latentsync.pipelines.lipsync_pipeline import LipsyncPipeline
from latentsync.training.task import Share
from latentsync.training.unet_setup import FrozenComponents
from latentsync.utils.errors import UserError

logger = logging.getLogger(__name__)


class ValidationVideo(Protocol):
    """A validation video, the audio that drives it, and the metrics by name; `eval.validation` has them."""

    video: Path
    audio: Path

    def result_metrics(self, pipeline: LipsyncPipeline, result: Path) -> Mapping[str, float]:
        """Of the lip-synced video."""
        ...

    def reconstruction_metrics(self, pipeline: LipsyncPipeline) -> Mapping[str, float]:
        """Of the video's own mouth, reconstructed by the pipeline."""
        ...


@dataclass(frozen=True)
class UNetValidation:
    """The validation videos of a run, and the components that are not trained."""

    config: UNetFileConfig
    components: FrozenComponents
    videos: Sequence[ValidationVideo]

    def measure(self, unet: UNet3DConditionModel, step: int, folder: Path, share: Share) -> dict[str, list[float]]:
        """Values by name of a share of the videos; the lip-synced ones are written to `folder`."""
        if not self.videos:
            return {}
        config, run = self.config, self.config.run
        pipeline = LipsyncPipeline(
            self.components.codec,
            self.components.audio,
            unet,
            deepcopy(self.components.scheduler),
            config.data.resolution,
            num_inference_steps=run.inference_steps,
            guidance_scale=run.guidance_scale,
            one_step=run.one_step,
            few_steps=run.few_steps,
        )
        several = len(self.videos) > 1
        work: list[Callable[[], Mapping[str, float]]] = []
        for number, each in enumerate(self.videos, start=1):
            name = f"step_{step}_{number}.mp4" if several else f"step_{step}.mp4"
            work.append(partial(self._lip_sync, pipeline, each, folder / name))
        work += [partial(each.reconstruction_metrics, pipeline) for each in self.videos]
        values: dict[str, list[float]] = {}
        for part in share.of(work):
            try:
                metrics = part()
            except UserError as error:  # early in training there may be no face in the result; training continues
                logger.error("validation at step %d failed: %s", step, error)
                continue
            for name, value in metrics.items():
                values.setdefault(name, []).append(value)
        return values

    def _lip_sync(self, pipeline: LipsyncPipeline, video: ValidationVideo, result: Path) -> Mapping[str, float]:
        pipeline(
            video.video,
            video.audio,
            result,
            num_frames=self.config.data.num_frames,
            video_fps=self.config.data.video_fps,
            generator=torch.Generator().manual_seed(self.config.run.seed),
        )
        return video.result_metrics(pipeline, result)
