"""Identify weights by their content, so that results of other weights are not taken for those of the present ones."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from latentsync.checkpoints.registry import ResolvedModel

EDGE = 1 << 20  # bytes read at both ends of a file
WEIGHTS_SUFFIXES = (".json", ".safetensors", ".bin")
DIGITS = 16


def fingerprint(paths: Iterable[str | Path]) -> str:
    """16 hex digits from the sizes and both ends of files, which are not read whole."""
    digest = hashlib.sha256()
    for path in map(Path, paths):
        size = path.stat().st_size
        digest.update(size.to_bytes(8))
        with path.open("rb") as file:
            digest.update(file.read(EDGE))
            file.seek(max(0, size - EDGE))
            digest.update(file.read())
    return digest.hexdigest()[:DIGITS]


def files_of(model: ResolvedModel) -> list[Path]:
    """The files of a model, always in the same order."""
    vae = sorted(path for path in model.vae.iterdir() if path.suffix in WEIGHTS_SUFFIXES)
    return [model.unet, model.whisper, model.unet_config, model.scheduler_config, *vae]
