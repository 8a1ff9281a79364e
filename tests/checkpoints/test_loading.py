"""Checkpoints: supported formats, tolerated differences, one-line errors for everything else."""

import logging
import math
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from latentsync.checkpoints.formats import Checkpoint
from latentsync.checkpoints.loading import load_checkpoint, load_into, load_state_dict, save_checkpoint
from latentsync.models.unet import UNet3DConditionModel
from latentsync.models.unet_config import UNetConfig
from latentsync.utils.errors import UserError

CONFIG = UNetConfig.from_dict(
    {
        "in_channels": 13,
        "block_out_channels": [4, 8],
        "down_block_types": ["CrossAttnDownBlock3D", "DownBlock3D"],
        "up_block_types": ["UpBlock3D", "CrossAttnUpBlock3D"],
        "layers_per_block": 1,
        "attention_head_dim": 2,
        "cross_attention_dim": 6,
        "norm_num_groups": 2,
        "use_motion_module": True,
        "motion_module_resolutions": [1, 2],
        "motion_module_kwargs": {"num_attention_heads": 2},
    }
)
IMAGE_ONLY = replace(CONFIG, use_motion_module=False)


def weights(config: UNetConfig = CONFIG) -> dict[str, Tensor]:
    """Weights of a model of `config`, none of them zero."""
    state = UNet3DConditionModel(config).state_dict()
    return {name: tensor if name.endswith("pe") else torch.randn(tensor.shape) for name, tensor in state.items()}


def loaded(path: Path, config: UNetConfig = CONFIG, exact: bool = False) -> dict[str, Tensor]:
    unet, _ = UNet3DConditionModel.from_pretrained(config, path, exact=exact)
    assert not any(tensor.is_meta for tensor in unet.state_dict().values())
    return unet.state_dict()


