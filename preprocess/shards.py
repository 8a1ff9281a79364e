"""Tar shards of clips in WebDataset's layout, with a Parquet list that says where in them each clip is.

Trainers read clips by range from a local disk or an object store, in any order; other programs stream the shards with
`webdataset`. Needs `pip install '.[shards]'`.
"""

import hashlib
import json
import logging
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from latentsync.constants import DEFAULT_SEED
from latentsync.data.clips import Clip
from latentsync.data.file_lists import write_parquet_list
from latentsync.data.locations import read_bytes
from latentsync.utils.errors import UserError
from preprocess.storage import open_storage
from preprocess.storages.base import Storage

logger = logging.getLogger(__name__)
SHARD_MB = 512


def write_shards(clips: Sequence[Clip], output_dir: str, name: str, shard_mb: int = SHARD_MB) -> int:
    """Write clips into shards of about `shard_mb` megabytes and the list `<output_dir>/<name>.parquet`.

    The order is random, so that a shard holds many people. Finished shards of an interrupted call are kept.

    Args:
        clips: with headers and digests; their files may be anywhere.
        output_dir: folder or fsspec address.

    Returns:
        The number of shards.

    Raises:
        UserError: webdataset is not installed, a clip cannot be read, or the output cannot be written.
    """
    output = open_storage(output_dir)
    order = np.random.default_rng(DEFAULT_SEED).permutation(len(clips))
    placed: list[Clip] = []
    count = 0
    for count, members in enumerate(_groups([clips[int(index)] for index in order], shard_mb * 10**6), start=1):
        placed += _shard(output, f"{name}-{count - 1:06d}", members)
    with tempfile.TemporaryDirectory(prefix="latentsync-") as scratch:
        local = Path(scratch) / f"{name}.parquet"
        write_parquet_list(local, placed, "")
        output.put(local, local.name)
    return count


def _groups(clips: Sequence[Clip], limit: int) -> Iterator[list[tuple[Clip, bytes]]]:
    """Consecutive clips with their content, of at least `limit` bytes together but for the last group."""
    group: list[tuple[Clip, bytes]] = []
    total = 0
    for clip in clips:
        content = read_bytes(clip.path, clip.offset, clip.size)
        group.append((clip, content))
        total += len(content)
        if total >= limit:
            yield group
            group, total = [], 0
    if group:
        yield group


def _shard(output: Storage, name: str, members: list[tuple[Clip, bytes]]) -> list[Clip]:
    """Write a shard, unless it is there; the clips as they are in it."""
    content = hashlib.sha256("".join(f"{clip.digest} {clip.person}\n" for clip, _ in members).encode())
    path = f"{name}-{content.hexdigest()[:8]}.tar"
    known = output.read_text(f"{path}.json")  # written after the shard
    if known is None:
        with tempfile.TemporaryDirectory(prefix="latentsync-") as scratch:
            local = Path(scratch) / path
            places = _write_tar(local, members)
            output.put(local, path)
        output.write_text(f"{path}.json", json.dumps(places))
        logger.info("%s: %d clips", path, len(members))
    else:
        places = json.loads(known)
    return [
        replace(clip, path=path, offset=offset, size=size)
        for (clip, _), (offset, size) in zip(members, places, strict=True)
    ]


def _write_tar(path: Path, members: list[tuple[Clip, bytes]]) -> list[tuple[int, int]]:
    """Write samples of `mp4` and `json`; offset and size of each video in the file."""
    try:
        from webdataset import TarWriter
    except ImportError as error:
        raise UserError("shards need webdataset: run `pip install '.[shards]'` in the project's folder") from error
    with TarWriter(str(path)) as writer:
        for index, (clip, content) in enumerate(members):
            header = {key: value for key, value in asdict(clip).items() if key not in ("path", "offset", "size")}
            writer.write({"__key__": f"{index:09d}", "mp4": content, "json": header})
    with tarfile.open(path) as archive:
        videos = [member for member in archive.getmembers() if member.name.endswith(".mp4")]
    return [(member.offset_data, member.size) for member in videos]
