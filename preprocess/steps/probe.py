"""Step 1: drop unusable files, judged by their header and first packets."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from latentsync.media.audio_stream import audio_delay, first_audible, has_audio
from latentsync.media.probe import VideoInfo, probe_video
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
    first_audible(path, audio_track)  # raises if no sample can be decoded
    return Source(info, audio_track, audio_delay(path, audio_track))


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
