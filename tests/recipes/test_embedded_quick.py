"""The whole recipe of the embedded model in its quick mode, on drawn faces."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from latentsync.loading import ModelPaths, load_pipeline
from recipes.embedded import perceptual, train
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
    for number, (person, is_heard) in enumerate([("anna", True), ("ben", True), ("cara", False)]):
        openings = np.abs(np.sin(np.arange(FRAMES) / (3 + number)))
        openings[:8] = 0
        jpegs = [encode_face(face(opening, 0.5 + 0.2 * number)) for opening in openings]
        wave = 0.1 * rng.standard_normal(FRAMES * SAMPLES_PER_FRAME).astype(np.float32)
        wave[: 8 * SAMPLES_PER_FRAME] = 0
        states = torch.from_numpy(rng.standard_normal((2 * FRAMES, 5, 384))).float()
        audio = (wave, states) if is_heard else (None, None)
        writer.add(f"{person}_a", person, jpegs, openings, *audio)
    writer.write(path, SIDE)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    write_pack(folder / "train.safetensors")
    write_pack(folder / "held_out.safetensors")
    save_file({"voice": torch.randn(120, 5, 384).half()}, folder / "voices.safetensors")
    return folder


def write_trunk(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A random MobileNetV2."""
    with monkeypatch.context() as patched:
        patched.setattr(perceptual.PerceptualDistance, "_load", lambda self, path: None)
        torch.save(perceptual.PerceptualDistance(path).state_dict(), path)


@pytest.mark.slow
def test_every_stage_runs_and_the_result_loads(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_trunk(tmp_path / "trunk.pth", monkeypatch)
    output = tmp_path / "output"
    places = ["--data", str(data), "--output", str(output), "--trunk", str(tmp_path / "trunk.pth")]
    monkeypatch.setattr(sys, "argv", ["train", *places, "--quick"])
    assert train.main() == 0
    model = output / "model"
    paths = ModelPaths(model / "unet.safetensors", model / "unet.yaml", model / "vae", base="embedded")
    pipeline = load_pipeline(paths, "cpu")
    assert (pipeline.resolution, pipeline.codec.channels) == (256, train.CHANNELS)
    assert {path.name for path in (output / "refine").glob("*.png")} == {f"{n}_a.png" for n in ("anna", "ben", "cara")}
