"""Reading processed clips: aligned square faces at 25 frames/s with audio, one file each.

Legend: F frames read, H W pixels, R side of a face in pixels.
"""

import logging
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path, PurePath
from typing import Self, TypeVar

import numpy as np
import torch
from torch import Tensor

from latentsync.constants import FPS
from latentsync.data.locations import Location, as_location, joined, local_file
from latentsync.data.table import Table
from latentsync.media.paths import open_input
from latentsync.media.probe import first_video_stream, frame_rate
from latentsync.utils.errors import UserError
from latentsync.utils.files import file_sha256

logger = logging.getLogger(__name__)

FPS_TOLERANCE = 0.01  # frames/s
EXAMINING_THREADS = 8
PROCESS_IT = "process it with `python -m preprocess.data_processing_pipeline`"
C = TypeVar("C", bound="Clip")


@dataclass(frozen=True)
class Clip:
    """A clip: where it is, the person shown (for balancing), and its header, which `read_headers` fills in.

    path: the file, an fsspec address, or a tar shard with the clip in the `size` bytes from `offset` on.
    num_frames: its length; 0 in a list whose headers were not read, and for an unreadable clip.
    digest: SHA-256 of its content, which caches go by; empty if it was not computed.
    """

    path: Location
    person: str
    num_frames: int = 0
    _: KW_ONLY
    width: int = 0
    height: int = 0
    fps: float = 0.0
    has_audio: bool = False
    digest: str = ""
    offset: int = 0
    size: int = 0

    @property
    def name(self) -> str:
        """Identifies the clip in messages."""
        return f"{self.path}@{self.offset}" if self.size else str(self.path)

    @property
    def content_digest(self) -> str:
        """SHA-256 of the content. Raises UserError when it has to be computed and the file cannot be read."""
        if self.digest:
            return self.digest
        with self.local() as path:
            return digest_of(path)

    def local(self) -> AbstractContextManager[Path]:
        """`with clip.local() as path:` gives a local file with the clip. Raises UserError."""
        return local_file(self.path, self.offset, self.size)

    @contextmanager
    def fetched(self) -> Iterator[Self]:
        """The clip in a local file, so that it is fetched once and read several times. Raises UserError."""
        with self.local() as path:
            yield replace(self, path=path, offset=0, size=0)


@dataclass(frozen=True)
class ClipInfo:
    """The header of a clip."""

    num_frames: int
    width: int
    height: int
    fps: float
    has_audio: bool


