"""A pack of drawn faces: discs whose mouth opens and closes."""

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from recipes.embedded.pack import SAMPLES_PER_FRAME, PackWriter, encode_face

FRAMES = 40
SIDE = 256


def face(opening: float, shade: float) -> np.ndarray:
    """A disc with a mouth: (SIDE, SIDE, 3) uint8."""
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE - 0.5
    disc = (x**2 + y**2 < 0.16) * shade
    mouth = (x / 0.12) ** 2 + ((y - 0.18) / (0.01 + 0.06 * opening)) ** 2 < 1
    return (np.where(mouth, 0.1, disc)[..., None] * [255, 220, 200]).astype(np.uint8)


def write_pack(path: Path) -> None:
    rng, writer = np.random.default_rng(0), PackWriter()
    for number, (person, has_own_audio) in enumerate([("anna", True), ("ben", True), ("cara", False)]):
        openings = np.abs(np.sin(np.arange(FRAMES) / (3 + number)))
        openings[:8] = 0
        jpegs = [encode_face(face(opening, 0.5 + 0.2 * number)) for opening in openings]
        wave = 0.1 * rng.standard_normal(FRAMES * SAMPLES_PER_FRAME).astype(np.float32)
        wave[: 8 * SAMPLES_PER_FRAME] = 0
        writer.add(f"{person}_a", person, jpegs, openings, wave if has_own_audio else None)
    writer.write(path, SIDE)


def write_voice(path: Path) -> None:
    """A recording of two seconds."""
    rng = np.random.default_rng(1)
    save_file({"voice": torch.from_numpy(rng.integers(-3000, 3000, 32000, np.int16))}, path)
