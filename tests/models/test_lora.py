"""LoRA adapters: trained parameters, the file, merging, refused files."""

import json
import logging
import subprocess
import sys
from dataclasses import replace

import pytest
import safetensors
import torch
from safetensors.torch import save_file

from latentsync.checkpoints.loading import load_checkpoint, save_checkpoint
from latentsync.models.lora import PROJECTIONS, add_lora, find_projections, load_lora, lora_state_dict, save_lora
from latentsync.models.unet import UNet3DConditionModel
from latentsync.utils.errors import UserError
from tests.conformance.seeded import fill_, seeded_input

RANK, ALPHA = 3, 6.0


def plain(config) -> UNet3DConditionModel:
    return fill_(UNet3DConditionModel(config)).eval()


@pytest.fixture
def unet(tiny_config) -> UNet3DConditionModel:
    return plain(tiny_config)


@pytest.fixture(scope="module")
def trained(tiny_config) -> UNet3DConditionModel:
    """With an adapter whose B is no longer zero."""
    unet = plain(tiny_config)
    torch.manual_seed(0)
    for parameter in add_lora(unet, RANK, ALPHA):
        torch.nn.init.normal_(parameter, std=0.2)
    return unet


@pytest.fixture
def adapter(trained, tmp_path):
    path = tmp_path / "adapter.safetensors"
    save_lora(trained, path, base="base.pt", step=7)
    return path


@torch.no_grad()
def predict(unet: UNet3DConditionModel, step: int = 500) -> torch.Tensor:
    audio = seeded_input("audio", (1, 3, 5, unet.config.cross_attention_dim))
    return unet(seeded_input("sample", (1, 9, 3, 8, 8)), step, audio).sample


def rewrite(path, tensors=None, **metadata: str | None) -> None:
    """The same file with other tensors, other remarks (None: without it)."""
    old = load_checkpoint(path)
    remarks = {key: value for key, value in {**old.metadata, **metadata}.items() if value is not None}
    save_file(tensors if tensors is not None else {k: v.clone() for k, v in old.state_dict.items()}, path, remarks)


def test_a_fresh_adapter_changes_nothing_and_alone_is_trained(unet):
    before = predict(unet)
    names = find_projections(unet, PROJECTIONS)
    parameters = add_lora(unet, RANK, ALPHA)
    torch.testing.assert_close(predict(unet), before)
    assert len(parameters) == 2 * len(names) > 0
    assert {id(p) for p in parameters} == {id(p) for n, p in unet.named_parameters() if ".lora_" in n}
    assert not any(p.requires_grad for n, p in unet.named_parameters() if ".lora_" not in n)


def test_a_training_step_moves_the_adapter_and_nothing_else(unet):
    torch.manual_seed(0)
    parameters = add_lora(unet.train(), RANK, ALPHA)
    unet.enable_gradient_checkpointing()
    before = {name: value.clone() for name, value in unet.state_dict().items()}
    optimizer = torch.optim.SGD(parameters, lr=1.0)
    audio = seeded_input("audio", (1, 3, 5, unet.config.cross_attention_dim))
    unet(seeded_input("sample", (1, 9, 3, 8, 8)), 500, audio).sample.square().mean().backward()
    optimizer.step()
    changed = {name for name, value in unet.state_dict().items() if not torch.equal(value, before[name])}
    # A moves from the second step on: its gradient is a multiple of B, which starts at zero.
    assert changed == {name for name in before if ".lora_B." in name}


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (("attn1",), {"attn1"}),
        (("attn2", "attention_blocks"), {"attn2", "attention_blocks"}),
        (("to_q", "to_k", "to_v", "to_out.0"), {"attn1", "attn2", "attention_blocks"}),
        (("motion_modules.",), {"attention_blocks"}),
    ],
)
def test_targets(unet, targets, expected):
    names = find_projections(unet, targets)
    assert {part for name in names for part in ("attn1", "attn2", "attention_blocks") if part in name} == expected
    add_lora(unet, RANK, targets=targets)
    assert {name.rpartition(".lora_")[0] for name in lora_state_dict(unet)} == set(names)


