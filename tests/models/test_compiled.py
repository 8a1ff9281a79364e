"""Compiled UNets equal uncompiled ones, compile each shape once, and survive a failing compiler."""

from copy import deepcopy

import pytest
import torch
from torch import Tensor

from latentsync.loading import load_scheduler
from latentsync.models.compiled import Compiled, run_eagerly, use_channels_last
from latentsync.models.unet import UNet3DConditionModel
from latentsync.models.unet_config import UNetConfig
from latentsync.models.vae import LatentCodec
from latentsync.pipelines.denoise import denoise_latents
from tests.conformance.seeded import fill_, seeded_input
from tests.tiny_model import SCHEDULER, UNET, tiny_vae

STEPS = 6
# One level: it is traced in seconds.
SMALL = {
    **UNET,
    "block_out_channels": [32],
    "down_block_types": ["DownBlock3D"],
    "up_block_types": ["UpBlock3D"],
}


class CountingBackend:
    """Compiles nothing and counts the graphs that it is given."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph, inputs):
        self.graphs += 1
        return graph.forward


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()


@pytest.fixture
def unet() -> UNet3DConditionModel:
    return fill_(UNet3DConditionModel(UNetConfig.from_dict(SMALL))).eval()


def denoise(unet: UNet3DConditionModel, frames: int = 2) -> Tensor:
    latents = seeded_input("latents", (1, 4, frames, 8, 8), 0)
    noise = seeded_input("noise", (1, 4, 1, 8, 8), 0)
    audio = seeded_input("audio", (1, frames, 30, 32), 0)
    inputs = (load_scheduler(SCHEDULER), noise, torch.ones(1, 1, 1, 8, 8), latents, latents, audio)
    return denoise_latents(unet, *inputs, STEPS, 1.5, guidance_share=0.5)


def test_results_of_graphs_are_copied(monkeypatch):
    memory = torch.zeros(2)  # of the graph, written to by every call

    def replay(value: float) -> tuple[Tensor, int]:
        return memory.fill_(value), 7

    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    graph, kernels = Compiled(replay, mode="reduce-overhead"), Compiled(replay, mode="default")
    (first, number), (second, _) = graph(1.0), graph(2.0)
    assert first.tolist() == [1, 1] and second.tolist() == [2, 2] and number == 7
    assert kernels(3.0)[0] is memory


@pytest.mark.parametrize(
    "cached, graphs", [(False, 2), (True, 4)]
)  # with and without guidance; as many of cached steps
def test_each_shape_is_compiled_once(unet, cached, graphs):
    if cached:
        unet.enable_deepcache()
    expected, names = denoise(unet), list(unet.state_dict())
    backend = CountingBackend()
    unet.compile(backend=backend, fullgraph=True)
    for _ in range(2):
        assert torch.allclose(denoise(unet), expected, atol=1e-4)
        assert backend.graphs == graphs
    assert list(unet.state_dict()) == names


@pytest.mark.parametrize("frames", [1, 3])
def test_channels_last_weights_give_the_same(unet, frames):
    codec, pixels = LatentCodec(tiny_vae()), torch.tanh(seeded_input("pixels", (frames, 3, 64, 64)))
    expected = denoise(unet, frames), codec.encode(pixels), codec.decode(codec.encode(pixels))
    use_channels_last(unet)
    use_channels_last(codec)
    for convolution in (unet.conv_out, codec.vae.decoder.conv_out):
        assert not convolution.weight.is_contiguous()
    found = denoise(unet, frames), codec.encode(pixels), codec.decode(codec.encode(pixels))
    for value, other in zip(found, expected, strict=True):
        assert (value - other).abs().max() < 1e-4 * other.abs().max()


def test_a_copy_is_not_compiled(unet):
    backend = CountingBackend()
    unet.compile(backend=backend)
    copy = deepcopy(unet)
    with torch.no_grad():
        copy.conv_out.weight.zero_()
        copy.conv_out.bias.fill_(1)
    assert torch.equal(copy(torch.zeros(1, 13, 2, 8, 8), 1).sample, torch.ones(1, 4, 2, 8, 8))
    assert not backend.graphs


def test_a_compiled_unet_may_run_eagerly(unet):
    expected, backend = denoise(unet), CountingBackend()
    unet.compile(backend=backend)
    with run_eagerly():
        assert torch.equal(denoise(unet), expected)
    assert not backend.graphs


def test_a_failing_compiler_is_reported_once(unet, caplog):
    def broken(graph, inputs):
        raise RuntimeError("no compiler here")

    expected = denoise(unet)
    unet.compile(backend=broken)
    for _ in range(2):
        assert torch.equal(denoise(unet), expected)
    assert caplog.text.count("torch.compile failed, continuing without it") == 1 and "no compiler here" in caplog.text


def test_errors_of_the_function_are_passed_on(caplog):
    def fails(x: Tensor) -> Tensor:
        return x @ x

    with pytest.raises(RuntimeError):
        Compiled(fails, backend="eager")(torch.zeros(2, 3))


@pytest.mark.slow
def test_compiled_for_this_cpu(unet):
    """Takes about a minute; without a C++ compiler it runs uncompiled and is equal as well."""
    expected = denoise(unet)
    unet.compile()
    assert torch.allclose(denoise(unet), expected, atol=1e-4)
