"""Optional step: drop clips whose faces are not aligned."""

from dataclasses import replace

import numpy as np

from latentsync.metrics.faces import alignment_error
from preprocess.clip import Clip
from preprocess.settings import ProcessSettings
from preprocess.tools import Tools

STEP = "alignment"
CHECKED_FRAMES = 5  # spread over the clip


def alignment(clip: Clip, settings: ProcessSettings, tools: Tools) -> Clip:
    """Detect the face again in the aligned frames; drops the clip if it is missing or its anchors are off.

    Figure: `alignment_error`, mean distance of the three anchors from the template as a share of the side; the worst
    of the frames checked.
    """
    errors = []
    for index in np.linspace(0, clip.num_frames - 1, min(CHECKED_FRAMES, clip.num_frames)).astype(int):
        errors.append(alignment_error(clip.kept_faces[index], tools.still_detector))
        if not np.isfinite(errors[-1]):
            return clip.dropped(STEP, f"no face in the aligned frame {index}")
    error = round(float(max(errors)), 4)
    clip = replace(clip, figures={**clip.figures, "alignment_error": error})
    if error > settings.max_alignment_error:
        return clip.dropped(
            STEP, f"anchors are {error:.1%} of the side off, {settings.max_alignment_error:.1%} allowed"
        )
    return clip
