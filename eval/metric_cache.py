"""Cache of clip metrics, keyed by file contents and settings."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from eval.methods import Method
from eval.metrics import ClipMetrics
from eval.pairs import Pair
from latentsync.data.cache import fetch, file_digest, store
from latentsync.utils.files import read_json, write_text

KEY_DIGITS = 32


class MetricCache:
    """A folder of entries: <key>.json with values, settings and versions, <key>.safetensors with the arrays."""

    def __init__(self, folder: Path, about: dict[str, Any]) -> None:
        """`about` is stored in every entry: versions, machine, and the settings, which are part of the key."""
        self.folder, self.about, self.settings = folder, about, about["settings"]

    def get(self, pair: Pair, method: Method, compute: Callable[[], ClipMetrics]) -> ClipMetrics:
        """Cached metrics, or else the result of `compute`. Damaged entries are computed again.

        Raises:
            UserError: raised by `compute`; or a file cannot be read, or the folder cannot be written.
        """
        files = self._files(pair, method)
        entry = self.folder / self._key(files)
        metrics = self._read(entry)
        if metrics is None:
            metrics = compute()
            self._write(entry, metrics, {"id": pair.id, "method": method.name, "files": files})
        return metrics

    def _files(self, pair: Pair, method: Method) -> dict[str, str]:
        audio = pair.video if method.is_ground_truth else pair.driving_audio
        paths = {"video": pair.video, "audio": audio, "result": method.result(pair)}
        return {role: file_digest(path) for role, path in paths.items()} | {"reference": str(method.is_ground_truth)}

    def _key(self, files: dict[str, str]) -> str:
        text = json.dumps([files, self.settings], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:KEY_DIGITS]

    def _read(self, entry: Path) -> ClipMetrics | None:
        content = read_json(entry.with_suffix(".json"))
        if content is None:
            return None
        tensors = fetch(entry.with_suffix(".safetensors")) if content["has_arrays"] else {}
        if tensors is None:
            return None
        arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
        return ClipMetrics(arrays=arrays, **{name: content[name] for name in ("values", "missing", "frames", "faces")})

    def _write(self, entry: Path, metrics: ClipMetrics, of: dict[str, Any]) -> None:
        arrays = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in metrics.arrays.items()}
        if arrays:
            store(entry.with_suffix(".safetensors"), arrays)
        content = asdict(metrics) | {"has_arrays": bool(arrays), **of, "about": self.about}
        del content["arrays"]
        write_text(entry.with_suffix(".json"), lambda file: json.dump(content, file, indent=2, allow_nan=False))
