"""hyperIQA's layout and arithmetic on seeded weights; its public file was not at hand."""

import pytest
import torch

from latentsync.metrics.image_quality import HyperIQAMetric
from latentsync.pretrained.hyperiqa import HyperIQA
from latentsync.utils.errors import UserError
from tests.conformance.seeded import fill_, seeded_input


@pytest.fixture(scope="module")
def net() -> HyperIQA:
    return fill_(HyperIQA(), 0).eval()


def test_layout(net):
    shapes = {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
    assert shapes["res.layer4.2.conv3.weight"] == (2048, 512, 1, 1)
    assert shapes["res.layer1.0.downsample.0.weight"] == (256, 64, 1, 1)
    assert shapes["res.lda1_fc.weight"] == (16, 1024) and shapes["res.lda4_fc.weight"] == (176, 2048)
    assert shapes["fc1w_conv.weight"] == (512, 112, 3, 3) and shapes["fc4w_conv.weight"] == (8, 112, 3, 3)
    assert shapes["fc5w_fc.weight"] == (14, 112) and shapes["fc5b_fc.weight"] == (1, 112)


@torch.no_grad()
def test_each_image_has_a_scorer_of_its_own(net):
    images = seeded_input("pictures", (2, 3, 224, 224))
    both = net(images)
    assert both.shape == (2,)
    assert torch.allclose(both, torch.cat([net(images[:1]), net(images[1:])]), atol=1e-4)
    assert both[0] != both[1]


def test_loading_is_strict_and_the_metric_takes_any_size(net, tmp_path):
    path = tmp_path / "koniq_pretrained.pkl"
    torch.save(net.state_dict(), path)
    image = torch.randint(0, 256, (96, 96, 3), dtype=torch.uint8).numpy()
    metric = HyperIQAMetric(path)
    assert metric.compute(image) == pytest.approx(metric.compute(image))
    torch.save({name: tensor for name, tensor in net.state_dict().items() if name != "fc5b_fc.bias"}, path)
    with pytest.raises(UserError, match=r"fc5b_fc\.bias"):
        HyperIQAMetric(path)
