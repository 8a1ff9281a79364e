"""Opening local media files. All untrusted media is opened by `open_input` or `open_image`.

libav and Pillow are restricted to lists of demuxers and image plugins, so that playlists and scripts, which refer to
other files or addresses, are refused before any of their entries is opened.
"""

import os
import stat
import struct
import tempfile
from collections.abc import Iterable
from pathlib import Path

import av
from av.container import InputContainer
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from latentsync.constants import OUTPUT_SUFFIXES
from latentsync.utils.errors import UserError

# Demuxers that read one file and refer to no other. libav checks the list before the demuxer reads the header, and
# passes it on to anything that a demuxer opens itself.
_CONTAINERS = (
    "mov matroska webm avi mpegts mpeg mpegvideo flv asf ogg mxf dv nut ivf obu h263 h264 hevc vvc m4v vc1 mjpeg "
    "yuv4mpegpipe gif apng jpegxl_anim"
)
_AUDIO = "wav w64 aiff au caf mp3 aac loas flac ac3 eac3 dts truehd mlp amr ape wv tta tak mpc mpc8 voc dsf iff"
_IMAGES = (
    "png_pipe jpeg_pipe bmp_pipe tiff_pipe webp_pipe gif_pipe ppm_pipe pgm_pipe pbm_pipe pam_pipe jpegls_pipe "
    "j2k_pipe jpegxl_pipe qoi_pipe sgi_pipe dpx_pipe exr_pipe hdr_pipe psd_pipe"
)
ACCEPTED_DEMUXERS = tuple(f"{_CONTAINERS} {_AUDIO} {_IMAGES}".split())
_CONTAINER_OPTIONS = {"format_whitelist": ",".join(ACCEPTED_DEMUXERS), "protocol_whitelist": "file"}
_OPEN_ERRORS = (av.error.FFmpegError, OSError, ValueError, MemoryError)
_OPEN_SECONDS = 60.0  # time limit of opening a file

_IMAGE_PLUGINS = (
    PngImagePlugin.PngImageFile, JpegImagePlugin.JpegImageFile, WebPImagePlugin.WebPImageFile,
    GifImagePlugin.GifImageFile, BmpImagePlugin.BmpImageFile, TiffImagePlugin.TiffImageFile,
    AvifImagePlugin.AvifImageFile,
)  # fmt: skip
_IMAGE_FORMATS = tuple(plugin.format for plugin in _IMAGE_PLUGINS if plugin.format in Image.OPEN)
# Pillow raises these for files that are damaged or not images of these formats.
IMAGE_ERRORS = (
    OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, EOFError, struct.error,
    RuntimeError, Image.DecompressionBombError,
)  # fmt: skip
# Characters that the image demuxer takes for a numbered sequence or a wildcard; such files are passed opened.
_PATTERN_CHARACTERS = frozenset("%*?[]{}")


def check_input_path(path: str | os.PathLike, kind: str = "video") -> Path:
    """Check that `path` is a readable, non-empty regular file, and return it as a Path.

    `kind` ("video", "audio") is used in messages. Raises UserError otherwise.
    """
    name = os.fspath(path)
    if not name or "\0" in name:
        raise UserError(f"{name!r}: not a file name; give the path of the {kind} file")
    try:
        status = os.stat(name)
    except FileNotFoundError:
        raise UserError(f"{name}: no such {kind} file") from None
    except OSError as error:
        raise UserError(f"{name}: the {kind} file cannot be reached ({error.strerror})") from error
    if stat.S_ISDIR(status.st_mode):
        raise UserError(f"{name}: this is a folder; give {_an(kind)} file")
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{name}: not a regular file; give {_an(kind)} file")
    if status.st_size == 0:
        raise UserError(f"{name}: the {kind} file is empty (0 bytes)")
    if not os.access(name, os.R_OK):
        raise UserError(f"{name}: no permission to read the {kind} file")
    return Path(name)


def file_url(path: str | os.PathLike) -> str:
    """The libav URL of a local file; a name with `concat:`, `http:` or a leading dash has no special meaning in it."""
    return "file:" + os.path.abspath(os.fspath(path))


