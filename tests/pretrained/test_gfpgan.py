"""GFPGAN's network: names and shapes of its checkpoint, strict loading, the wrapper for faces; the one interface."""

import pytest
import torch
import torch.nn.functional as F

from latentsync.pretrained import enhancers, gfpgan, rrdbnet
from latentsync.pretrained.enhancers import open_enhancer
from latentsync.pretrained.gfpgan import GFPGAN, FaceRestorer
from latentsync.pretrained.rrdbnet import RRDBNet
from latentsync.pretrained.stylegan2_clean import ModulatedConv2d
from latentsync.utils.errors import UserError
from tests.conformance.seeded import fill_

CHANNELS = {4: 8, 8: 8, 16: 8, 32: 4, 64: 4}
CODES = 8


@pytest.fixture(scope="module")
def small() -> GFPGAN:
    net = GFPGAN(CHANNELS, CODES)
    fill_(net)
    return net.eval().requires_grad_(False)


def test_names_and_shapes_are_those_of_the_layout():
    with torch.device("meta"):
        shapes = {name: tuple(value.shape) for name, value in GFPGAN().state_dict().items()}
    assert len(shapes) == 285 and sum(torch.Size(shape).numel() for shape in shapes.values()) == 87_143_276
    expected = {
        "conv_body_first.weight": (32, 3, 1, 1),
        "conv_body_down.0.conv2.weight": (64, 32, 3, 3),
        "conv_body_down.6.skip.weight": (256, 256, 1, 1),
        "final_conv.weight": (256, 256, 3, 3),
        "conv_body_up.6.conv1.weight": (64, 64, 3, 3),
        "toRGB.6.weight": (3, 32, 1, 1),
        "final_linear.weight": (16 * 512, 256 * 16),
        "stylegan_decoder.style_mlp.15.weight": (512, 512),
        "stylegan_decoder.constant_input.weight": (1, 512, 4, 4),
        "stylegan_decoder.style_conv1.modulated_conv.weight": (1, 512, 512, 3, 3),
        "stylegan_decoder.style_conv1.modulated_conv.modulation.bias": (512,),
        "stylegan_decoder.style_convs.13.weight": (1,),
        "stylegan_decoder.style_convs.13.bias": (1, 64, 1, 1),
        "stylegan_decoder.to_rgbs.6.modulated_conv.weight": (1, 3, 64, 1, 1),
        "stylegan_decoder.noises.noise0": (1, 1, 4, 4),
        "stylegan_decoder.noises.noise14": (1, 1, 512, 512),
        "condition_scale.0.2.weight": (256, 256, 3, 3),
        "condition_shift.6.0.bias": (32,),
    }
    assert {name: shapes[name] for name in expected} == expected


def test_the_modulated_convolution_is_that_of_each_image_alone():
    conv = fill_(ModulatedConv2d(4, 6, 3, CODES, demodulate=True, factor=2))
    x, styles = torch.randn(2, 4, 5, 5), torch.randn(2, CODES)
    with torch.no_grad():
        both = conv(x, styles)
        scaled = conv.weight[0] * conv.modulation(styles[1])[None, :, None, None]
        kernel = scaled / scaled.square().sum(dim=(1, 2, 3), keepdim=True).sqrt()
        enlarged = F.interpolate(x[1:], scale_factor=2, mode="bilinear")
        alone = F.conv2d(enlarged, kernel, padding=1)
    assert both.shape == (2, 6, 10, 10) and torch.allclose(both[1:], alone, atol=1e-5)


def test_the_image_follows_the_input_and_is_the_same_every_time(small):
    faces = torch.rand(2, 3, 64, 64) * 2 - 1
    made = small(faces)
    assert made.shape == (2, 3, 64, 64) and torch.equal(made, small(faces))  # the noise is the stored one
    assert torch.allclose(made[1:], small(faces[1:]), atol=1e-5)
    assert (made[0] - made[1]).abs().mean() > 1e-3


def test_the_checkpoint_loads_strictly(small, tmp_path, monkeypatch):
    monkeypatch.setattr(GFPGAN.__init__, "__defaults__", (CHANNELS, CODES))
    state = small.state_dict()
    torch.save({"params_ema": state}, tmp_path / "v1.4.pth")
    net = FaceRestorer.from_pretrained(tmp_path / "v1.4.pth").net
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    for name, value in (("toRGB.0.bias", None), ("stray.weight", torch.zeros(1))):
        changed = {**state, name: value} if value is not None else {k: v for k, v in state.items() if k != name}
        torch.save({"params_ema": changed}, tmp_path / "other.pth")
        with pytest.raises(UserError, match=name):
            FaceRestorer.from_pretrained(tmp_path / "other.pth")


@pytest.mark.parametrize("side", [32, 64])
def test_faces_are_framed_for_the_network_and_come_back(small, side):
    faces = torch.rand(2, 3, side, side) * 2 - 1
    restored = FaceRestorer(small)(faces)
    height = round(gfpgan.HEIGHT * small.side / gfpgan.SIDE)
    assert restored.shape == (2, 3, max(side, height), max(side, height)) and restored.abs().max() <= 1


def test_framing_alone_changes_nothing_but_the_sharpness(small, monkeypatch):
    restorer = FaceRestorer(small)
    monkeypatch.setattr(small, "forward", lambda framed: framed)
    smooth = F.interpolate(torch.rand(1, 3, 4, 4), (50, 50), mode="bicubic").clamp(0, 1)
    assert (restorer(smooth) - smooth).abs().max() < 0.05


def test_one_interface(small, tmp_path, monkeypatch):
    monkeypatch.setattr(GFPGAN.__init__, "__defaults__", (CHANNELS, CODES))
    monkeypatch.setattr(RRDBNet.__init__, "__defaults__", (8, 1, 4))
    torch.save({"params_ema": small.state_dict()}, tmp_path / "v1.4.pth")
    torch.save({"params_ema": fill_(RRDBNet(8, 1, 4)).state_dict()}, tmp_path / "x4.pth")
    for module, cls, name in ((gfpgan, FaceRestorer, "v1.4"), (rrdbnet, rrdbnet.FaceUpscaler, "x4")):
        monkeypatch.setattr(cls.from_pretrained.__func__, "__defaults__", (tmp_path / f"{name}.pth",))
        assert module.CHECKPOINT.parent.name == "auxiliary"
    for name in enhancers.ENHANCERS:
        enhancer = open_enhancer(name).to("cpu", torch.float32)
        large = enhancer(torch.zeros(1, 3, 32, 32))
        assert enhancer.name == name and large.shape[-1] >= 32 and large.abs().max() <= 1


def test_without_weights_the_message_names_the_alternative():
    for name in enhancers.ENHANCERS:
        with pytest.raises(
            UserError, match=rf"checkpoints/auxiliary/.*missing weights.*--model {name}`, or use .*--sharpness_factor"
        ):
            open_enhancer(name)
    with pytest.raises(UserError, match="choose one of realesrgan, gfpgan"):
        open_enhancer("codeformer")
