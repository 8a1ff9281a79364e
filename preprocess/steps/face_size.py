"""Optional step: drop faces that are small in the source, since enlarging blurs them."""

from preprocess.clip import Clip
from preprocess.settings import ProcessSettings
from preprocess.tools import Tools

STEP = "face_size"


def face_size(clip: Clip, settings: ProcessSettings, tools: Tools) -> Clip:
    """Drop a clip whose mean face width is below `min_face_size` pixels of the source."""
    width = float(clip.figures["face_size"])
    if width < settings.min_face_size:
        return clip.dropped(STEP, f"face of {width:.0f} pixels, {settings.min_face_size} are needed")
    return clip
