"""The whole recipe of the embedded model in its quick mode, on drawn faces."""

import sys
from pathlib import Path

import pytest
import torch

from latentsync.loading import ModelPaths, load_pipeline
from recipes.embedded import perceptual, train
from tests.recipes.drawn_faces import write_pack, write_voice
from tests.recipes.tiny_first_generation import write_first_generation


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    write_pack(folder / "train.safetensors")
    write_pack(folder / "held_out.safetensors")
    write_voice(folder / "voices.safetensors")
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
    write_first_generation(tmp_path / "first")
    places = {"data": data, "first": tmp_path / "first", "output": output, "trunk": tmp_path / "trunk.pth"}
    words = [word for name, path in places.items() for word in (f"--{name}", str(path))]
    monkeypatch.setattr(sys, "argv", ["train", *words, "--quick", "--stages", *train.MINUTES])
    assert train.main() == 0
    model = output / "model"
    paths = ModelPaths(model / "unet.safetensors", "configs/unet/embedded.yaml", model / "vae", base="embedded")
    pipeline = load_pipeline(paths, "cpu")
    assert (pipeline.resolution, pipeline.codec.channels) == (256, train.CHANNELS)
    assert {path.name for path in (output / "refine").glob("*.png")} == {f"{n}_a.png" for n in ("anna", "ben", "cara")}
    again = [*words, "--output", str(tmp_path / "again"), "--start", str(model), "--workers", "2", "--batch_scale", "2"]
    assert train.main([*again, "--quick", "--stages", "syncnet", "refine", "export"]) == 0
    assert (tmp_path / "again" / "model" / "unet.safetensors").stat().st_size == paths.unet.stat().st_size
