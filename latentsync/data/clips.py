"""Reading processed clips: aligned square faces at 25 frames/s with audio, one file each.

Legend: F frames read, H W pixels, R side of a face in pixels.
"""

import logging
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path, PurePath

import decord
import numpy as np
import torch
from torch import Tensor

from latentsync.constants import FPS
from latentsync.media.paths import open_input
from latentsync.media.probe import first_video_stream, frame_rate
from latentsync.utils.errors import UserError

logger = logging.getLogger(__name__)

FPS_TOLERANCE = 0.01  # frames/s
EXAMINING_THREADS = 8
PROCESS_IT = "process it with `python -m preprocess.data_processing_pipeline`"


@dataclass(frozen=True)
class Clip:
    """One line of a file list: the clip's path and the person shown (for balancing).

    num_frames: its length, set by `examine_clips`.
    """

    path: Path
    person: str
    num_frames: int = 0


@dataclass(frozen=True)
class ClipInfo:
    """The header of a clip."""

    num_frames: int
    width: int
    height: int
    fps: float
    has_audio: bool


def read_fileslist(path: str | Path, data_dir: str | Path | None = None) -> list[Clip]:
    """Read a file list: one clip a line, optionally a tab and the person's name.

    Relative paths start from `data_dir`, or else from the folder of the list. Without a name the clip's folder is
    used as the person.

    Raises:
        UserError: the list does not exist, is not text, or is empty.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file list; write one with `python -m tools.write_fileslist`")
    root = Path(data_dir) if data_dir else path.parent
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a text file in UTF-8; give a list of clips, one a line") from error
    clips = []
    for line in lines:
        if not line.strip():
            continue
        name, _, person = line.partition("\t")
        clip = root / name.strip()
        clips.append(Clip(clip, person.strip() or clip.parent.name))
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


def examine_clips(
    clips: Sequence[Clip], *, min_frames: int, fps: float = FPS, resolution: int | None = None, audio: bool = True
) -> list[Clip]:
    """Read every clip's header before training starts; returns usable clips, `num_frames` set, in the same order.

    Unreadable clips and those shorter than `min_frames` are left out; a warning counts them and names some.

    Args:
        clips: of a file list.
        min_frames: minimum length.
        fps: frame rate that every clip must have.
        resolution: side in pixels that every clip must have; None takes any.
        audio: whether every clip must have an audio stream.

    Raises:
        UserError: a clip does not exist, has the wrong frame rate or size, or has no audio; or none is left.
    """
    missing = [str(clip.path) for clip in clips if not clip.path.is_file()]
    if missing:
        raise UserError(
            f"{some(missing)}: {_of(missing, clips)} clips of the list do not exist; write the list again with "
            "`python -m tools.write_fileslist`, or set data.train_data_dir to the folder its paths start from"
        )
    with ThreadPoolExecutor(EXAMINING_THREADS) as pool:
        infos = list(pool.map(_probe_or_none, clips))
    pairs = [(clip, info) for clip, info in zip(clips, infos, strict=True) if info is not None]
    _warn_left_out([clip for clip, info in zip(clips, infos, strict=True) if info is None], "cannot be read")
    wrong = [complaint for clip, info in pairs if (complaint := _complaint(clip, info, fps, resolution, audio))]
    if wrong:
        raise UserError(f"{wrong[0]} ({_of(wrong, clips)} clips of the list cannot be used)")
    _warn_left_out(
        [clip for clip, info in pairs if info.num_frames < min_frames], f"are shorter than {min_frames} frames"
    )
    kept = [replace(clip, num_frames=info.num_frames) for clip, info in pairs if info.num_frames >= min_frames]
    if not kept:
        raise UserError(
            f"none of the {len(clips)} clips can be used: they are unreadable, or shorter than {min_frames} frames; "
            "give longer clips"
        )
    return kept


def drop_short_clips(clips: Sequence[Clip], min_frames: int) -> list[Clip]:
    """Clips of at least `min_frames` frames; a warning counts the others. Raises UserError when none is left."""
    kept = [clip for clip in clips if clip.num_frames >= min_frames]
    if not kept:
        raise UserError(f"none of the {len(clips)} clips is long enough: {min_frames} frames are needed")
    _warn_left_out([clip for clip in clips if clip.num_frames < min_frames], f"are shorter than {min_frames} frames")
    return kept


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


def some(names: Sequence[str], limit: int = 3) -> str:
    """The first few names, for a message."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def _probe_or_none(clip: Clip) -> ClipInfo | None:
    try:
        return probe_clip(clip.path)
    except UserError as error:
        logger.debug("%s", error)
        return None


def _complaint(clip: Clip, info: ClipInfo, fps: float, resolution: int | None, audio: bool) -> str:
    """Why a readable clip cannot be used; empty when it can."""
    if audio and not info.has_audio:
        return f"{clip.path}: has no audio; use clips with the speech of the person shown"
    size = "" if resolution is None else wrong_size(clip.path, info.width, info.height, resolution)
    return wrong_rate(clip.path, info.fps, fps) or size


def _raise_if(complaint: str) -> None:
    if complaint:
        raise UserError(complaint)


def _warn_left_out(clips: Sequence[Clip], why: str) -> None:
    if clips:
        logger.warning("%d clips %s and are left out: %s", len(clips), why, some([str(clip.path) for clip in clips]))


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
