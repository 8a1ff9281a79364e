"""Checkpoints in several files: a folder of shards, with or without the index that transformers and diffusers write."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from latentsync.checkpoints.formats import Checkpoint, read_file
from latentsync.utils.errors import UserError

INDEX_SUFFIX = ".index.json"
SHARD_NAME = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<total>\d{5})(?P<suffix>\.\w+)")
WEIGHTS_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")


def is_sharded(path: Path) -> bool:
    """Whether `path` is a folder, an index or a single shard, and not a file that holds a whole checkpoint."""
    shard = SHARD_NAME.fullmatch(path.name)
    return path.is_dir() or path.name.endswith(INDEX_SUFFIX) or (shard is not None and int(shard["total"]) > 1)


def read_sharded(path: Path) -> Checkpoint:
    """Read all shards of a folder or an index.

    Raises:
        UserError: it is a single shard, a shard is missing or damaged, or the folder holds something else; the message
            says what to give instead.
    """
    if path.is_dir():
        indexes = sorted(path.glob(f"*{INDEX_SUFFIX}"))
        if len(indexes) > 1:
            raise UserError(f"{path}: holds several checkpoints; give one of {_names(indexes)}")
        files = _indexed_files(indexes[0]) if indexes else _numbered_files(path)
    elif path.name.endswith(INDEX_SUFFIX):
        files = _indexed_files(path)
    else:
        raise UserError(f"{path}: is one shard of a checkpoint; give its folder or its {INDEX_SUFFIX} file")
    shards = [read_file(file) for file in files]
    state: dict[str, Tensor] = {}
    for shard in shards:
        repeated = state.keys() & shard.state_dict.keys()
        if repeated:
            raise UserError(f"{shard.path}: repeats {min(repeated)} of another shard; download the shards again")
        state |= shard.state_dict
    return Checkpoint(path, state, max(shard.global_step for shard in shards), shards[0].metadata)


def _indexed_files(index: Path) -> list[Path]:
    """The shards that an index lists."""
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except FileNotFoundError as error:
        raise UserError(f"{index}: no such checkpoint; check the path or download it") from error
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{index}: is not an index of shards (no weight_map); download it again") from error
    if not names or not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise UserError(f"{index}: weight_map must name files beside it; download it again")
    return _existing([index.with_name(name) for name in sorted(names)])


def _numbered_files(folder: Path) -> list[Path]:
    """All shards of a folder by their numbers. Raises UserError where there is not exactly one whole set."""
    matches = [match for path in sorted(folder.iterdir()) if (match := SHARD_NAME.fullmatch(path.name))]
    sets = {(match["stem"], match["total"], match["suffix"]) for match in matches}
    if len(sets) != 1:
        raise UserError(f"{folder}: {_remedy(folder, len(sets))}")
    stem, total, suffix = sets.pop()
    return _existing([folder / f"{stem}-{number:05d}-of-{total}{suffix}" for number in range(1, int(total) + 1)])


def _existing(files: list[Path]) -> list[Path]:
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise UserError(f"{missing[0]}: this shard is missing ({len(missing)} of {len(files)}); download it again")
    return files


def _remedy(folder: Path, num_sets: int) -> str:
    if num_sets > 1:
        return "holds the shards of several checkpoints; move them into folders of their own"
    if any(folder.glob("*.distcp")):
        command = f"python -m torch.distributed.checkpoint.format_utils dcp_to_torch {folder} weights.pt"
        return f"is a distributed checkpoint; convert it with `{command}`"
    if (folder / "zero_to_fp32.py").is_file():
        return "is a DeepSpeed checkpoint; convert it with the zero_to_fp32.py in it"
    weights = sorted(path for path in folder.iterdir() if path.suffix in WEIGHTS_SUFFIXES)
    return "is a directory; give the checkpoint file in it" + (f": {_names(weights)}" if weights else "")


def _names(paths: Sequence[Path], shown: int = 5) -> str:
    return ", ".join(path.name for path in paths[:shown]) + (", ..." if len(paths) > shown else "")