def assert_same(given: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert given.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(given[name], tensor), name


@pytest.fixture
def patches(caplog) -> Callable[[], list[str]]:
    """Names of the patches logged so far."""
    caplog.set_level(logging.WARNING)
    return lambda: [record.getMessage().split("'")[1] for record in caplog.records]


@pytest.mark.parametrize("name", ["unet.pt", "unet.safetensors", "a name; with 'quotes' – ü.pth"])
def test_saved_and_loaded_again(tmp_path, name, patches):
    path, state = tmp_path / "new folder" / name, weights()
    save_checkpoint(path, state, global_step=123)
    assert [entry.name for entry in path.parent.iterdir()] == [name]
    unet, step = UNet3DConditionModel.from_pretrained(CONFIG, path, exact=True)
    assert step == 123 and patches() == []
    assert_same(unet.state_dict(), state)
    assert all(parameter.requires_grad for parameter in unet.parameters())


def test_bare_legacy_half_precision_and_wrapped_files(tmp_path):
    state = weights()
    torch.save(state, tmp_path / "bare.pt")
    torch.save({"state_dict": state}, tmp_path / "legacy.pt", _use_new_zipfile_serialization=False)
    torch.save({"params_ema": state}, tmp_path / "esrgan.pth")
    torch.save({"global_step": torch.tensor(7), "state_dict": state}, tmp_path / "tensor_step.pt")
    for path in tmp_path.iterdir():
        checkpoint = load_checkpoint(path)
        assert_same(checkpoint.state_dict, state)
        assert checkpoint.global_step == (7 if path.name == "tensor_step.pt" else 0)
    half = {name: tensor.half() for name, tensor in state.items()}
    save_checkpoint(tmp_path / "half.safetensors", half)
    given = loaded(tmp_path / "half.safetensors")
    assert_same(given, {name: tensor.float() for name, tensor in half.items()})


@pytest.mark.parametrize("name", ["unet.safetensors", "unet.pt"])
def test_saved_checkpoints_have_default_permissions(tmp_path, name):
    plain = tmp_path / "plain"
    plain.touch()
    save_checkpoint(tmp_path / name, weights())
    assert (tmp_path / name).stat().st_mode == plain.stat().st_mode


def test_safetensors_that_begin_like_a_pickle(tmp_path):
    """The first byte is the lowest of the header's length; 0x80 also begins every pickle."""
    state = weights()
    for length in range(0, 512, 8):
        safetensors.torch.save_file(state, tmp_path / "unet.safetensors", metadata={"note": "x" * length})
        if (tmp_path / "unet.safetensors").read_bytes()[0] == 0x80:
            break
    assert_same(load_checkpoint(tmp_path / "unet.safetensors").state_dict, state)
    (tmp_path / "unet.safetensors").rename(tmp_path / "unet.bin")
    assert_same(load_checkpoint(tmp_path / "unet.bin").state_dict, state)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_training_on_mapped_weights_leaves_the_file_alone(tmp_path, suffix):
    path = tmp_path / f"unet{suffix}"
    save_checkpoint(path, weights())
    before = path.read_bytes()
    unet, _ = UNet3DConditionModel.from_pretrained(CONFIG, path)
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.add_(1)
    save_checkpoint(path, unet.state_dict(), global_step=1)
    assert path.read_bytes() != before and load_checkpoint(path).global_step == 1
    assert_same(loaded(path), unet.state_dict())


def test_channels_last_weights_are_saved(tmp_path):
    unet = UNet3DConditionModel(CONFIG).to(memory_format=torch.channels_last)
    save_checkpoint(tmp_path / "unet.safetensors", unet.state_dict())
    assert_same(loaded(tmp_path / "unet.safetensors"), unet.state_dict())


def test_no_path_gives_fresh_weights():
    unet, step = UNet3DConditionModel.from_pretrained(CONFIG, "")
    assert step == 0 and unet.conv_out.weight.abs().max() == 0


def test_patch_conv_in(tmp_path, patches):
    state = weights(replace(CONFIG, in_channels=9))
    save_checkpoint(tmp_path / "unet.pt", state)
    given = loaded(tmp_path / "unet.pt")
    assert patches() == ["conv_in channels"]
    assert torch.equal(given["conv_in.weight"][:, :9], state["conv_in.weight"])
    assert given["conv_in.weight"][:, 9:].abs().max() == 0
    assert torch.equal(given["conv_in.bias"], state["conv_in.bias"])
    assert torch.equal(given["conv_out.weight"], state["conv_out.weight"])


def test_patch_conv_out(tmp_path, patches):
    state = weights(replace(CONFIG, out_channels=8))
    save_checkpoint(tmp_path / "unet.pt", state)
    given = loaded(tmp_path / "unet.pt")
    assert patches() == ["conv_out channels"]
    assert torch.equal(given["conv_out.weight"], state["conv_out.weight"][:4])
    assert torch.equal(given["conv_out.bias"], state["conv_out.bias"][:4])


def test_patch_cross_attention_width(tmp_path, patches):
    state = weights(replace(CONFIG, cross_attention_dim=10))
    save_checkpoint(tmp_path / "unet.pt", state)
    given = loaded(tmp_path / "unet.pt")
    assert patches() == ["cross-attention width"]
    changed = {name for name in given if not torch.equal(given[name].reshape(-1)[:4], state[name].reshape(-1)[:4])}
    assert changed and all(name.endswith(("attn2.to_k.weight", "attn2.to_v.weight")) for name in changed)
    assert all(given[name].std() > 0 for name in changed)


def test_patch_motion_modules(tmp_path, patches):
    state = weights(IMAGE_ONLY)
    save_checkpoint(tmp_path / "unet.pt", state, global_step=5)
    given = loaded(tmp_path / "unet.pt")
    assert patches() == ["motion modules absent"]
    assert_same({name: given[name] for name in state}, state)
    motion = {name: tensor for name, tensor in given.items() if "motion_modules" in name}
    assert len(motion) == len(given) - len(state)
    assert all(tensor.abs().max() == 0 for name, tensor in motion.items() if "proj_out" in name)
    assert all(tensor.std() > 0 for name, tensor in motion.items() if name.endswith(("to_q.weight", "pe")))


def test_patch_stable_diffusion(tmp_path, patches):
    state = weights(replace(IMAGE_ONLY, in_channels=4, cross_attention_dim=768))
    safetensors.torch.save_file(state, tmp_path / "diffusion_pytorch_model.safetensors")
    given = loaded(tmp_path / "diffusion_pytorch_model.safetensors")
    assert patches() == [
        "stable diffusion 1.5",
        "conv_in channels",
        "cross-attention width",
        "motion modules absent",
    ]
    assert torch.equal(given["conv_in.weight"][:, :4], state["conv_in.weight"])
    assert torch.equal(given["mid_block.resnets.0.conv1.weight"], state["mid_block.resnets.0.conv1.weight"])


def test_exact_loading_tolerates_none_of_them(tmp_path):
    save_checkpoint(tmp_path / "unet.pt", weights(IMAGE_ONLY))
    with pytest.raises(UserError, match=r"only as a start for training \('motion modules absent': \d+ missing"):
        loaded(tmp_path / "unet.pt", exact=True)


def without_some_motion(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if not name.startswith("down_blocks.0.motion_modules")}


# What the checkpoint holds, and what the message lists.
UNFIT = {
    "another architecture": (lambda: {"audio_encoder.w": torch.zeros(2)}, r"\d+ missing: conv_in.weight, .*1 unknown"),
    "other widths": (lambda: weights(replace(CONFIG, block_out_channels=(8, 8))), r"of another shape: conv_in.weight"),
    "more motion than the model": (lambda: weights(CONFIG), r"\d+ unknown: down_blocks.0.motion_modules"),
    "some motion modules": (lambda: without_some_motion(weights()), r"\d+ missing: down_blocks.0.motion_modules"),
    "more blocks": (lambda: weights(replace(CONFIG, layers_per_block=2)), r"\d+ unknown: "),
    "a prefix beside other tensors": (
        lambda: {f"unet.{k}": v for k, v in weights().items()} | {"vae.w": torch.zeros(2)},
        r"holds this model under the prefix 'unet.', and other tensors .*save the model alone",
    ),
    "another table": (
        lambda: {k: v[:, :9] if k.endswith("pe") else v for k, v in weights().items()},
        r"pe \[1, 9, 4\] instead of \[1, 24, 4\]",
    ),
}


@pytest.mark.parametrize("case", UNFIT)
def test_unfit_weights_list_the_keys(tmp_path, case):
    make, message = UNFIT[case]
    save_checkpoint(tmp_path / "unet.pt", make())
    config = IMAGE_ONLY if case == "more motion than the model" else CONFIG
    with pytest.raises(UserError, match=message) as caught:
        loaded(tmp_path / "unet.pt", config)
    text = str(caught.value)
    assert text.startswith(str(tmp_path / "unet.pt")) and "\n" not in text and len(text) < 900


class Dangerous:
    """Writes a file when unpickled without care."""

    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


def write_truncated(path: Path) -> None:
    save_checkpoint(path, weights())
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])