def open_input(path: str | os.PathLike, kind: str = "video") -> InputContainer:
    """Open a local media file for reading; the caller closes it.

    Only the file itself is read, no other file and no URL. Raises UserError as `check_input_path` does, and for a file
    of a format that is not accepted.
    """
    path = check_input_path(path, kind)
    by_name = not _PATTERN_CHARACTERS & set(path.name) and _is_utf8(path)
    try:
        return _open(file_url(path) if by_name else _OpenedFile(path))
    except av.error.ArgumentError:  # not on the list, perhaps only by its suffix: decide by the content
        try:
            return _open(_OpenedFile(path, keep_suffix=False))
        except _OPEN_ERRORS as error:
            raise UserError(
                f"{path}: not {_an(kind)} file that can be read; it may be truncated, or of a type that is not "
                "accepted (playlists and scripts are not)"
            ) from error
    except _OPEN_ERRORS as error:
        raise UserError(
            f"{path}: not {_an(kind)} file that can be read ({_reason(error)}); it may be truncated or of another type"
        ) from error


def open_image(path: str | os.PathLike) -> Image.Image:
    """Open a local image with Pillow and read its header; the caller closes it. Raises IMAGE_ERRORS."""
    return Image.open(path, formats=_IMAGE_FORMATS)


def check_output_path(output: str | os.PathLike, inputs: Iterable[str | os.PathLike] = ()) -> Path:
    """Check that a video can be written to `output`, without leaving anything on disk.

    Returns the real path (links resolved). Raises UserError for an extension other than mp4, mov, mkv, a missing or
    unwritable folder, an output that is a folder, or one that is the same file as one of `inputs`.
    """
    name = os.fspath(output)
    if not name or "\0" in name:
        raise UserError(f"{name!r}: not a file name; give the path of the video to write")
    target = Path(os.path.realpath(name))
    accepted = ", ".join(OUTPUT_SUFFIXES)
    if os.path.isdir(target):
        raise UserError(f"{name}: the output is a folder; give a file name ending in one of {accepted}")
    if target.suffix.lower() not in OUTPUT_SUFFIXES:
        raise UserError(f"{name}: cannot write {target.suffix or 'a file without extension'}; use one of {accepted}")
    if not os.path.isdir(target.parent):
        raise UserError(f"{name}: the folder {target.parent} does not exist; create it first")
    if os.path.exists(target) and not os.path.isfile(target):
        raise UserError(f"{name}: the output exists and is not a regular file")
    for source in inputs:
        if os.path.exists(target) and os.path.exists(source) and os.path.samefile(target, source):
            raise UserError(f"{name}: the output is also an input; choose another output name")
    try:
        os.lstat(target)  # the name may be too long, the folder not accessible
    except FileNotFoundError:
        pass
    except OSError as error:
        raise UserError(f"{name}: cannot be written ({error.strerror}); choose another name") from error
    try:
        with tempfile.TemporaryFile(dir=target.parent):
            pass
    except OSError as error:
        raise UserError(f"{name}: cannot write into {target.parent} ({error.strerror})") from error
    return target


def _open(source: "str | _OpenedFile") -> InputContainer:
    # Metadata in a legacy text encoding is no reason to refuse a file.
    return av.open(source, "r", options=_CONTAINER_OPTIONS, metadata_errors="replace", timeout=(_OPEN_SECONDS, None))


class _OpenedFile:
    """A file that libav reads through Python, under a neutral name with the same extension."""

    def __init__(self, path: Path, keep_suffix: bool = True) -> None:
        self._file = path.open("rb")
        suffix = path.suffix if keep_suffix and not _PATTERN_CHARACTERS & set(path.suffix) else ""
        self.name = f"media{suffix}"
        self.read, self.seek, self.tell, self.close = (
            self._file.read, self._file.seek, self._file.tell, self._file.close
        )  # fmt: skip


def _is_utf8(path: Path) -> bool:
    """Whether libav can open the absolute name (names that are not UTF-8 contain surrogates in Python)."""
    try:
        os.path.abspath(path).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _an(kind: str) -> str:
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"


def _reason(error: Exception) -> str:
    return (getattr(error, "strerror", None) or str(error)).strip().rstrip(".").lower()
