"""Checks of uploads before they are queued: headers and packets are read in a child process with limits.

Nothing is decoded; problems that only decoding reveals become errors of the job.
"""

from collections.abc import Mapping
from dataclasses import replace
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
from latentsync.media.stamps import MAX_GAP_SECONDS
from latentsync.media.webp import read_animated_webp
from latentsync.options import GenerationOptions
from latentsync.pipelines.script import Cue, read_script
from latentsync.pretrained.text_to_speech import VOICE_SUFFIX
from latentsync.serving.jobs import AUDIO_ROLES, JobKind
from latentsync.serving.settings import ServingSettings
from latentsync.utils.errors import UserError
from latentsync.utils.sandbox import call_limited

MAX_SCRIPT_BYTES = 2**20


def inspect_files(
    kind: JobKind, files: Mapping[str, tuple[str, Path]], options: GenerationOptions, settings: ServingSettings
) -> None:
    """Reject a job whose files do not suit its kind or exceed a limit.

    files: role -> (original name, path). Messages use the original names.

    Raises:
        UserError: a role is missing or unknown, or a file is of the wrong type or exceeds a limit.
    """
    needed, accepted = kind.needed_roles(options, files), kind.accepted_roles(options, files)
    for role in needed:
        if role not in files:
            raise UserError(f"a {kind.value} job needs {' and '.join(needed)}; {role} is missing")
    for role in files:
        if role not in accepted:
            raise UserError(f"a {kind.value} job takes {', '.join(accepted)}, not {role}")
    for role, (name, path) in files.items():
        if role != "script":
            inspect_file(role, name, path, settings)
    if "script" in files:
        job_cues(files)


def job_cues(files: Mapping[str, tuple[str, Path]]) -> list[Cue]:
    """The cues of a job's script, with the roles of the audio files in place of their names.

    Raises:
        UserError: the script is not valid, or names a file that the job does not have.
    """
    name, path = files["script"]
    shown = printable_name(name)
    if path.stat().st_size > MAX_SCRIPT_BYTES:
        raise UserError(f"script: {shown} has more than {MAX_SCRIPT_BYTES} bytes")
    audio = {role: files[role][0] for role in AUDIO_ROLES if role in files}
    try:
        return [_with_role(cue, audio) for cue in read_script(path, shown)]
    except UserError as error:
        raise UserError(f"script: {error}") from error


def _with_role(cue: Cue, audio: Mapping[str, str]) -> Cue:
    """audio: role -> name of the file."""
    if cue.audio is None:
        check_job_voice(cue.voice)
        return cue
    for role, name in audio.items():
        if cue.audio in (role, name, printable_name(name)):
            return replace(cue, audio=role)
    raise UserError(f"{cue.place}: there is no audio {cue.audio[:40]!r} among the files of the job")


def check_job_voice(voice: str | None) -> None:
    """Raise UserError for a voice that is a path: a job may only use voices by name."""
    if voice is not None and ("/" in voice or "\\" in voice or voice.endswith(VOICE_SUFFIX)):
        raise UserError("voice: a job takes no paths; give a language or the name of an installed voice")


def inspect_file(role: str, name: str, path: Path, settings: ServingSettings) -> None:
    """Reject one file, as `inspect_files` does."""
    try:
        size = path.stat().st_size if path.is_file() else 0
        if size > settings.max_upload_bytes:
            raise UserError(f"{path}: has {size} bytes; at most {settings.max_upload_bytes} are accepted")
        call_limited(_inspect, path, role, settings)
    except UserError as error:
        raise UserError(f"{role}: {str(error).replace(str(path), printable_name(name))}") from error


def printable_name(name: str) -> str:
    """A user's file name for messages: one printable line, without folders."""
    base = name.replace("\\", "/").rsplit("/", 1)[-1]
    printable = "".join(c if c.isprintable() else "?" for c in base).encode("utf-8", "replace").decode()
    return printable[:100] or "file"


def _inspect(path: Path, role: str, settings: ServingSettings) -> None:
    check_input_path(path, role)
    if role == "mask":
        _check_mask(path, settings)
        return
    if role not in AUDIO_ROLES and _is_accepted_image(path, settings):
        return
    with open_input(path, role) as container:
        if role in AUDIO_ROLES:
            _check_length(container, first_audio_stream(container, path), path, settings.max_audio_seconds)
            return
        stream = first_video_stream(container, path)
        _check_pixels(path, stream.codec_context.width, stream.codec_context.height, settings.max_pixels)
        _check_length(container, stream, path, settings.max_video_seconds)


def _is_accepted_image(path: Path, settings: ServingSettings) -> bool:
    """Whether the file is an animation that passes. Images come first: libav would decode one to get its size."""
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
    """(width, height) of an image that Pillow can open; None for anything else, most likely a video."""
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
    """Trust a header that states too long a duration, but not a short one: count the packets of the stream."""
    lengths = [other.duration * other.time_base for other in container.streams if other.duration and other.time_base]
    if container.duration:
        lengths.append(Fraction(container.duration, av.time_base))
    _check_seconds(path, max(lengths, default=Fraction(0)), most)
    time_base = stream.time_base
    if time_base is None:
        raise UserError(f"{path}: its timestamps have no unit; convert the file first")
    gap = MAX_GAP_SECONDS / time_base
    position, origin = 0, None  # in units of the time base
    try:
        for packet in container.demux(stream):
            if packet.dts is not None:
                origin = packet.dts if origin is None else origin
                stamp = packet.dts - origin
                position = stamp if position < stamp < position + gap else position
            position += packet.duration or 0
            if position * time_base > most:
                _check_seconds(path, position * time_base, most)
    except av.error.FFmpegError:  # damaged from here on; the worker decodes the part before
        return
