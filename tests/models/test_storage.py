"""Weights in less memory: storage of each layer, accuracy, incompatible options."""

import pytest
import torch
from diffusers.hooks.group_offloading import ModuleGroup
from torch import Tensor

from latentsync.loading import ModelPaths, load_pipeline
from latentsync.models.storage import FP8, store_in_fp8, store_on_host
from latentsync.models.unet import UNet3DConditionModel
from latentsync.models.unet_config import UNetConfig
from latentsync.pipelines.lipsync_pipeline import LipsyncPipeline
from latentsync.utils.errors import UserError
from tests.conformance.seeded import fill_, seeded_input
from tests.tiny_model import UNET

CPU = torch.device("cpu")
GIVEN = torch.full((2, 64, 64, 3), 90, dtype=torch.uint8), torch.zeros(2, 30, 32)
FAST = {"inference_steps": 1, "guidance_scale": 1.0}


@pytest.fixture
def unet() -> UNet3DConditionModel:
    return fill_(UNet3DConditionModel(UNetConfig.from_dict(UNET))).eval()


@torch.no_grad()
def steps(unet: UNet3DConditionModel, count: int = 4) -> Tensor:
    """The predictions of some steps."""
    sample, audio = seeded_input("sample", (1, 13, 2, 8, 8)), seeded_input("audio", (1, 2, 30, 32))
    unet.reset_deepcache()
    return torch.stack([unet(sample, 900 - 100 * step, audio).sample for step in range(count)])


def test_layers_are_stored_in_8_bits(unet):
    expected, dtype, size = steps(unet), unet.dtype, sum(weight.nbytes for weight in unet.parameters())
    store_in_fp8(unet)
    found = steps(unet)
    error = (found - expected).norm() / expected.norm()
    assert 0 < error < 0.2
    assert torch.equal(steps(unet), found)  # not rounded again
    assert unet.dtype == dtype
    stored = {name for name, weight in unet.named_parameters() if weight.dtype == FP8}
    assert {name.rpartition(".")[0] for name in stored} == {
        name
        for name, layer in unet.named_modules()
        if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d)
        and not name.startswith(("conv_in", "conv_out", "time_embedding"))
    }
    assert sum(weight.nbytes for weight in unet.parameters()) < 0.5 * size


@pytest.mark.parametrize("deepcache", [False, True])
def test_every_layer_is_copied_when_it_runs(unet, monkeypatch, deepcache):
    """Offloading to the CPU itself copies nothing, so weights that are not on the device are set to NaN."""
    if deepcache:
        unet.enable_deepcache()
    expected = steps(unet)
    on_host: dict[Tensor, Tensor] = {}

    def tensors(group):
        inside = [tensor for module in group.modules for tensor in (*module.parameters(), *module.buffers())]
        return [*inside, *group.parameters, *group.buffers]

    def offload(group):
        for tensor in tensors(group):
            on_host.setdefault(tensor, tensor.data)
            tensor.data = torch.full_like(tensor.data, torch.nan)

    def onload(group):
        for tensor in tensors(group):
            tensor.data = on_host[tensor]

    monkeypatch.setattr(ModuleGroup, "offload_", offload)
    monkeypatch.setattr(ModuleGroup, "onload_", onload)
    store_on_host(unet, CPU)
    assert set(on_host) == {*unet.parameters(), *unet.buffers()}
    assert torch.equal(steps(unet), expected)


@pytest.mark.parametrize("weights, most", [("host", 0.0), ("fp8", 10.0)])
def test_a_pipeline_speaks(tiny_files, weights, most):
    paths = ModelPaths(**vars(tiny_files))
    expected = load_pipeline(paths, "cpu", low_memory=True).speak(*GIVEN, **FAST)
    pipeline = load_pipeline(paths, "cpu", low_memory=True, weights=weights)
    assert f"weights {weights}" in repr(pipeline)
    assert (pipeline.speak(*GIVEN, **FAST) - expected).abs().mean() <= most


@pytest.mark.parametrize(
    "change",
    [
        lambda pipeline: pipeline.to(torch.float16),
        LipsyncPipeline.compile,
        LipsyncPipeline.quantize,
        LipsyncPipeline.unload_lora_weights,
        lambda pipeline: pipeline.load_lora_weights("adapter.safetensors"),
        lambda pipeline: pipeline.use_devices(["cpu"]),
        lambda pipeline: pipeline.store_weights("host"),
    ],
)
def test_stored_weights_are_final(tiny_files, change):
    pipeline = load_pipeline(ModelPaths(**vars(tiny_files)), "cpu", weights="fp8").store_weights("fp8")
    with pytest.raises(UserError, match="weights fp8: the model can no longer be .*; load it again"):
        change(pipeline)


@pytest.mark.parametrize("device, compiled", [("cpu,cpu", False), ("cpu", True)])
def test_incompatible_options(tiny_files, device, compiled):
    with pytest.raises(UserError, match="weights host and (compile|several devices) exclude each other"):
        load_pipeline(ModelPaths(**vars(tiny_files)), device, weights="host", compile=compiled)
