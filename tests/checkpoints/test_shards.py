"""Sharded checkpoints, and folders without one."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from latentsync.checkpoints.loading import load_checkpoint
from latentsync.utils.errors import UserError

STATE = {f"layers.{index}.weight": torch.full((2, 2), float(index)) for index in range(3)}
NAMES = [f"model-{number:05d}-of-00003.safetensors" for number in (1, 2, 3)]
INDEX = "model.safetensors.index.json"


def write_shards(folder: Path) -> None:
    for file, (name, tensor) in zip(NAMES, STATE.items(), strict=True):
        safetensors.torch.save_file({name: tensor}, folder / file, {"global_step": "9"})


def write_index(folder: Path, name: str = INDEX) -> Path:
    weight_map = dict(zip(STATE, NAMES, strict=True))
    (folder / name).write_text(json.dumps({"metadata": {"total_size": 48}, "weight_map": weight_map}))
    return folder / name


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_shards(tmp_path)
    return tmp_path


@pytest.mark.parametrize("with_index", [True, False])
def test_a_folder_of_shards(folder, with_index):
    if with_index:
        write_index(folder)
    checkpoint = load_checkpoint(folder)
    assert checkpoint.global_step == 9 and checkpoint.state_dict.keys() == STATE.keys()
    assert all(torch.equal(checkpoint.state_dict[name], tensor) for name, tensor in STATE.items())


def test_an_index(folder):
    assert load_checkpoint(write_index(folder)).state_dict.keys() == STATE.keys()


def test_pytorch_shards(tmp_path):
    for number, (name, tensor) in enumerate(STATE.items(), 1):
        torch.save({name: tensor}, tmp_path / f"pytorch_model-{number:05d}-of-00003.bin")
    assert load_checkpoint(tmp_path).state_dict.keys() == STATE.keys()


def test_a_single_file_named_as_the_only_shard(tmp_path):
    safetensors.torch.save_file(STATE, tmp_path / "model-00001-of-00001.safetensors")
    assert load_checkpoint(tmp_path / "model-00001-of-00001.safetensors").state_dict.keys() == STATE.keys()


def without(name: str) -> Callable[[Path], Path]:
    def change(folder: Path) -> Path:
        (folder / name).unlink()
        return folder

    return change


def bad_index(content: str) -> Callable[[Path], Path]:
    def change(folder: Path) -> Path:
        (folder / INDEX).write_text(content)
        return folder / INDEX

    return change


def repeated(folder: Path) -> Path:
    safetensors.torch.save_file(STATE, folder / NAMES[2])
    return folder


def two_sets(folder: Path) -> Path:
    safetensors.torch.save_file(STATE, folder / "ema-00001-of-00002.safetensors")
    return folder


def two_indexes(folder: Path) -> Path:
    write_index(folder)
    write_index(folder, "ema.safetensors.index.json")
    return folder


def other_folder(*names: str) -> Callable[[Path], Path]:
    def change(folder: Path) -> Path:
        other = folder / "other"
        other.mkdir()
        for name in names:
            (other / name).touch()
        return other

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: folder / NAMES[0], "is one shard of a checkpoint; give its folder"),
        (without(NAMES[1]), r"00002-of-00003.safetensors: this shard is missing \(1 of 3\)"),
        (lambda folder: folder / "none.index.json", "no such checkpoint"),
        (bad_index("{"), "is not an index of shards"),
        (bad_index("[]"), "is not an index of shards"),
        (bad_index('{"weight_map": {}}'), "must name files beside it"),
        (bad_index('{"weight_map": {"a": "../../etc/passwd"}}'), "must name files beside it"),
        (bad_index('{"weight_map": {"a": 3}}'), "must name files beside it"),
        (repeated, "repeats layers.0.weight of another shard"),
        (two_sets, "holds the shards of several checkpoints"),
        (two_indexes, "several checkpoints; give one of ema.safetensors.index.json, model.safetensors.index.json"),
        (other_folder(), "is a directory; give the checkpoint file in it$"),
        (other_folder("model.safetensors", "ema.pt", "readme"), "file in it: ema.pt, model.safetensors$"),
        (other_folder("__0_0.distcp"), "distributed checkpoint; convert it with `python -m torch.distributed"),
        (other_folder("zero_to_fp32.py"), "is a DeepSpeed checkpoint; convert it"),
    ],
)
def test_refusals_name_the_remedy(folder, change, message):
    path = change(folder)
    with pytest.raises(UserError, match=message):
        load_checkpoint(path)
