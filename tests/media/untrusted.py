"""Writers of odd but well-formed files."""

import io
import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image


def write_raw_wav(path: Path, channels: int, rate: int, samples: int = 3000, claimed_bytes: int | None = None) -> Path:
    """16-bit PCM with any header values, unchecked. claimed_bytes: size of the data that the header states."""
    data = np.full(samples * channels, 3000, np.int16).tobytes()
    claimed = len(data) if claimed_bytes is None else claimed_bytes
    block = channels * 2
    header = struct.pack(
        "<4sI4s4sIHHIIHH4sI", b"RIFF", 36 + claimed, b"WAVE", b"fmt ", 16, 1, channels, rate,
        rate * block & 0xFFFFFFFF, block & 0xFFFF, 16, b"data", claimed,
    )  # fmt: skip
    path.write_bytes(header + data)
    return path


def write_webp(path: Path, width: int, height: int, durations: list[int]) -> Path:
    """An animated WebP that shows one tiny image in the corner, as often as there are durations (milliseconds)."""
    still = io.BytesIO()
    Image.new("RGB", (2, 2), (200, 30, 30)).save(still, "WEBP")
    image = still.getvalue()[12:]
    frame_head = _int24(0) + _int24(0) + _int24(1) + _int24(1)
    frames = b"".join(_chunk(b"ANMF", frame_head + _int24(duration) + b"\0" + image) for duration in durations)
    canvas = bytes((2, 0, 0, 0)) + _int24(width - 1) + _int24(height - 1)
    body = b"WEBP" + _chunk(b"VP8X", canvas) + _chunk(b"ANIM", bytes(6)) + frames
    path.write_bytes(b"RIFF" + struct.pack("<I", len(body)) + body)
    return path


def write_gaps(path: Path, count: int, gap_seconds: int) -> Path:
    """Packets of 0.1 s of audio at intervals of `gap_seconds`, by their time stamps."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=16000, layout="mono")
        for index in range(count):
            frame = av.AudioFrame.from_ndarray(np.full((1, 1600), 3000, np.int16), "s16", "mono")
            frame.sample_rate, frame.pts, frame.time_base = 16000, index * gap_seconds * 16000, Fraction(1, 16000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def _int24(value: int) -> bytes:
    return value.to_bytes(3, "little")


def _chunk(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)
