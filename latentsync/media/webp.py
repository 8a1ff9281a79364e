"""Animated WebP, which libav cannot decode: size and timing from its chunk headers, frames by Pillow.

Frames are decoded one at a time, so that opening a file with many frames is fast.
"""

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from latentsync.media.paths import IMAGE_ERRORS, open_image
from latentsync.utils.errors import UserError

_RIFF_HEADER = 12  # "RIFF", size, "WEBP"
_ANIMATION_FLAG = 2  # bit 1 of the first byte of the VP8X chunk, which starts such files
_MAX_FRAMES = 1_000_000


@dataclass(frozen=True)
class AnimatedWebp:
    """Canvas size in pixels, and the duration of each frame in milliseconds."""

    width: int
    height: int
    durations: tuple[int, ...]


def read_animated_webp(path: Path) -> AnimatedWebp | None:
    """Size and frame durations of an animated WebP; None for any other file.

    Raises UserError for one without frames.
    """
    with path.open("rb") as file:
        head = file.read(30)
        if head[:4] != b"RIFF" or head[8:16] != b"WEBPVP8X" or len(head) < 30 or not head[20] & _ANIMATION_FLAG:
            return None
        width, height = (int.from_bytes(head[start : start + 3], "little") + 1 for start in (24, 27))
        file.seek(_RIFF_HEADER)
        durations = []
        for duration in _frame_durations(file):
            durations.append(duration)
            if len(durations) > _MAX_FRAMES:
                raise UserError(f"{path}: has more than {_MAX_FRAMES} frames; give a video")
    if not durations:
        raise UserError(f"{path}: the animated image has no frames; it may be truncated")
    return AnimatedWebp(width, height, tuple(durations))


def decode_frames(path: Path, durations: tuple[int, ...]) -> Iterator[np.ndarray]:
    """RGBA frames (H, W, 4) uint8, composed by Pillow, one at a time. Raises UserError at the first damaged one."""
    try:
        with open_image(path) as image:
            for index in range(min(len(durations), getattr(image, "n_frames", 1))):
                image.seek(index)
                yield np.asarray(image.convert("RGBA"))
    except IMAGE_ERRORS as error:
        raise UserError(f"{path}: the animated image cannot be decoded ({error})") from error


def _frame_durations(file: BinaryIO) -> Iterator[int]:
    """Durations in the ANMF chunks from the current position on; a chunk cut short ends the file."""
    end = os.fstat(file.fileno()).st_size
    while len(head := file.read(8)) == 8:
        kind, size = struct.unpack("<4sI", head)
        body = file.tell()
        if body + size > end:
            return
        if kind == b"ANMF":
            fields = file.read(16)
            if len(fields) == 16:
                yield max(1, int.from_bytes(fields[12:15], "little"))
        file.seek(body + size + size % 2)  # chunks are padded to an even length