def read_fileslist(path: str | Path, data_dir: Location | str | None = None) -> list[Clip]:
    """Read a file list in text: one clip a line, optionally a tab and the person's name.

    Relative paths start from `data_dir`, or else from the folder of the list. Without a name the clip's folder is
    used as the person.

    Raises:
        UserError: the list does not exist, is not text, or is empty.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file list; write one with `python -m tools.write_fileslist`")
    root = as_location(data_dir) if data_dir else path.parent
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a text file in UTF-8; give a list of clips, one a line") from error
    clips = []
    for line in lines:
        if not line.strip():
            continue
        name, _, person = line.partition("\t")
        clip = joined(root, name.strip())
        clips.append(Clip(clip, person.strip() or PurePath(clip).parent.name))
    if not clips:
        raise UserError(f"{path}: the file list is empty")
    return clips


def probe_clip(path: str | Path) -> ClipInfo:
    """Read the header of a clip, in about a millisecond. Raises UserError when it is not a readable video."""
    with open_input(path) as container:
        stream = first_video_stream(container, Path(path))
        fps = frame_rate(stream)
        frames = stream.frames or int((stream.duration or 0) * (stream.time_base or 0) * fps)
        if not frames:  # no index: count the packets
            frames = sum(packet.size > 0 for packet in container.demux(stream))
        codec = stream.codec_context
        return ClipInfo(frames, codec.width, codec.height, float(fps), bool(container.streams.audio))


def read_headers(clips: Sequence[Clip], *, with_digest: bool = False) -> list[Clip]:
    """Open every clip that has no header yet and fill it in, and the digest if asked for; in the same order.

    Raises:
        UserError: a clip does not exist.
    """
    missing = [clip.name for clip in clips if isinstance(clip.path, Path) and not clip.path.is_file()]
    if missing:
        raise missing_clips(missing, f"{_of(missing, clips)} clips of the list")
    with ThreadPoolExecutor(EXAMINING_THREADS) as pool:
        return list(pool.map(lambda clip: _with_header(clip, with_digest), clips))


def examine_clips(
    clips: Sequence[Clip], *, min_frames: int, fps: float = FPS, resolution: int | None = None, audio: bool = True
) -> Sequence[Clip]:
    """Check headers before training starts; returns the usable clips in the same order.

    Headers are read from the files, unless the clips are a `Table`, which has them. Unreadable clips and those shorter
    than `min_frames` are left out; a warning counts them and names some.

    Args:
        clips: of a file list.
        min_frames: minimum length.
        fps: frame rate that every clip must have.
        resolution: side in pixels that every clip must have; None takes any.
        audio: whether every clip must have an audio stream.

    Raises:
        UserError: a clip does not exist, has the wrong frame rate or size, or has no audio; or none is left.
    """
    if not len(clips):
        raise UserError("none of the 0 clips can be used: give a file list that is not empty")
    clips = clips if isinstance(clips, Table) else read_headers(clips)
    length = column(clips, "num_frames")
    _warn_left_out(select(clips, length == 0), "cannot be read")
    wrong = abs(column(clips, "fps") - fps) > FPS_TOLERANCE
    if resolution is not None:
        wrong |= (column(clips, "width") != resolution) | (column(clips, "height") != resolution)
    if audio:
        wrong |= ~column(clips, "has_audio")
    wrong &= length > 0
    if wrong.any():
        first = select(clips, wrong)[0]
        count = f"{wrong.sum()} of {len(clips)}"
        raise UserError(f"{_complaint(first, fps, resolution, audio)} ({count} clips of the list cannot be used)")
    _warn_left_out(select(clips, (length > 0) & (length < min_frames)), f"are shorter than {min_frames} frames")
    if not (length >= min_frames).any():
        raise UserError(
            f"none of the {len(clips)} clips can be used: they are unreadable, or shorter than {min_frames} frames; "
            "give longer clips"
        )
    return select(clips, length >= min_frames)


def column(clips: Sequence[Clip], name: str) -> np.ndarray:
    """(len(clips),) values of a field that holds numbers."""
    return clips.column(name) if isinstance(clips, Table) else np.array([getattr(clip, name) for clip in clips])


def select(clips: Sequence[C], chosen: np.ndarray) -> Sequence[C]:
    """The clips where `chosen`, (len(clips),) bool."""
    if chosen.all():
        return clips
    return clips.select(chosen) if isinstance(clips, Table) else [clips[int(index)] for index in np.flatnonzero(chosen)]


def drop_short_clips(clips: Sequence[C], min_frames: int) -> Sequence[C]:
    """Clips of at least `min_frames` frames; a warning counts the others. Raises UserError when none is left."""
    length = column(clips, "num_frames")
    if not (length >= min_frames).any():
        raise UserError(f"none of the {len(clips)} clips is long enough: {min_frames} frames are needed")
    _warn_left_out(select(clips, length < min_frames), f"are shorter than {min_frames} frames")
    return select(clips, length >= min_frames)


def read_frames(
    path: str | Path,
    indices: np.ndarray | None = None,
    *,
    resolution: int | None = None,
    fps: float | None = None,
) -> np.ndarray:
    """Frames of a clip as uint8 RGB (F, H, W, 3); all of them, or those at `indices`, in that order.

    Raises:
        UserError: the clip cannot be decoded or has no frame at an index, or its size is not `resolution` x
            `resolution` or its rate not `fps`, where these are given.
    """
    import decord  # of the extra `train`; other users of this module need no frames

    try:
        open_input(path).close()  # decord has no allow-list of formats of its own
        reader = decord.VideoReader(str(path), num_threads=1)
        rate = reader.get_avg_fps()
        wanted = np.arange(len(reader)) if indices is None else indices
        frames = reader.get_batch(wanted).asnumpy()
    except (RuntimeError, decord.DECORDError, OSError, IndexError, UserError) as error:
        raise UserError(f"{path}: cannot be read as a clip; process it again or take it off the list") from error
    if fps is not None:
        _raise_if(wrong_rate(path, rate, fps))
    if resolution is not None:
        _raise_if(wrong_size(path, frames.shape[2], frames.shape[1], resolution))
    return frames


def to_pixel_values(frames: np.ndarray) -> Tensor:
    """uint8 RGB (F, H, W, 3) -> float32 (F, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 127.5 - 1


def wrong_rate(path: str | Path, found: float, wanted: float) -> str:
    """The complaint about a clip with the wrong frame rate; empty when it is right."""
    if abs(found - wanted) <= FPS_TOLERANCE:
        return ""
    return f"{path}: has {found:g} frames/s where data.video_fps is {wanted:g}; {PROCESS_IT}"


def wrong_size(path: str | Path, width: int, height: int, wanted: int) -> str:
    """The complaint about a clip of the wrong size; empty when it is right."""
    if (width, height) == (wanted, wanted):
        return ""
    return (
        f"{path}: is {width}x{height} pixels where data.resolution asks for {wanted}x{wanted}; {PROCESS_IT} "
        f"--resolution {wanted}, or change data.resolution"
    )


def some(names: Sequence[str], limit: int = 3, total: int | None = None) -> str:
    """The first few names, of `total` in all, for a message."""
    beyond = (total or len(names)) - limit
    more = f" and {beyond} more" if beyond > 0 else ""
    return ", ".join(names[:limit]) + more


def digest_of(path: Path) -> str:
    """SHA-256 of a file. Raises UserError when it cannot be read."""
    try:
        return file_sha256(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error


def missing_clips(names: Sequence[str], counted: str) -> UserError:
    """The error for clips that a list names and that do not exist."""
    return UserError(
        f"{some(names)}: {counted} do not exist; write the list again with `python -m tools.write_fileslist`, or set "
        "data.train_data_dir to the folder its paths start from"
    )


def _with_header(clip: Clip, with_digest: bool) -> Clip:
    try:
        if clip.num_frames and (clip.digest or not with_digest):
            return clip
        with clip.local() as path:
            return replace(clip, **vars(probe_clip(path)), digest=digest_of(path) if with_digest else clip.digest)
    except UserError as error:
        logger.debug("%s", error)
        return replace(clip, num_frames=0)


def _complaint(clip: Clip, fps: float, resolution: int | None, audio: bool) -> str:
    """Why a readable clip cannot be used."""
    if audio and not clip.has_audio:
        return f"{clip.name}: has no audio; use clips with the speech of the person shown"
    size = "" if resolution is None else wrong_size(clip.name, clip.width, clip.height, resolution)
    return wrong_rate(clip.name, clip.fps, fps) or size


def _raise_if(complaint: str) -> None:
    if complaint:
        raise UserError(complaint)


def _warn_left_out(clips: Sequence[Clip], why: str) -> None:
    if clips:
        logger.warning(
            "%d clips %s and are left out: %s", len(clips), why, some([clip.name for clip in clips[:3]], 3, len(clips))
        )


def _of(part: Sequence, whole: Sequence) -> str:
    return f"{len(part)} of {len(whole)}"


def compile_pattern(pattern: str) -> re.Pattern:
    """The compiled --person_pattern. Raises UserError when it is not a valid regular expression."""
    try:
        return re.compile(pattern)
    except re.error as error:
        raise UserError(f"--person_pattern {pattern!r} is not a valid regular expression: {error}") from error


def match_person(pattern: re.Pattern, path: PurePath) -> str:
    """The person that a path (relative to its folder) names: group `person`, else the first group, else the match.

    Raises UserError when the pattern does not match.
    """
    match = pattern.search(path.as_posix())
    if match is None:
        raise UserError(f"--person_pattern {pattern.pattern!r} is not found in {path.as_posix()}; give another")
    person = match[0] if not pattern.groups else match["person" if "person" in pattern.groupindex else 1]
    if not (person or "").strip():
        raise UserError(f"--person_pattern {pattern.pattern!r} names nobody in {path.as_posix()}; give another")
    return person.strip()
