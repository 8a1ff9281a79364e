"""Values measured once, kept by what they were measured on: content of the files and settings, never names."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from eval.measures import Tools, Values
from eval.methods import Method
from eval.pairs import Pair
from latentsync.data.cache import fetch, file_digest, store
from latentsync.utils.files import write_text

NAME_DIGITS = 32


class KeptValues:
    """A folder of entries: <key>.json with the numbers, settings and versions, <key>.safetensors with the arrays."""

    def __init__(self, folder: Path, tools: Tools, about: dict[str, Any]) -> None:
        """`about` is written into every entry beside the settings: versions and machine."""
        self.folder, self.about = folder, about
        self.settings = tools.identity()

    def get(self, pair: Pair, method: Method, measure: Callable[[], Values]) -> Values:
        """The values kept, or those that `measure` gives now. An entry cut short by a crash is measured again.

        Raises:
            UserError: what `measure` raises, a file that cannot be read, a folder that cannot be written.
        """
        files = self._files(pair, method)
        entry = self.folder / self._key(files)
        kept = self._read(entry)
        if kept is None:
            kept = measure()
            self._write(entry, kept, {"id": pair.id, "method": method.name, "files": files})
        return kept

    def _files(self, pair: Pair, method: Method) -> dict[str, str]:
        voice = pair.video if method.is_ground_truth else pair.voice
        paths = {"video": pair.video, "voice": voice, "result": method.result(pair)}
        return {role: file_digest(path) for role, path in paths.items()} | {"reference": str(method.is_ground_truth)}

    def _key(self, files: dict[str, str]) -> str:
        text = json.dumps([files, self.settings], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:NAME_DIGITS]

    def _read(self, entry: Path) -> Values | None:
        try:
            content = json.loads(entry.with_suffix(".json").read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None
        tensors = fetch(entry.with_suffix(".safetensors")) if content["has_arrays"] else {}
        if tensors is None:
            return None
        arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
        return Values(arrays=arrays, **{name: content[name] for name in ("numbers", "missing", "frames", "faces")})

    def _write(self, entry: Path, values: Values, of: dict[str, Any]) -> None:
        arrays = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in values.arrays.items()}
        if arrays:
            store(entry.with_suffix(".safetensors"), arrays)
        content = asdict(values) | {"has_arrays": bool(arrays), **of, "settings": self.settings, "about": self.about}
        del content["arrays"]
        write_text(entry.with_suffix(".json"), lambda file: json.dump(content, file, indent=2, allow_nan=False))
