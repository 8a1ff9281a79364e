"""Checks of uploads before they are queued, in a child process with limits: headers and packets, nothing is decoded.

The worker, a process of its own, decodes; problems that only show there are errors of the job.
"""

from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path

import av
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.video.stream import VideoStream
from PIL import Image

from latentsync.media.audio import first_audio_stream
from latentsync.media.paths import IMAGE_ERRORS, check_input_path, open_image, open_input
from latentsync.media.probe import first_video_stream
from latentsync.media.webp import read_animated_webp
from latentsync.serving.jobs import JobKind
from latentsync.serving.settings import ServingSettings
from latentsync.utils.errors import UserError
from latentsync.utils.sandbox import call_limited

MAX_GAP_SECONDS = 3600  # a longer jump of the time stamps is a new start, not a gap


def inspect_files(kind: JobKind, files: Mapping[str, tuple[str, Path]], settings: ServingSettings) -> None:
    """Refuse a job whose files do not suit its kind, or are too large.

    files: role -> (name the user gave, where it is). Messages name files as the user did.

    Raises:
        UserError: a role is missing or unknown, or a file is no medium of its role or beyond a limit.
    """
    for role in kind.roles:
        if role not in files:
            raise UserError(f"a {kind.value} job needs {' and '.join(kind.roles)}; {role} is missing")
    for role in files:
        if role not in kind.roles + kind.optional_roles:
            raise UserError(f"a {kind.value} job takes {', '.join(kind.roles + kind.optional_roles)}, not {role}")
    for role, (name, path) in files.items():
        inspect_file(role, name, path, settings)


def inspect_file(role: str, name: str, path: Path, settings: ServingSettings) -> None:
    """Refuse one file, as `inspect_files` does."""
    try:
        size = path.stat().st_size if path.is_file() else 0
        if size > settings.max_upload_bytes:
            raise UserError(f"{path}: has {size} bytes; at most {settings.max_upload_bytes} are accepted")
        call_limited(_inspect, path, role, settings)
    except UserError as error:
        raise UserError(f"{role}: {str(error).replace(str(path), shown(name))}") from error


def shown(name: str) -> str:
    """A user's file name as it appears in a message: one printable line."""
    base = name.replace("\\", "/").rsplit("/", 1)[-1]
    printable = "".join(c if c.isprintable() else "?" for c in base).encode("utf-8", "replace").decode()
    return printable[:100] or "file"


def _inspect(path: Path, role: str, settings: ServingSettings) -> None:
    check_input_path(path, role)
    if role == "mask":
        _check_mask(path, settings)
        return
    if role != "audio" and _is_accepted_image(path, settings):
        return
    with open_input(path, role) as container:
        if role == "audio":
            _check_length(container, first_audio_stream(container, path), path, settings.max_audio_seconds)
            return
        stream = first_video_stream(container, path)
        _check_pixels(path, stream.codec_context.width, stream.codec_context.height, settings.max_pixels)
        _check_length(container, stream, path, settings.max_video_seconds)


def _is_accepted_image(path: Path, settings: ServingSettings) -> bool:
    """Whether there is nothing left to check. Images come first: libav would decode one to know its size."""
    animation = read_animated_webp(path)
    if animation is not None:
        _check_pixels(path, animation.width, animation.height, settings.max_pixels)
        _check_seconds(path, Fraction(sum(animation.durations), 1000), settings.max_video_seconds)
        return True
    if (size := _image_size(path, settings)) is not None:
        _check_pixels(path, *size, settings.max_pixels)
    return False


def _check_mask(path: Path, settings: ServingSettings) -> None:
    size = _image_size(path, settings)
    if size is None:
        raise UserError(f"{path}: not an image file that can be read")
    _check_pixels(path, *size, settings.max_pixels)


def _image_size(path: Path, settings: ServingSettings) -> tuple[int, int] | None:
    """(width, height) of an image that Pillow knows; None for anything else, most likely a video."""
    try:
        with open_image(path) as image:
            return image.size
    except Image.DecompressionBombError as error:
        raise UserError(f"{path}: has far more than the accepted {settings.max_pixels} pixels") from error
    except IMAGE_ERRORS:
        return None


def _check_pixels(path: Path, width: int, height: int, most: int) -> None:
    if width * height > most:
        raise UserError(f"{path}: is {width}x{height} pixels; at most {most} are accepted, so make it smaller")


def _check_seconds(path: Path, seconds: Fraction | float, most: float) -> None:
    if seconds > most:
        raise UserError(f"{path}: lasts {float(seconds):.0f} s; at most {most:.0f} s are accepted")


def _check_length(container: InputContainer, stream: AudioStream | VideoStream, path: Path, most: float) -> None:
    """Believe a header that says too long, but not one that says short: count the packets of the stream."""
    lengths = [other.duration * other.time_base for other in container.streams if other.duration]
    if container.duration:
        lengths.append(Fraction(container.duration, av.time_base))
    _check_seconds(path, max(lengths, default=Fraction(0)), most)
    gap = MAX_GAP_SECONDS / stream.time_base
    position, origin = 0, None  # in units of the time base
    try:
        for packet in container.demux(stream):
            if packet.dts is not None:
                origin = packet.dts if origin is None else origin
                stamp = packet.dts - origin
                position = stamp if position < stamp < position + gap else position
            position += packet.duration or 0
            if position * stream.time_base > most:
                _check_seconds(path, position * stream.time_base, most)
    except av.error.FFmpegError:  # damaged from here on; the worker decodes what comes before
        return
