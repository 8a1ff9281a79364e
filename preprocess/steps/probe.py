"""Step 1: drop unusable files, judged by their header and first packets."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av

from latentsync.media.audio import first_audio_stream, has_audio
from latentsync.media.paths import open_input
from latentsync.media.probe import VideoInfo, first_picture, first_video_stream, probe_video
from latentsync.utils.errors import UserError
from latentsync.utils.sandbox import call_limited
from preprocess.clip import Figure


class SourceError(UserError):
    """This source cannot be used; the run continues with the others."""


@dataclass(frozen=True)
class Source:
    """A usable source. audio_delay: seconds from its first frame to its first audio sample; None without audio."""

    info: VideoInfo
    audio_track: int
    audio_delay: Fraction | None

    @property
    def has_audio(self) -> bool:
        return self.audio_delay is not None

    @property
    def figures(self) -> dict[str, Figure]:
        info = self.info
        return {
            "fps": round(float(info.fps), 3),
            "width": info.width,
            "height": info.height,
            "source_seconds": round(info.duration or 0.0, 3),
            "rotation": info.rotation,
            "variable_fps": int(info.variable_frame_rate),
            "has_sound": int(self.has_audio),
        }


def probe(path: Path, audio_track: int = 0, keep_silent: bool = False) -> Source:
    """Examine a source in a child process with limits. Raises SourceError unless it is a video with decodable audio.

    keep_silent: accept images, and videos without an audio stream, as well.
    """
    with source_errors():
        return call_limited(_examine, path, audio_track, keep_silent)


def _examine(path: Path, audio_track: int, keep_silent: bool) -> Source:
    info = probe_video(path)
    if info.is_animated_webp or (info.is_still and not keep_silent):
        raise UserError(f"{path}: is an image; give a video, or --keep_silent")
    if keep_silent and (info.is_still or not has_audio(path)):
        return Source(info, audio_track, None)
    return Source(info, audio_track, _first_sample(path, audio_track) - _first_frame(path))


@contextlib.contextmanager
def source_errors() -> Iterator[None]:
    """Turn any UserError into a SourceError."""
    try:
        yield
    except SourceError:
        raise
    except UserError as error:
        raise SourceError(str(error)) from error


def reason(error: UserError, path: Path) -> str:
    """The message on one line, without the file name it starts with."""
    text = str(error).removeprefix(f"{path}: ")
    return " ".join(text.split())


def _first_frame(path: Path) -> Fraction:
    """Timestamp of the first frame; 0 for AVI, which stores none."""
    with open_input(path) as container:
        frame = first_picture(container, first_video_stream(container, path), path)
        if frame.pts is None or frame.time_base is None or container.format.name == "avi":
            return Fraction(0)
        return frame.pts * frame.time_base


def _first_sample(path: Path, track: int) -> Fraction:
    """Timestamp of the first audio sample that can be decoded. Raises UserError if there is none."""
    with open_input(path, "audio") as container:
        stream = first_audio_stream(container, path, track)
        try:
            for packet in container.demux(stream):
                stamp = _stamp_of_first(packet)
                if stamp is not None:
                    return Fraction(0) if container.format.name == "avi" else stamp
        except av.error.FFmpegError as error:
            raise UserError(f"{path}: the audio cannot be read ({error.strerror}); the file is damaged") from error
    raise UserError(f"{path}: the audio has no samples that can be decoded; give a file with audio")


def _stamp_of_first(packet: av.Packet) -> Fraction | None:
    """Timestamp of the first sample in a packet; None for an empty or damaged packet."""
    try:
        frames = packet.decode()
    except MemoryError:
        raise
    except av.error.FFmpegError:  # a damaged packet; a later one may be whole
        return None
    if not frames:
        return None
    pts, time_base = frames[0].pts, frames[0].time_base
    return Fraction(0) if pts is None or time_base is None else pts * time_base
