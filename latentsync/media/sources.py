"""Inputs of a generation: files, file objects, frames in memory, iterators of frames, waveforms.

A video is
- a path, or a binary file object,
- `(frames, fps)`, frames an array or tensor (F, H, W, 3), or (F, 3, H, W), uint8 or float in [0, 1], RGB,
- `(frames, fps)`, frames an iterator of (H, W, 3) arrays or tensors, read on demand.
An audio is
- a path, or a binary file object; of a video, its default audio stream,
- `(waveform, sample_rate)`, waveform (N,) or (C, N), float in [-1, 1] or int16, with one or two channels.
"""

import shutil
import tempfile
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import chain, groupby, repeat
from os import PathLike
from pathlib import Path
from typing import IO, Any, Protocol, TypeGuard, runtime_checkable

import av
import numpy as np

from latentsync.media.frame import VideoFrame
from latentsync.media.probe import VideoInfo, probe_video
from latentsync.media.rgb_frame import RGB_TAGS, RGBFrame
from latentsync.media.timeline import (
    WHOLE,
    Part,
    available_frames,
    frame_count,
    nearest_samples,
    open_timeline,
    pingpong_index,
    within,
)
from latentsync.utils.errors import UserError
from latentsync.utils.rates import exact_rate

VideoInput = str | PathLike | IO[bytes] | tuple[Any, Any]
AudioInput = str | PathLike | IO[bytes] | tuple[Any, Any]
IN_MEMORY = Path("frames")  # in messages, in place of a file name
# Position in a pass of n frames at a step; others: forward and backward in turn.
ORDERS = {"loop": lambda step, n: step % n, "freeze": lambda step, n: min(step, n - 1)}
LAYOUTS = {1: "mono", 2: "stereo"}


class FrameStream(Iterator[VideoFrame], Protocol):
    """An iterator of frames that releases its input when it is closed."""

    def close(self) -> None: ...


@runtime_checkable
class VideoSource(Protocol):
    """A video that can be read at a constant frame rate."""

    @property
    def info(self) -> VideoInfo: ...

    @property
    def part(self) -> Part:
        """The part of the video that is used."""

    def open(self, duration: Fraction, fps: Fraction, on_short: str) -> FrameStream:
        """Exactly ceil(duration * fps) frames, see `open_timeline`."""

    def available(self, fps: Fraction) -> int | None:
        """Number of frames at `fps` in one pass over it; None if that is not known in advance."""


@contextmanager
def open_video(
    video: VideoInput, part: Part = WHOLE, *, ten_bits: bool = False, keep_hdr: bool = False
) -> Iterator[VideoSource]:
    """Open a part of a video; of a file, with its 10-bit samples if `ten_bits`, see `VideoInfo.with_ten_bits`.

    Raises UserError for any other input, or one that cannot be read.
    """
    if isinstance(video, tuple):
        frames, fps = _pair(video, "video", "(frames, fps)")
        yield FrameSource(frames, fps, part)
        return
    with as_file(video, "video") as path:
        info = probe_video(path)
        yield FileSource(info.with_ten_bits(keep_hdr) if ten_bits else info, part)


@contextmanager
def audio_file(audio: AudioInput) -> Iterator[str | PathLike]:
    """The path of an audio file, or of a temporary file with the audio. Raises UserError for any other input."""
    if not isinstance(audio, tuple):
        with as_file(audio, "audio") as path:
            yield path
        return
    waveform, rate = _pair(audio, "audio", "(waveform, sample_rate)")
    with tempfile.TemporaryDirectory(prefix="latentsync-") as folder:
        path = Path(folder) / "waveform.wav"
        _write_wav(path, _channels(waveform), rate)
        yield path


@contextmanager
def as_file(source: str | PathLike | IO[bytes], kind: str) -> Iterator[str | PathLike]:
    """The path itself, or that of a temporary copy of the rest of a file object."""
    if isinstance(source, str | PathLike):
        yield source
        return
    if not hasattr(source, "read"):
        raise UserError(f"{kind}: give a path, a file object or a pair of data and rate, not {type(source).__name__}")
    with tempfile.TemporaryDirectory(prefix="latentsync-") as folder:
        path = Path(folder) / kind
        with path.open("wb") as copy:
            shutil.copyfileobj(source, copy)
        yield path


