"""A quick look for a face, before a model is loaded."""

from contextlib import closing
from fractions import Fraction
from pathlib import Path

from latentsync.faces.detector import is_plausible
from latentsync.faces.factory import create_detector
from latentsync.media.probe import probe_video
from latentsync.media.timeline import available_frames, open_timeline
from latentsync.options import AUTO
from latentsync.utils.errors import UserError

LOOKS_PER_SECOND = Fraction(5)


def require_face(path: Path, detector: str = AUTO, device: str = "cpu") -> None:
    """Look at frames of a video or image until one shows a face; usually that is the first one.

    Raises:
        UserError: none does, or the file cannot be decoded.
    """
    info = probe_video(path)
    count = 1 if info.is_still else available_frames(info, LOOKS_PER_SECOND)
    finder = create_detector(detector, device, static=True)
    with closing(finder), closing(open_timeline(info, count / LOOKS_PER_SECOND, LOOKS_PER_SECOND)) as frames:
        for frame in frames:
            if any(is_plausible(face) for face in finder.detect(frame.rgb())):
                return
    raise UserError(f"{path}: no face was found in any frame; use a video or an image that shows one")
