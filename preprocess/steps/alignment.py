"""Optional step: clips in which the face is not where an aligned face has it.

Legend: R side of an aligned face in pixels.
"""

from dataclasses import replace

import numpy as np

from latentsync.faces.align import crop_size, template_anchors
from preprocess.clip import Clip
from preprocess.settings import ProcessSettings
from preprocess.tools import Tools

STEP = "alignment"
LOOKS = 5  # frames that are looked at, spread over the clip


def alignment(clip: Clip, settings: ProcessSettings, tools: Tools) -> Clip:
    """Finds the face again in the aligned pictures; drops the clip where it is missing or its anchors are off.

    Figure: `alignment_error`, mean distance of the three anchors from their places, as a share of R; the worst of the
    frames looked at.
    """
    wanted = square_template(clip.faces.shape[1])
    errors = []
    for index in np.linspace(0, clip.num_frames - 1, min(LOOKS, clip.num_frames)).astype(int):
        tools.still_detector.reset()
        found = tools.still_detector.detect(clip.faces[index])
        if not found:
            return clip.dropped(STEP, f"no face in the aligned frame {index}")
        distances = [np.linalg.norm(face.anchors - wanted, axis=-1).mean() for face in found]
        errors.append(min(distances) / clip.faces.shape[1])
    error = round(float(max(errors)), 4)
    clip = replace(clip, figures={**clip.figures, "alignment_error": error})
    if error > settings.max_alignment_error:
        return clip.dropped(
            STEP, f"anchors are {error:.1%} of the side off, {settings.max_alignment_error:.1%} allowed"
        )
    return clip


def square_template(resolution: int) -> np.ndarray:
    """(3, 2) anchors in the square picture: those of the crop, resized as it is."""
    width, height = crop_size(resolution)
    return template_anchors(resolution) * np.array([resolution / width, resolution / height])
