"""Writing the result: encoded once, with its audio, in a file that appears only when it is complete."""

import contextlib
import os
from collections.abc import Iterator
from fractions import Fraction
from types import TracebackType
from typing import Any

import av
import numpy as np

from latentsync.media.audio import audio_source
from latentsync.media.audio_stream import AudioSource
from latentsync.media.audio_track import AudioTrack
from latentsync.media.codecs import DEFAULT_CRF, DEFAULT_PRESET, EIGHT_BIT, PRESETS, TEN_BIT, video_codec
from latentsync.media.color import ColorTags
from latentsync.media.convert import plane_samples
from latentsync.media.deep_frame import DeepFrame
from latentsync.media.frame import VideoFrame, split_planes
from latentsync.media.paths import check_output_path, file_url
from latentsync.utils.cores import codec_threads
from latentsync.utils.errors import UserError
from latentsync.utils.files import HiddenFile


@contextlib.contextmanager
def write_errors(name: str | os.PathLike, kind: type[UserError] = UserError) -> Iterator[None]:
    """Turn errors of the file system and the encoder into a UserError of this kind."""
    try:
        yield
    except UserError:
        raise
    except (av.error.FFmpegError, OSError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise kind(f"{name}: cannot be written ({reason}); free space or choose another place") from error


class VideoWriter:
    """Encodes frames at a constant rate into an mp4, mov or mkv file with the given audio.

    Use it in a `with` block: the file is written under a hidden, unique name in the output's folder and renamed at the
    end; any exception (also Ctrl-C) removes it and keeps an existing output. All frames must have the same size. Not
    for use by several threads at the same time.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        width: int,
        height: int,
        fps: Fraction,
        *,
        color: ColorTags | None = None,
        sample_aspect_ratio: Fraction = Fraction(1),
        codec: str = "h264",
        pixel_format: str = EIGHT_BIT,
        crf: float = DEFAULT_CRF,
        preset: str = DEFAULT_PRESET,
        audio: str | os.PathLike | AudioSource | None = None,
        max_audio_seconds: float | None = None,
    ) -> None:
        """Open the file.

        Args:
            path: .mp4, .mov or .mkv.
            width, height: even, in pixels.
            fps: frame rate.
            color: how the samples are to be read.
            sample_aspect_ratio: of a pixel.
            codec: h264, hevc, prores (.mov and .mkv, always 10 bits) or ffv1 (lossless, .mkv).
            pixel_format: yuv420p or yuv420p10le.
            crf: quality of h264 and hevc, 0 (lossless) to 51.
            preset: their trade-off between speed and size.
            audio: an audio or video file (its default audio stream), or one of its streams.
            max_audio_seconds: where the audio is cut off.

        Raises:
            UserError: the output cannot be written, `codec`, `crf` or `preset` is not valid, or `audio` has no audio
                stream.
        """
        if not 0 <= crf <= 51:
            raise UserError(f"crf {crf}: choose a number from 0 (lossless) to 51 (worst)")
        if preset not in PRESETS:
            raise UserError(f"preset {preset!r}: choose one of {', '.join(PRESETS)}")
        source = None if audio is None else audio_source(audio)
        self._target = check_output_path(path, [] if source is None else [source.path])
        self._name = os.fspath(path)
        self._codec = video_codec(codec, self._target.suffix)
        self._pixel_format = TEN_BIT if EIGHT_BIT not in self._codec.pixel_formats else pixel_format
        self._fps = Fraction(fps)
        self._size = (width, height)
        self._frames = 0
        self._audio: AudioTrack | None = None
        self._container: av.container.OutputContainer | None = None
        with write_errors(self._name):
            self._temporary = HiddenFile(self._target)
        try:
            with write_errors(self._name):
                self._open(color or ColorTags(), sample_aspect_ratio, crf, preset, source, max_audio_seconds)
        except BaseException:
            self.abort()
            raise

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if exc_type is None:
            self.close()
        else:
            self.abort()

    def write(self, frame: VideoFrame) -> None:
        """Encode one frame and write the audio that belongs before its end. A frame may be written repeatedly."""
        if (frame.width, frame.height) != self._size:
            raise ValueError(f"frame of {frame.width}x{frame.height} in a video of {self._size[0]}x{self._size[1]}")
        if self._container is None:
            raise ValueError(f"{self._name}: the file is closed")
        output = self._encoder_frame(frame)
        with write_errors(self._name):
            self._container.mux(self._stream.encode(output))
            self._frames += 1
            if self._audio is not None:
                self._audio.mux_until(self._frames / self._fps)

    def close(self) -> None:
        """Finish the file, with all of the audio, and move it into place. No effect if it is closed."""
        if self._container is None:
            return
        try:
            if not self._frames:
                raise ValueError(f"{self._name}: no frame was written")
            with write_errors(self._name):
                self._container.mux(self._stream.encode(None))
                if self._audio is not None:
                    self._audio.finish()
                self._container.close()
                self._temporary.put_in_place()
        except BaseException:
            self.abort()
            raise
        self._container = None
        if self._audio is not None:
            self._audio.close()

    def abort(self) -> None:
        """Discard the file and keep an existing output. No effect after `close`."""
        container, self._container = self._container, None
        if self._audio is not None:
            self._audio.close()
        try:
            # Closing writes the index, which may fail (disk full); the file is removed anyway.
            with contextlib.suppress(av.error.FFmpegError, OSError):
                if container is not None:
                    container.close()
        finally:
            self._temporary.discard()

    def _open(
        self,
        color: ColorTags,
        aspect_ratio: Fraction,
        crf: float,
        preset: str,
        audio: AudioSource | None,
        max_audio_seconds: float | None,
    ) -> None:
        suffix = self._temporary.path.suffix
        # With the index at the front, the video plays while it is being downloaded.
        container_options = {"movflags": "+faststart"} if suffix in (".mp4", ".mov") else {}
        self._container = av.open(file_url(self._temporary.path), "w", options=container_options)
        options = self._codec.options(crf, preset, self._pixel_format)
        stream: Any = self._container.add_stream(self._codec.name, rate=self._fps, options=options)  # by name: any kind
        self._stream, codec = stream, stream.codec_context
        if self._codec.tag is not None and container_options:
            codec.codec_tag = self._codec.tag
        codec.width, codec.height = self._size
        codec.pix_fmt = self._codec.pixel_formats[self._pixel_format]
        codec.thread_count = codec_threads()
        codec.time_base = 1 / self._fps
        codec.sample_aspect_ratio = aspect_ratio
        self._color = color
        codec.color_range = color.range
        codec.colorspace = color.matrix
        codec.color_primaries = color.primaries
        codec.color_trc = color.transfer
        if audio is not None:
            self._audio = AudioTrack(self._container, suffix, audio, max_audio_seconds)

    def _encoder_frame(self, frame: VideoFrame) -> av.VideoFrame:
        """The next frame for the encoder. Copied, because PyAV wraps I420 arrays wrongly for heights such as 270."""
        output = av.VideoFrame(frame.width, frame.height, self._pixel_format)
        if self._pixel_format == TEN_BIT:
            for plane, deep in zip(output.planes, self._deep_planes(frame), strict=True):
                plane_samples(plane, np.uint16)[:] = deep
        else:
            for plane, samples in zip(output.planes, frame.planes, strict=True):
                plane_samples(plane)[:] = samples
        if self._codec.pixel_formats[self._pixel_format] != self._pixel_format:
            output = output.reformat(format=self._codec.pixel_formats[self._pixel_format])
        output.pts = self._frames
        output.time_base = 1 / self._fps
        output.color_range = self._color.range
        output.colorspace = self._color.matrix
        output.color_primaries = self._color.primaries
        output.color_trc = self._color.transfer
        return output

    def _deep_planes(self, frame: VideoFrame) -> list[np.ndarray]:
        """10-bit planes (Y, U, V) of a frame; 8-bit samples are scaled."""
        if isinstance(frame, DeepFrame):
            return list(split_planes(frame.samples))
        y, u, v = (plane.astype(np.uint16) for plane in frame.planes)
        return [y * 1023 // 255 if self._color.is_full_range else y * 4, u * 4, v * 4]
