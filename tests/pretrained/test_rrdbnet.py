"""RealESRGAN's network: names and shapes of its checkpoint, loading, and the wrapper for faces."""

import pytest
import torch

from latentsync.pretrained import rrdbnet
from latentsync.pretrained.rrdbnet import FaceUpscaler, RRDBNet
from latentsync.utils.errors import UserError
from tests.conformance.seeded import fill_


@pytest.fixture(scope="module")
def small() -> RRDBNet:
    return fill_(RRDBNet(width=8, blocks=1, growth=4)).eval()


def test_names_and_shapes_are_those_of_the_checkpoint():
    with torch.device("meta"):
        state = RRDBNet().state_dict()
    assert len(state) == 702 and sum(value.numel() for value in state.values()) == 16_697_987
    assert state["body.22.rdb3.conv5.weight"].shape == (64, 192, 3, 3)
    assert {"conv_first.weight", "conv_body.bias", "conv_up1.weight", "conv_up2.weight", "conv_hr.weight"} <= set(state)
    assert state["conv_last.bias"].shape == (3,)


def test_four_times_larger(small):
    with torch.no_grad():
        assert small(torch.rand(2, 3, 5, 7)).shape == (2, 3, 20, 28)


def test_faces_keep_their_range_and_do_not_depend_on_each_other(small):
    upscale = FaceUpscaler(small)
    faces = torch.rand(3, 3, 8, 8) * 2 - 1
    large = upscale(faces)
    assert large.shape == (3, 3, 32, 32) and large.abs().max() <= 1
    assert torch.equal(large[1:2], upscale(faces[1:2]))


@pytest.mark.parametrize("side", [24, 37])
def test_tiles_make_the_same_image(small, monkeypatch, side):
    upscale, faces = FaceUpscaler(small), torch.rand(1, 3, side, side) * 2 - 1
    whole = upscale(faces)
    monkeypatch.setattr(rrdbnet, "TILE", 12)
    monkeypatch.setattr(rrdbnet, "CONTEXT", 20)  # as far as this small network sees
    assert torch.allclose(upscale(faces), whole, atol=1e-5)
    monkeypatch.setattr(rrdbnet, "CONTEXT", 4)
    seam = (upscale(faces) - whole).abs()[..., 2:46, 2:46]  # the first tile of 12 x 4 pixels, less its edge
    assert seam[..., :16, :16].max() < 1e-5 < seam.max()


def test_the_checkpoint_loads_and_others_do_not(small, tmp_path, monkeypatch):
    monkeypatch.setattr(RRDBNet.__init__, "__defaults__", (8, 1, 4))
    torch.save({"params_ema": small.state_dict()}, tmp_path / "x4.pth")
    upscale = FaceUpscaler.from_pretrained(tmp_path / "x4.pth")
    assert torch.equal(upscale.net.conv_last.weight, small.conv_last.weight)
    torch.save({"params": {"conv_first.weight": torch.zeros(3)}}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="not the weights of RealESRGAN"):
        FaceUpscaler.from_pretrained(tmp_path / "other.pth")
    with pytest.raises(UserError, match="missing weights: RealESRGAN.*--model realesrgan"):
        FaceUpscaler.from_pretrained(tmp_path / "none.pth")