@dataclass(frozen=True)
class FileSource:
    """A video file."""

    info: VideoInfo
    part: Part = WHOLE

    def open(self, duration: Fraction, fps: Fraction, on_short: str) -> FrameStream:
        return open_timeline(self.info, duration, fps, on_short, self.part)

    def available(self, fps: Fraction) -> int:
        return available_frames(self.info, fps, self.part)


class FrameSource:
    """Frames from an array, which can be played backward, or from an iterator, which cannot."""

    def __init__(self, frames: Any, fps: Any, part: Part = WHOLE) -> None:
        rate = _rate(fps, "fps")
        self._iterator: Iterator[Any] | None = None
        if hasattr(frames, "shape"):
            self._frames = frames
            length: int | None = len(frames) if len(frames.shape) == 4 else 0
            first = frames[0] if length else None
        else:
            self._iterator = iter(frames)
            length, first = None, next(self._iterator, None)
            self._iterator = chain([first], self._iterator)
        if first is None:
            raise UserError("video: there are no frames; give an array (F, H, W, 3) or an iterator of (H, W, 3)")
        frame = RGBFrame(to_rgb(first))
        self.info = _describe(frame, rate, length)
        self.part = WHOLE if self.info.is_still else part

    def available(self, fps: Fraction) -> int | None:
        return None if self._iterator is not None else len(self._picks(fps, None))

    def open(self, duration: Fraction, fps: Fraction, on_short: str) -> FrameStream:
        count = frame_count(duration, fps)
        if self._iterator is not None:
            return self._stream(self._iterator, count, fps, on_short)
        return self._replay(count, fps, on_short)

    def _replay(self, count: int, fps: Fraction, on_short: str) -> Generator[VideoFrame, None, None]:
        """From an array, as often as there are `count` frames."""
        picks = self._picks(fps, count)
        if len(picks) < count and on_short == "error" and not self.info.is_still:
            raise _too_short(len(picks), count, fps, "choose length_mode bounce, loop or freeze")
        position = ORDERS.get(on_short, pingpong_index)
        for shown, steps in groupby(picks[position(step, len(picks))] for step in range(count)):
            frame = RGBFrame(to_rgb(self._frames[shown]))
            yield from (frame for _ in steps)  # the same object, in which faces are not detected again

    def _picks(self, fps: Fraction, count: int | None) -> list[int]:
        """Indices of the frames of an array that one pass shows."""
        stamped = (_Stamped(index, self.info.fps) for index in range(len(self._frames)))
        moved = nearest_samples(within(stamped, self.part, IN_MEMORY), fps, count)
        return [shown.item.index for shown in moved]

    def _stream(
        self, frames: Iterator[Any], count: int, fps: Fraction, on_short: str
    ) -> Generator[VideoFrame, None, None]:
        """From an iterator, one pass."""
        stamped = (_Stamped(index, self.info.fps, frame) for index, frame in enumerate(frames))
        done = 0
        for moved in nearest_samples(within(stamped, self.part, IN_MEMORY), fps, count):
            last, done = moved.item.frame, done + 1
            yield last
        if done < count and on_short != "freeze":
            raise _too_short(done, count, fps, "an iterator cannot be played backward: choose length_mode freeze")
        yield from repeat(last, count - done)


class _Stamped:
    """A frame and its time; converted on first access."""

    def __init__(self, index: int, fps: Fraction, pixels: Any = None) -> None:
        self.index, self.time, self.duration = index, index / fps, 1 / fps
        self._pixels = pixels

    @cached_property
    def frame(self) -> RGBFrame:
        pixels, self._pixels = self._pixels, None
        return RGBFrame(to_rgb(pixels))