@pytest.mark.parametrize("targets", [("attn",), ("attn1", "attn3"), (), ("conv_in",)])
def test_targets_that_are_not(unet, targets):
    with pytest.raises(UserError, match="no attention projection of this UNet|none given"):
        add_lora(unet, RANK, targets=targets)
    assert all(parameter.requires_grad for parameter in unet.parameters())


def test_motion_modules_are_no_target_without_them(tiny_config):
    with pytest.raises(UserError, match="'attention_blocks': no attention projection"):
        find_projections(UNet3DConditionModel(replace(tiny_config, use_motion_module=False)), ["attention_blocks"])


@pytest.mark.parametrize(("rank", "alpha"), [(0, 1.0), (4, 0.0), (4, float("nan"))])
def test_impossible_settings(unet, rank, alpha):
    with pytest.raises(UserError, match="must be"):
        add_lora(unet, rank, alpha)


def test_the_file(trained, adapter):
    with safetensors.safe_open(adapter, framework="pt") as file:
        metadata, names = file.metadata(), set(file.keys())
    assert (metadata["rank"], metadata["alpha"], metadata["base"]) == ("3", "6.0", "base.pt")
    assert metadata["global_step"] == "7" and json.loads(metadata["targets"]) == list(PROJECTIONS)
    name = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    assert {f"{name}.lora_A.weight", f"{name}.lora_B.weight"} <= names
    assert lora_state_dict(trained)[f"{name}.lora_A.weight"].shape == (RANK, trained.config.cross_attention_dim)


def test_averaged_weights_are_saved_where_given(trained, tmp_path):
    path = tmp_path / "average.safetensors"
    save_lora(trained, path, state={name: value * 0 for name, value in trained.state_dict().items()})
    assert not any(tensor.any() for tensor in load_checkpoint(path).state_dict.values())


def test_merged_equals_trained(trained, unet, adapter):
    names = list(unet.state_dict())
    info = load_lora(unet, adapter)
    assert (info.settings.rank, info.settings.alpha, info.base, info.step) == (RANK, ALPHA, "base.pt", 7)
    assert list(unet.state_dict()) == names
    assert not torch.allclose(predict(unet), predict(plain(unet.config)), atol=1e-3)
    torch.testing.assert_close(predict(unet), predict(trained), atol=2e-5, rtol=1e-4)


def test_scale(unet, adapter):
    load_lora(unet, adapter, scale=0.0)
    torch.testing.assert_close(predict(unet), predict(plain(unet.config)))
    once, halved = plain(unet.config), plain(unet.config)
    load_lora(once, adapter)
    load_lora(halved, adapter, scale=0.5)
    name = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"
    base, full, half = (model.state_dict()[name] for model in (unet, once, halved))
    torch.testing.assert_close(half - base, 0.5 * (full - base))
    with pytest.raises(UserError, match="must be a number"):
        load_lora(unet, adapter, scale=float("inf"))


def test_deepcache_keeps_working(unet, adapter):
    load_lora(unet, adapter)
    plain_steps = [predict(unet, step) for step in (900, 880)]
    with unet.deepcache(interval=2):
        unet.reset_deepcache()
        cached = [predict(unet, step) for step in (900, 880)]
    assert torch.equal(cached[0], plain_steps[0]) and not torch.equal(cached[1], plain_steps[1])


def test_weights_mapped_from_a_file_stay_as_they_are(unet, adapter, tmp_path):
    save_checkpoint(tmp_path / "unet.pt", unet.state_dict())
    content = (tmp_path / "unet.pt").read_bytes()
    loaded, _ = UNet3DConditionModel.from_pretrained(unet.config, tmp_path / "unet.pt", exact=True)
    load_lora(loaded, adapter)
    assert (tmp_path / "unet.pt").read_bytes() == content


