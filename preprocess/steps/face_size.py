"""Optional step: faces that were small in the source are blurred when they are enlarged; leave them out."""

from preprocess.clip import Clip
from preprocess.settings import ProcessSettings
from preprocess.tools import Tools

STEP = "face_size"


def face_size(clip: Clip, settings: ProcessSettings, tools: Tools) -> Clip:
    """Drops a clip whose face is narrower than `min_face_size` pixels of the source in the mean."""
    if clip.figures["face_size"] < settings.min_face_size:
        return clip.dropped(
            STEP, f"face of {clip.figures['face_size']:.0f} pixels, {settings.min_face_size} are needed"
        )
    return clip
