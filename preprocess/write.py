"""Step 9: encode a kept clip as MP4, with H.264 video and lossless audio that match to the sample."""

from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import numpy as np
from av.container import OutputContainer

from latentsync.constants import FPS, SAMPLE_RATE
from latentsync.media.convert import plane_samples
from latentsync.media.frame import VideoFrame
from latentsync.media.paths import file_url
from latentsync.media.writer import write_errors
from latentsync.utils.errors import UserError

PRESET = "fast"


class OutputError(UserError):
    """The output cannot be written; the run has to stop."""


output_errors = partial(write_errors, kind=OutputError)


def write_faces(path: Path, faces: np.ndarray, wave: np.ndarray | None, crf: int = 10) -> None:
    """Write aligned faces: uint8 (T, R, R, 3) RGB as 4:4:4 H.264, and float32 (N,) in [-1, 1] at 16 kHz as FLAC.

    Raises OutputError when the file cannot be written.
    """
    with output_errors(path), av.open(file_url(path), "w", format="mp4") as container:
        video = container.add_stream("libx264", rate=FPS, options={"crf": str(crf), "preset": PRESET})
        video.width, video.height, video.pix_fmt = faces.shape[2], faces.shape[1], "yuv444p"
        audio = _add_audio(container) if wave is not None else None
        for face in faces:
            container.mux(video.encode(av.VideoFrame.from_ndarray(face, format="rgb24")))
        container.mux(video.encode(None))
        if audio is not None and wave is not None:
            _write_audio(container, audio, wave)


class FrameWriter:
    """Writes whole frames one by one, for clips without the face step. Raises OutputError; then remove the file."""

    def __init__(self, path: Path, aspect_ratio: Fraction, crf: int, has_audio: bool = True) -> None:
        self._path = path
        self._has_audio = has_audio
        self._aspect_ratio = aspect_ratio
        self._crf = crf
        self._count = 0

    def __enter__(self) -> "FrameWriter":
        with output_errors(self._path):
            self._container = av.open(file_url(self._path), "w", format="mp4")
            self._video = self._container.add_stream(
                "libx264", rate=FPS, options={"crf": str(self._crf), "preset": PRESET}
            )
            self._audio = _add_audio(self._container) if self._has_audio else None
        return self

    def __exit__(self, *exc_info: object) -> None:
        with output_errors(self._path):
            self._container.close()

    def write(self, frame: VideoFrame) -> None:
        """Encode the next frame without color conversion."""
        codec = self._video.codec_context
        if not self._count:
            codec.width, codec.height, codec.pix_fmt = frame.width, frame.height, "yuv420p"
            codec.sample_aspect_ratio = self._aspect_ratio
            color = frame.color
            codec.color_range, codec.colorspace = color.range, color.matrix
            codec.color_primaries, codec.color_trc = color.primaries, color.transfer
        encoded = av.VideoFrame(frame.width, frame.height, "yuv420p")
        for plane, samples in zip(encoded.planes, frame.planes, strict=True):
            plane_samples(plane)[:] = samples
        encoded.pts, encoded.time_base = self._count, Fraction(1, FPS)
        encoded.color_range, encoded.colorspace = frame.color.range, frame.color.matrix
        with output_errors(self._path):
            self._container.mux(self._video.encode(encoded))
        self._count += 1

    def finish(self, wave: np.ndarray) -> None:
        """Finish the video and add the audio, float32 (N,) at 16 kHz, if there is any."""
        with output_errors(self._path):
            self._container.mux(self._video.encode(None))
            if self._audio is not None:
                _write_audio(self._container, self._audio, wave)


def _add_audio(container: OutputContainer) -> av.AudioStream:
    return container.add_stream("flac", rate=SAMPLE_RATE, layout="mono")


def _write_audio(container: OutputContainer, stream: av.AudioStream, wave: np.ndarray) -> None:
    """Encode float samples as 16 bits; samples that were int16 / 32768 are restored exactly."""
    samples = np.clip(np.round(wave * 32768.0), -32768, 32767).astype(np.int16)[None]
    frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
    frame.sample_rate, frame.pts, frame.time_base = SAMPLE_RATE, 0, Fraction(1, SAMPLE_RATE)
    container.mux(stream.encode(frame))
    container.mux(stream.encode(None))