def to_rgb(frame: Any) -> np.ndarray:
    """One frame (H, W, 3) or (3, H, W), uint8 or float in [0, 1], array or tensor -> (H, W, 3) uint8.

    Raises UserError for anything else.
    """
    pixels = _as_array(frame)
    if pixels.ndim == 3 and pixels.shape[2] != 3 and pixels.shape[0] == 3:
        pixels = pixels.transpose(1, 2, 0)
    if pixels.ndim != 3 or pixels.shape[2] != 3 or min(pixels.shape) == 0:
        raise UserError(f"video: a frame must be (height, width, 3), not {tuple(pixels.shape)}")
    if np.issubdtype(pixels.dtype, np.floating):
        pixels = np.rint(np.clip(np.nan_to_num(pixels.astype(np.float32)), 0, 1) * 255).astype(np.uint8)
    if pixels.dtype != np.uint8:
        raise UserError(f"video: frames must be uint8, or float from 0 to 1, not {pixels.dtype}")
    return np.ascontiguousarray(pixels)


def _as_array(values: Any) -> np.ndarray:
    """Convert an array, list or tensor on any device to an array; bfloat16, which NumPy lacks, becomes float32."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        values = values.float() if values.is_floating_point() else values
    return np.asarray(values)


def _pair(given: tuple[Any, ...], kind: str, form: str) -> tuple[Any, Any]:
    if len(given) != 2:
        raise UserError(f"{kind}: give {form}, not a tuple of {len(given)}")
    return given


def _rate(value: Any, name: str) -> Fraction:
    try:
        rate = exact_rate(value)
    except (TypeError, ValueError) as error:
        raise UserError(f"{name} must be a number, not {value!r}") from error
    if rate <= 0:
        raise UserError(f"{name} must be above 0, not {value!r}")
    return rate


def _describe(frame: RGBFrame, fps: Fraction, length: int | None) -> VideoInfo:
    return VideoInfo(
        path=IN_MEMORY,
        width=frame.width,
        height=frame.height,
        coded_width=frame.width,
        coded_height=frame.height,
        fps=fps,
        duration=None if length is None else float(length / fps),
        num_frames=length,
        rotation=0,
        orientation=1,
        is_still=length == 1,
        is_animated_webp=False,
        has_alpha=False,
        bit_depth=8,
        variable_frame_rate=False,
        color=RGB_TAGS,
        sample_aspect_ratio=Fraction(1),
    )


def _too_short(available: int, count: int, fps: Fraction, remedy: str) -> UserError:
    seconds = float(available / fps), float(count / fps)
    return UserError(f"{IN_MEMORY}: the video lasts {seconds[0]:.2f} s, the audio {seconds[1]:.2f} s; {remedy}")


def _channels(waveform: Any) -> np.ndarray:
    """(C, N) float32 of a waveform."""
    wave = _as_array(waveform)
    if wave.dtype == np.int16:
        wave = wave / 32768
    if not np.issubdtype(wave.dtype, np.floating):
        raise UserError(f"audio: a waveform must be float from -1 to 1, or int16, not {wave.dtype}")
    wave = np.atleast_2d(wave).astype(np.float32)
    if wave.ndim != 2 or len(wave) not in LAYOUTS:
        raise UserError(
            f"audio: a waveform must be (samples,) or (channels, samples) with 1 or 2 channels, not {wave.shape}"
        )
    return wave


def _write_wav(path: Path, wave: np.ndarray, rate: Any) -> None:
    """Write (C, N) as 32-bit float, a second at a time."""
    sample_rate = int(_rate(rate, "sample_rate"))
    with av.open(str(path), "w", format="wav") as container:
        stream = container.add_stream("pcm_f32le", rate=sample_rate, layout=LAYOUTS[len(wave)])
        for start in range(0, wave.shape[1], sample_rate):
            part = np.ascontiguousarray(wave[:, start : start + sample_rate].T).reshape(1, -1)
            frame = av.AudioFrame.from_ndarray(part, format="flt", layout=LAYOUTS[len(wave)])
            frame.sample_rate, frame.pts = sample_rate, start
            frame.time_base = Fraction(1, sample_rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def is_path(source: object) -> TypeGuard[str | PathLike[str]]:
    return isinstance(source, str | PathLike)
