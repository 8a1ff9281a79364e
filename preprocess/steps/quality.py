"""Step 7: drop blurred, noisy or badly compressed clips."""

from dataclasses import replace

import numpy as np

from preprocess.clip import Clip
from preprocess.settings import ProcessSettings
from preprocess.tools import Tools

STEP = "quality"


def quality(clip: Clip, settings: ProcessSettings, tools: Tools) -> Clip:
    """Mean of the first, the middle and the last frame. Figures: `quality`, `quality_measure`."""
    metric = tools.quality
    frames = clip.kept_faces[[0, clip.num_frames // 2, clip.num_frames - 1]]
    value = float(np.mean([metric.compute(frame) for frame in frames]))
    clip = replace(clip, figures={**clip.figures, "quality": round(value, 3), "quality_measure": metric.name})
    needed = metric.default_threshold if settings.min_quality is None else settings.min_quality
    if value < needed:
        return clip.dropped(STEP, f"{metric.name} {value:.1f}, {needed:g} is needed")
    return clip
