"""A frame of an untrusted video or image, decoded in a child process with limits."""

from contextlib import closing
from fractions import Fraction
from pathlib import Path

import numpy as np

from latentsync.media.probe import probe_video
from latentsync.media.timeline import Part, open_timeline
from latentsync.utils.errors import UserError
from latentsync.utils.sandbox import call_limited


def first_frame(path: Path, second: float = 0.0) -> np.ndarray:
    """(H, W, 3) uint8 RGB: the frame at `second`. Raises UserError when it cannot be decoded within the limits."""
    height, width, data = call_limited(_decode, path, second)
    return np.frombuffer(data, np.uint8).reshape(height, width, 3)


def _decode(path: Path, second: float) -> tuple[int, int, bytes]:
    part = Part(Fraction(second).limit_denominator(1000))
    with closing(open_timeline(probe_video(path), Fraction(1, 25), Fraction(25), part=part)) as frames:
        frame = next(iter(frames), None)
    if frame is None:
        raise UserError(f"{path}: has no frame that can be decoded")
    pixels = frame.rgb()
    return *pixels.shape[:2], pixels.tobytes()
