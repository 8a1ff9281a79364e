"""A look at uploads before they are queued: headers alone, no picture and no sound is decoded.

The worker, a process of its own, decodes; what only shows there is an error of the job.
"""

from collections.abc import Mapping
from pathlib import Path

import av
from av.container import InputContainer
from PIL import Image

from latentsync.media.audio import first_audio_stream
from latentsync.media.paths import open_input
from latentsync.media.probe import first_video_stream
from latentsync.serving.jobs import JobKind
from latentsync.serving.settings import ServingSettings
from latentsync.utils.errors import UserError


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
        _inspect(role, path, settings)
    except UserError as error:
        raise UserError(f"{role}: {str(error).replace(str(path), shown(name))}") from error


def shown(name: str) -> str:
    """A user's file name, fit for one line of a message."""
    base = name.replace("\\", "/").rsplit("/", 1)[-1]
    printable = "".join(c if c.isprintable() else "?" for c in base).encode("utf-8", "replace").decode()
    return printable[:100] or "file"


def _inspect(role: str, path: Path, settings: ServingSettings) -> None:
    size = path.stat().st_size if path.is_file() else 0
    if size > settings.max_upload_bytes:
        raise UserError(f"{path}: has {size} bytes; at most {settings.max_upload_bytes} are accepted")
    if role != "audio" and not _check_image(path, settings.max_pixels) and role == "mask":
        raise UserError(f"{path}: not an image file that can be read")
    if role == "mask":
        return
    with open_input(path, role) as container:
        if role == "audio":
            first_audio_stream(container, path)
            _check_length(container, path, settings.max_audio_seconds)
            return
        codec = first_video_stream(container, path).codec_context
        _check_pixels(path, codec.width, codec.height, settings.max_pixels)
        _check_length(container, path, settings.max_video_seconds)


def _check_image(path: Path, most: int) -> bool:
    """Whether the file is an image; libav would decode one to know its size. Raises UserError for a large one."""
    try:
        with Image.open(path) as image:
            size = image.size
    except Image.DecompressionBombError as error:
        raise UserError(f"{path}: has far more than the accepted {most} pixels") from error
    except (OSError, SyntaxError, ValueError):  # no image that Pillow can read, so most likely a video
        return False
    _check_pixels(path, *size, most)
    return True


def _check_pixels(path: Path, width: int, height: int, most: int) -> None:
    if width * height > most:
        raise UserError(f"{path}: is {width}x{height} pixels; at most {most} are accepted, so make it smaller")


def _check_length(container: InputContainer, path: Path, most: float) -> None:
    lengths = [stream.duration * stream.time_base for stream in container.streams if stream.duration]
    if container.duration:
        lengths.append(container.duration / av.time_base)
    longest = float(max(lengths, default=0))
    if longest > most:
        raise UserError(f"{path}: lasts {longest:.0f} s; at most {most:.0f} s are accepted")