def write_damaged_pickle(path: Path) -> None:
    """A PyTorch archive whose index is nonsense."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02nonsense")
        archive.writestr("archive/version", "3")


def write_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")


def write_legacy_truncated(path: Path) -> None:
    torch.save(weights(), path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:3000])


# File name -> how to write it, and what the message says.
BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing.pt": (lambda path: None, "no such checkpoint"),
    "folder.pt": (Path.mkdir, "is a directory; give the checkpoint file in it"),
    "empty.pt": (Path.touch, r"is empty \(0 bytes\)"),
    "lfs.pt": (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"), "Git LFS pointer"),
    "text.pt": (lambda path: path.write_text("<html>404</html>"), "is not a checkpoint"),
    "noise.pt": (lambda path: path.write_bytes(bytes(range(40, 250)) * 9), "is not a checkpoint"),
    "short.pt": (lambda path: path.write_bytes(b"\x00"), "is not a checkpoint"),
    "zip.pt": (write_zip, "is a zip archive but not a PyTorch checkpoint"),
    "cut.pt": (write_truncated, "is truncated or damaged"),
    "cut_old.pt": (write_legacy_truncated, "damaged"),
    "cut.safetensors": (write_truncated, "is truncated or"),
    "text.safetensors": (lambda path: path.write_text("not weights at all"), "truncated or not a safetensors file"),
    "short.safetensors": (lambda path: path.write_bytes(b"\x01"), "truncated or not a safetensors file"),
    "index.pt": (write_damaged_pickle, "damaged"),
    "object.pt": (lambda path: torch.save(nn.Linear(2, 2), path), "holds Python objects besides weights"),
    "pickle.pkl": (lambda path: path.write_bytes(pickle.dumps({"a": 1})), "is a Python pickle, not a PyTorch"),
    "list.pt": (lambda path: torch.save([torch.zeros(2)], path), "holds a list, not weights"),
    "settings.pt": (lambda path: torch.save({"lr": 1e-4, "w": torch.zeros(2)}, path), "lr are not tensors"),
    "nothing.pt": (lambda path: torch.save({}, path), "holds no weights"),
    "nothing.safetensors": (lambda path: safetensors.torch.save_file({}, path), "holds no weights"),
    "step.pt": (lambda path: torch.save({"state_dict": weights(), "global_step": "x"}, path), "global_step is 'x'"),
    "meta.pt": (lambda path: torch.save({"w": torch.zeros(2, device="meta")}, path), "w is a tensor without data"),
    "sparse.pt": (lambda path: torch.save({"w": torch.eye(2).to_sparse()}, path), "w is a sparse or quantized"),
    "int8.pt": (lambda path: torch.save({"w": torch.zeros(2, dtype=torch.int8)}, path), "w is stored as int8"),
    "complex.pt": (lambda path: torch.save({"w": torch.zeros(2, dtype=torch.cfloat)}, path), "stored as complex64"),
    "float8.pt": (lambda path: torch.save({"w": torch.zeros(2).to(torch.float8_e4m3fn)}, path), "stored as float8"),
    "int8.safetensors": (
        lambda path: safetensors.torch.save_file({"w": torch.zeros(2, dtype=torch.int8)}, path),
        "w is stored as int8",
    ),
}


@pytest.mark.parametrize(
    ("step", "shown"),
    [
        (-1, "'-1'"),
        (True, "'True'"),
        (10**300, "a number of 997 bits"),
        (math.nan, "'nan'"),
        (math.inf, "'inf'"),
        (1.5, "'1.5'"),
        (torch.tensor(math.inf), "'inf'"),
        (torch.tensor(2j), "'tensor"),
        (torch.zeros(2), "'tensor"),
        (torch.tensor(1, device="meta"), ".tensor"),
        ("²", "'²'"),
        ("9" * 5000, "'9999"),
        ([], r"'\[\]'"),
    ],
)
def test_steps_that_are_none(tmp_path, step, shown):
    paths = [tmp_path / "a.pt"]
    torch.save({"state_dict": weights(), "global_step": step}, paths[0])
    if isinstance(step, str):
        paths.append(tmp_path / "a.safetensors")
        safetensors.torch.save_file(weights(), paths[1], {"global_step": step})
    for path in paths:
        with pytest.raises(UserError, match=f"global_step is {shown}"):
            load_checkpoint(path)


@pytest.mark.parametrize("step", [7, 7.0, "7", torch.tensor(7), torch.tensor(7.0)])
def test_steps_in_any_form(tmp_path, step):
    torch.save({"state_dict": weights(), "global_step": step}, tmp_path / "a.pt")
    assert load_checkpoint(tmp_path / "a.pt").global_step == 7


def test_whole_numbers_are_no_weights(tmp_path):
    state = nn.Linear(2, 2).state_dict()
    torch.save({name: tensor.to(torch.int64) for name, tensor in state.items()}, tmp_path / "a.pt")
    with pytest.raises(UserError, match="weight is stored as int64, which does not fit this model"):
        load_into(lambda: nn.Linear(2, 2), load_checkpoint(tmp_path / "a.pt"))


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_one_clear_line(tmp_path, name):
    write, message = BROKEN[name]
    path = tmp_path / name
    write(path)
    with pytest.raises(UserError, match=message) as caught:
        load_state_dict(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_checkpoint_is_not_run(tmp_path, legacy):
    path, target = tmp_path / "trap.pt", tmp_path / "pwned"
    content = {"state_dict": weights(), "extra": Dangerous(target)}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(UserError, match="such code is never run"):
        load_checkpoint(path)
    assert not target.exists()


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "unet.pt"
    save_checkpoint(path, weights(), global_step=1)
    before = path.read_bytes()

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(UserError, match="cannot be written .*No space left"):
        save_checkpoint(path, weights(), global_step=2)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_unwritable_places_are_one_clear_line(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file" / "unet.pt", tmp_path / "file" / "unet.safetensors"):
        with pytest.raises(UserError, match="cannot be written"):
            save_checkpoint(path, weights())
    with pytest.raises(UserError, match="cannot be written .*directory"):
        save_checkpoint(tmp_path, weights())


def test_any_other_model_loads_strictly(tmp_path):
    save_checkpoint(tmp_path / "linear.pt", {"weight": torch.ones(3, 2), "bias": torch.ones(3)})
    model = load_into(lambda: nn.Linear(2, 3), load_checkpoint(tmp_path / "linear.pt"))
    assert torch.equal(model(torch.ones(1, 2)), torch.full((1, 3), 3.0))
    with pytest.raises(UserError, match="of another shape: weight"):
        load_into(lambda: nn.Linear(3, 3), load_checkpoint(tmp_path / "linear.pt"))


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "unet.", "model.", "ema.", "module._orig_mod."])
@pytest.mark.parametrize("exact", [True, False])
def test_a_prefix_of_all_names_is_removed_and_logged(tmp_path, patches, caplog, prefix, exact):
    state = weights()
    save_checkpoint(tmp_path / "unet.safetensors", {prefix + name: tensor for name, tensor in state.items()})
    assert_same(loaded(tmp_path / "unet.safetensors", exact=exact), state)
    assert patches() == ["prefix"] and f"removed '{prefix}'" in caplog.text


def test_a_prefix_and_another_difference(tmp_path, patches):
    state = weights(IMAGE_ONLY)
    save_checkpoint(tmp_path / "unet.pt", {f"module.{name}": tensor for name, tensor in state.items()})
    given = loaded(tmp_path / "unet.pt")
    assert patches() == ["prefix", "motion modules absent"]
    assert_same({name: given[name] for name in state}, state)


@pytest.mark.parametrize("wrapper", ["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "module"])
@pytest.mark.parametrize("prefix", ["", "unet."])
def test_wrapping_modules_within_names_are_removed_and_logged(tmp_path, patches, caplog, wrapper, prefix):
    """Single layers that were compiled, sharded or checkpointed."""

    def wrapped(name: str) -> str:
        block, _, rest = name.partition(".")
        return f"{prefix}{block}.{wrapper}.{rest}"

    state = weights()
    save_checkpoint(tmp_path / "unet.pt", {wrapped(name): tensor for name, tensor in state.items()})
    assert_same(loaded(tmp_path / "unet.pt", exact=True), state)
    assert patches() == (["prefix"] if prefix else []) + ["wrapping modules"] and repr(wrapper) in caplog.text


def test_a_pytorch_file_named_safetensors(tmp_path):
    state = weights()
    save_checkpoint(tmp_path / "a.pt", state)
    (tmp_path / "a.pt").rename(tmp_path / "a.safetensors")
    assert_same(load_checkpoint(tmp_path / "a.safetensors").state_dict, state)


def test_torchscript_is_refused_with_its_name(tmp_path):
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), str(tmp_path / "a.pt"))
    with pytest.raises(UserError, match="TorchScript program, which is code; save the weights alone"):
        load_checkpoint(tmp_path / "a.pt")


class Trunk(nn.Module):
    """A model whose own names share their first part."""

    def __init__(self):
        super().__init__()
        self.module = nn.Linear(2, 2)


def test_a_prefix_that_the_model_has_as_well_stays(patches):
    state = Trunk().state_dict()
    assert_same(load_into(Trunk, Checkpoint(Path("a.pt"), state)).state_dict(), state)
    load_into(Trunk, Checkpoint(Path("a.pt"), {f"_orig_mod.{name}": tensor for name, tensor in state.items()}))
    assert patches() == ["prefix"]


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "params_ema", "params", "model", "module"])
def test_usual_wrappers(tmp_path, key, patches):
    state = weights()
    optimizer = {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 1e-4}]}
    torch.save({key: state, "optimizer": optimizer, "epoch": 3, "global_step": 5}, tmp_path / "a.pt")
    checkpoint = load_checkpoint(tmp_path / "a.pt")
    assert_same(checkpoint.state_dict, state)
    assert checkpoint.global_step == 5 and patches() == []


def test_other_wrappers_are_logged_or_refused(tmp_path, caplog, patches):
    state, other = weights(), {"w": torch.zeros(2)}
    torch.save({"generator": state, "epoch": 3}, tmp_path / "one.pt")
    assert_same(load_checkpoint(tmp_path / "one.pt").state_dict, state)
    assert patches() == ["wrapper"] and "the weights in 'generator'" in caplog.text
    caplog.clear()
    torch.save({"model": state, "ema": other}, tmp_path / "usual.pt")
    assert_same(load_checkpoint(tmp_path / "usual.pt").state_dict, state)
    assert patches() == ["wrapper"] and "the weights in 'model'; not loading 'ema'" in caplog.text
    torch.save({"state_dict": {"model": state}, "global_step": 4}, tmp_path / "nested.pt")
    assert load_checkpoint(tmp_path / "nested.pt").global_step == 4
    torch.save({"generator": state, "critic": other}, tmp_path / "two.pt")
    with pytest.raises(UserError, match=r"several sets of weights \(generator, critic\); save one of them alone"):
        load_checkpoint(tmp_path / "two.pt")


@pytest.mark.parametrize("step", [np.int64(7), np.int32(7), np.uint8(7), np.float64(7), np.float32(7)])
def test_numpy_steps(tmp_path, step):
    torch.save({"state_dict": weights(), "global_step": step}, tmp_path / "a.pt")
    assert load_checkpoint(tmp_path / "a.pt").global_step == 7


@pytest.mark.parametrize("step", [np.float64("nan"), np.int64(-1), np.float32(1.5)])
def test_numpy_steps_that_are_none(tmp_path, step):
    torch.save({"state_dict": weights(), "global_step": step}, tmp_path / "a.pt")
    with pytest.raises(UserError, match="global_step is"):
        load_checkpoint(tmp_path / "a.pt")


@pytest.mark.parametrize("value", [np.zeros(2), np.str_("a"), np.datetime64("2020-01-01"), np.complex64(1)])
def test_other_numpy_objects_are_never_built(tmp_path, value):
    torch.save({"state_dict": weights(), "global_step": value}, tmp_path / "a.pt")
    with pytest.raises(UserError, match="holds Python objects besides weights"):
        load_checkpoint(tmp_path / "a.pt")
