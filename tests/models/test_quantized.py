"""Linear layers in 8 bits: which ones, the error of the result, and the message without torchao."""

import sys

import pytest
import torch
from torch import Tensor

from latentsync.models import quantized
from latentsync.models.quantized import multiplies_int8, quantize_linear_layers
from latentsync.models.unet import UNet3DConditionModel
from latentsync.models.unet_config import UNetConfig
from latentsync.utils.errors import UserError
from tests.conformance.seeded import fill_, seeded_input
from tests.tiny_model import UNET

needs_int8 = pytest.mark.skipif(not multiplies_int8(), reason="the CPU does not multiply int8 exactly")


@pytest.fixture
def unet() -> UNet3DConditionModel:
    return fill_(UNet3DConditionModel(UNetConfig.from_dict(UNET))).eval()


@torch.no_grad()
def predict(unet: UNet3DConditionModel) -> Tensor:
    sample, audio = seeded_input("sample", (1, 13, 2, 8, 8)), seeded_input("audio", (1, 2, 30, 32))
    return unet(sample, 500, audio).sample


@needs_int8
def test_attention_and_feed_forward_layers_are_rounded(unet):
    torchao = pytest.importorskip("torchao.utils")
    expected, names = predict(unet), list(unet.state_dict())
    assert quantize_linear_layers(unet) == "int8"
    changed = {name for name, weight in unet.named_parameters() if isinstance(weight, torchao.TorchAOBaseTensor)}
    attention = ("to_q.weight", "to_k.weight", "to_v.weight", "to_out.0.weight")
    assert changed and all(name.endswith(attention) or ".ff.net." in name for name in changed)
    assert any(".ff.net." in name for name in changed) and any("attn2.to_k" in name for name in changed)
    assert list(unet.state_dict()) == names
    error = (predict(unet) - expected).norm() / expected.norm()
    assert 0 < error < 0.1


@needs_int8
def test_a_pipeline_speaks_in_8_bits(tiny_files):
    pytest.importorskip("torchao")
    from latentsync.loading import ModelPaths, load_pipeline

    paths = ModelPaths(**vars(tiny_files))
    faces, tokens = torch.full((2, 64, 64, 3), 90, dtype=torch.uint8), torch.zeros(2, 30, 32)
    options = {"inference_steps": 1, "guidance_scale": 1.0}
    expected = load_pipeline(paths, "cpu").speak(faces, tokens, **options)
    pipeline = load_pipeline(paths, "cpu", quantize=True)
    assert "quantized" in repr(pipeline)
    assert 0 < (pipeline.speak(faces, tokens, **options) - expected).abs().mean() < 10
    with pytest.raises(UserError, match="before the model is quantized"):
        pipeline.load_lora_weights("adapter.safetensors")


def test_without_torchao(unet, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(UserError, match="lowbit"):
        quantize_linear_layers(unet)


def test_a_cpu_that_multiplies_wrongly_is_refused(unet, monkeypatch):
    pytest.importorskip("torchao")
    monkeypatch.setattr(quantized, "multiplies_int8", lambda: False)
    with pytest.raises(UserError, match="no exact int8 multiplication"):
        quantize_linear_layers(unet)
