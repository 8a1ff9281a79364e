"""S3FD: maps, anchors and decoding; its published weights are not at hand, seeded ones of the same layout are."""

import numpy as np
import pytest
import torch

from latentsync.pretrained.s3fd import S3FD, _anchors, _decode
from latentsync.utils.errors import UserError
from tests.conformance.seeded import fill_


@pytest.fixture(scope="module")
def net() -> S3FD:
    return fill_(S3FD(), 0).eval()


def test_layout(net):
    shapes = {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
    assert shapes["vgg.31.weight"] == (1024, 512, 3, 3) and shapes["vgg.33.weight"] == (1024, 1024, 1, 1)
    assert shapes["L2Norm3_3.weight"] == (256,) and shapes["extras.3.weight"] == (256, 128, 3, 3)
    assert [shapes[f"conf.{index}.bias"] for index in range(6)] == [(4,)] + [(2,)] * 5


def test_one_anchor_for_each_cell_of_six_maps(net):
    with torch.no_grad():
        boxes, scores = net(torch.randn(1, 3, 128, 192))
    cells = sum((128 // stride) * (192 // stride) for stride in (4, 8, 16, 32, 64)) + 2
    assert boxes.shape == (1, cells, 4) and scores.shape == (1, cells)
    assert (boxes[..., 2:] > boxes[..., :2]).all() and ((scores >= 0) & (scores <= 1)).all()


def test_without_offsets_the_anchors_come_back():
    anchors = _anchors(2, torch.Size([4, 6]), torch.Size([64, 96]))
    boxes = _decode(torch.zeros(1, 24, 4), anchors)[0] * torch.tensor([96, 64, 96, 64])
    assert boxes[0].tolist() == pytest.approx([-24, -24, 40, 40])  # about a 16 x 16 cell's middle
    assert boxes[7].tolist() == pytest.approx([-8, -8, 56, 56])
    moved = _decode(torch.tensor([[[1.0, 0, 0, 0]]]).expand(1, 24, 4), anchors)[0] * 96
    assert moved[0, 0] == pytest.approx(-24 + 6.4)  # a tenth of the anchor


def test_detect_gives_pixels_of_the_image_and_drops_doubles(net, monkeypatch):
    boxes = torch.tensor([[[0.1, 0.2, 0.3, 0.5], [0.1, 0.2, 0.31, 0.5], [0.6, 0.2, 0.8, 0.5], [0.4, 0.4, 0.5, 0.5]]])
    scores = torch.tensor([[0.95, 0.99, 0.92, 0.5]])
    seen = []
    monkeypatch.setattr(net, "forward", lambda images: seen.append(images) or (boxes, scores))
    found = net.detect(np.full((400, 800, 3), 200, np.uint8))
    assert seen[0].shape == (1, 3, 100, 200) and seen[0][0, :, 0, 0].tolist() == [77, 83, 96]
    np.testing.assert_allclose(found[:, :4], [[80, 80, 248, 200], [480, 80, 640, 200]], atol=1e-3)


def test_loading_is_strict(net, tmp_path):
    torch.save(net.state_dict() | {"more": torch.zeros(1)}, tmp_path / "sfd_face.pth")
    with pytest.raises(UserError, match="more"):
        S3FD.from_pretrained(tmp_path / "sfd_face.pth")
