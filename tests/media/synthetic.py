"""Tiny synthetic clips: frames that encode their number, tones, and ways to damage a file."""

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

WIDTH, HEIGHT = 64, 48
_CELL = 16
_BITS = (WIDTH // _CELL) * (HEIGHT // _CELL)


def numbered_rgb(number: int, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """RGB uint8 (H, W, 3) whose upper left 64x48 pixels show `number` in 12 black or white cells of 16x16."""
    image = np.full((height, width, 3), 90, np.uint8)
    for bit in range(_BITS):
        row, column = divmod(bit, WIDTH // _CELL)
        value = 225 if number >> bit & 1 else 25
        image[row * _CELL : (row + 1) * _CELL, column * _CELL : (column + 1) * _CELL] = value
    return image


def read_number(luma: np.ndarray) -> int:
    """The number shown in a luma plane (or gray image) made from `numbered_rgb`."""
    number = 0
    for bit in range(_BITS):
        row, column = divmod(bit, WIDTH // _CELL)
        cell = luma[row * _CELL + 4 : (row + 1) * _CELL - 4, column * _CELL + 4 : (column + 1) * _CELL - 4]
        number |= int(cell.mean() > 128) << bit
    return number


def numbers_of(frames: Iterable) -> list[int]:
    """The numbers shown by VideoFrames."""
    return [read_number(frame.planes[0]) for frame in frames]


def write_clip(
    path: Path,
    count: int = 30,
    *,
    fps: Fraction | int = 25,
    stamps: list[int] | None = None,
    time_base: Fraction | None = None,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    options: dict[str, str] | None = None,
    size: tuple[int, int] = (WIDTH, HEIGHT),
    rotation: int = 0,
    color: dict[str, int] | None = None,
    images: list[np.ndarray] | None = None,
    tone_seconds: float = 0.0,
    container_options: dict[str, str] | None = None,
) -> Path:
    """Write a clip of numbered frames (or of `images`, RGB); `stamps` are time stamps in units of `time_base`."""
    if options is None:
        options = {"crf": "12", "preset": "ultrafast"} if codec == "libx264" else {}
    with av.open(str(path), "w", container_options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=Fraction(fps), options=options)
        stream.width, stream.height = size
        stream.pix_fmt = pix_fmt
        for name, value in (color or {}).items():
            setattr(stream.codec_context, name, value)
        if time_base is not None:
            stream.codec_context.time_base = time_base
        if rotation:
            stream.set_display_rotation(rotation)
        audio = container.add_stream("aac", rate=16000, layout="mono") if tone_seconds else None
        for index in range(count):
            rgb = numbered_rgb(index, *size) if images is None else images[index]
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), "rgb24")
            frame.pts = index if stamps is None else stamps[index]
            frame.time_base = stream.codec_context.time_base or 1 / Fraction(fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if audio is not None:
            write_frames(container, audio, tone(16000, tone_seconds)[None], 16000, "mono")
    return path


def tone(rate: int, seconds: float, frequency: float = 440.0, amplitude: float = 0.5) -> np.ndarray:
    """float32 (samples,) sine."""
    time = np.arange(round(rate * seconds)) / rate
    return (amplitude * np.sin(2 * np.pi * frequency * time)).astype(np.float32)


def click_track(rate: int, seconds: float, at: Iterable[float]) -> np.ndarray:
    """float32 (samples,): short 1 kHz bursts that begin at the given times, silence elsewhere."""
    samples = np.zeros(round(rate * seconds), np.float32)
    burst = tone(rate, 0.02, 1000.0, 0.8)
    for start in at:
        first = round(start * rate)
        length = min(len(burst), len(samples) - first)
        samples[first : first + length] = burst[:length]
    return samples


def write_audio(
    path: Path,
    samples: np.ndarray,
    rate: int = 16000,
    layout: str = "mono",
    codec: str = "pcm_s16le",
    options: dict[str, str] | None = None,
) -> Path:
    """Write float samples (channels, N) or (N,) as an audio file; the container follows from the extension."""
    samples = np.atleast_2d(samples).astype(np.float32)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout=layout, options=options or {})
        write_frames(container, stream, samples, rate, layout)
    return path


def write_frames(container, stream, samples: np.ndarray, rate: int, layout: str) -> None:
    """Encode float32 samples (channels, N) into an open audio stream, and flush it."""
    codec = stream.codec_context
    resampler = av.AudioResampler(format=codec.format, layout=layout, rate=rate, frame_size=codec.frame_size or 1024)
    # Packed: PyAV 18 cannot fill the planes of planar frames with 8 channels.
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples.T).reshape(1, -1), "flt", layout)
    frame.sample_rate = rate
    frame.pts, frame.time_base = 0, Fraction(1, rate)
    for piece in [*resampler.resample(frame), *resampler.resample(None)]:
        container.mux(stream.encode(piece))
    container.mux(stream.encode(None))


def onsets(samples: np.ndarray, rate: int, threshold: float = 0.2) -> list[float]:
    """Times (seconds) at which bursts of a click track begin."""
    loud = np.flatnonzero(np.abs(samples) > threshold)
    if not len(loud):
        return []
    starts = [loud[0], *loud[1:][np.diff(loud) > 0.05 * rate]]
    return [start / rate for start in starts]


def damage(path: Path, fraction: float, length: int = 400, value: int = 0xFF) -> Path:
    """Overwrite `length` bytes at a fraction of the file."""
    data = bytearray(path.read_bytes())
    start = int(len(data) * fraction)
    data[start : start + length] = bytes([value]) * length
    path.write_bytes(bytes(data))
    return path