def test_half_precision_weights_stay_so(unet, adapter):
    load_lora(unet.half(), adapter)
    assert {parameter.dtype for parameter in unet.parameters()} == {torch.float16}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cross_attention_dim": 12}, r"cross_attention_dim 6 instead of 12\); it was trained on base.pt"),
        ({"block_out_channels": (16, 16)}, r"block_out_channels \[8, 16\] instead of \[16, 16\]"),
        ({"attention_head_dim": 4}, "attention_head_dim 2 instead of 4"),  # leaves no trace in the shapes
        ({"use_motion_module": False}, "use_motion_module True instead of False"),
    ],
)
def test_another_architecture(tiny_config, adapter, change, message):
    with pytest.raises(UserError, match=f"is an adapter for another model .*{message}"):
        load_lora(plain(replace(tiny_config, **change)), adapter)


def test_another_resolution_of_the_same_architecture(tiny_config, adapter):
    load_lora(plain(replace(tiny_config, sample_size=16)), adapter)


def test_other_weights_are_said_in_the_log(unet, adapter, caplog):
    load_lora(unet, adapter)
    assert caplog.records == []
    with caplog.at_level(logging.WARNING):
        load_lora(unet, adapter)  # no longer the weights it was trained on
    assert "was trained on other weights of the same architecture (base.pt)" in caplog.text


def test_damaged_adapters(unet, adapter):
    original = load_checkpoint(adapter)
    tensors = {name: tensor.clone() for name, tensor in original.state_dict.items()}
    first = next(iter(tensors))
    for changed, message in (
        ({key: value for key, value in tensors.items() if key != first}, f"{first} is missing"),
        ({**tensors, first: torch.zeros(1, 1)}, "instead of"),
        ({**tensors, "conv_in.lora_A.weight": torch.zeros(1)}, "no projection for conv_in"),
    ):
        rewrite(adapter, changed, **original.metadata)
        with pytest.raises(UserError, match=message):
            load_lora(unet, adapter)
    for remarks, message in (
        ({"rank": "x"}, "metadata is damaged"),
        ({"model": "[1]"}, "metadata is damaged"),
        ({"targets": None}, "metadata is damaged"),
        ({"base_shapes": "0"}, "tensors of other names or shapes"),
        ({"format": None}, "is not a LoRA adapter of this project"),
    ):
        rewrite(adapter, tensors, **(original.metadata | remarks))
        with pytest.raises(UserError, match=message):
            load_lora(unet, adapter)
    torch.testing.assert_close(predict(unet), predict(plain(unet.config)))  # nothing was merged


def test_mixed_up_files(unet, adapter, tmp_path):
    save_checkpoint(tmp_path / "unet.pt", unet.state_dict())
    with pytest.raises(UserError, match="is not a LoRA adapter of this project; a whole UNet goes to"):
        load_lora(unet, tmp_path / "unet.pt")
    with pytest.raises(UserError, match="is a LoRA adapter, not a UNet; give it as --lora"):
        UNet3DConditionModel.from_pretrained(unet.config, adapter)
    with pytest.raises(UserError, match="no such checkpoint"):
        load_lora(unet, tmp_path / "none.safetensors")


def test_wrong_use(unet, trained, adapter):
    with pytest.raises(ValueError, match="has an adapter already"):
        add_lora(trained, RANK)
    with pytest.raises(ValueError, match="into a plain UNet"):
        load_lora(trained, adapter)
    with pytest.raises(ValueError, match="has no adapter"):
        save_lora(unet, adapter)
    with pytest.raises(ValueError, match="ends in .safetensors"):
        save_lora(trained, adapter.with_suffix(".pt"))


def test_without_peft(unet, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match="LoRA training needs peft"):
        add_lora(unet, RANK)


def test_merging_imports_no_peft(adapter):
    script = (
        "import sys; from latentsync.models.lora import load_lora; "
        "from latentsync.models.unet import UNet3DConditionModel, UNetConfig; "
        "import json; from latentsync.checkpoints.loading import load_checkpoint; "
        "config = json.loads(load_checkpoint(sys.argv[1]).metadata['model']); "
        "load_lora(UNet3DConditionModel.from_config(config), sys.argv[1]); "
        "print([name for name in ('peft', 'transformers', 'torchvision') if name in sys.modules])"
    )
    command = [sys.executable, "-c", script, str(adapter)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
