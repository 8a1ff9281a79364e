"""Thumbnails for lists of jobs."""

from pathlib import Path

import cv2

from latentsync.media.first_frame import first_frame
from latentsync.utils.errors import UserError
from latentsync.utils.files import replaced

SIDE = 320  # pixels, of the longer side
QUALITY = 85


def write_thumbnail(video: Path, path: Path) -> bool:
    """Write a JPEG of a video's first frame, whole or not at all; returns False if the video has no frames."""
    try:
        pixels = first_frame(video)
    except UserError:
        return False
    scale = SIDE / max(pixels.shape[:2])
    size = tuple(max(1, round(side * scale)) for side in pixels.shape[1::-1])
    small = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    encoded = cv2.imencode(".jpg", cv2.cvtColor(small, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1]
    try:
        with replaced(path) as temporary:
            temporary.write_bytes(encoded.tobytes())
    except OSError:  # a full disk: the list shows none
        return False
    return True
