"""FID's Inception-v3: figures of torch-fidelity 0.3.0 with seeded weights, names of the published file, loading."""

from pathlib import Path

import numpy as np
import pytest
import torch

from latentsync.metrics.fid import frame_features
from latentsync.pretrained.inception import FIDInception, resize_tf1
from latentsync.utils.errors import UserError
from tests.conformance.seeded import fill_

CASE = Path(__file__).resolve().parents[1] / "conformance" / "fid_inception.npz"


@pytest.fixture(scope="module")
def net() -> FIDInception:
    return fill_(FIDInception()).eval()


def test_features_agree_with_torch_fidelity(net):
    """The case: its FeatureExtractorInceptionV3 in eval mode, `fill_` weights, two random images of 32 x 32."""
    case = np.load(CASE)
    found = frame_features(net, case["pixels"].transpose(0, 2, 3, 1))
    assert found.shape == (2, 2048) and found.dtype == np.float32
    assert np.abs(found - case["features"]).max() < 1e-6


def test_names_and_shapes_are_those_of_the_published_file():
    with torch.device("meta"):
        state = FIDInception().state_dict()
    assert sum(value.numel() for name, value in state.items() if "running" not in name and "num" not in name) == (
        23_850_960  # torchvision's without its second classifier, and 1008 classes
    )
    assert state["fc.weight"].shape == (1008, 2048)
    assert state["Mixed_6e.branch7x7dbl_5.conv.weight"].shape == (192, 192, 1, 7)
    assert state["Mixed_7c.branch_pool.bn.running_var"].shape == (192,)


def test_a_file_with_or_without_counters_loads_and_others_do_not(net, tmp_path):
    state = net.state_dict()
    old = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    torch.save(old, tmp_path / "old.pth")
    loaded = FIDInception.from_pretrained(tmp_path / "old.pth")
    assert not loaded.training and torch.equal(loaded.fc.weight, net.fc.weight)
    old["extra.weight"] = old.pop("Mixed_5b.branch1x1.conv.weight")
    torch.save(old, tmp_path / "other.pth")
    with pytest.raises(UserError, match="not the weights of FID's Inception"):
        FIDInception.from_pretrained(tmp_path / "other.pth")
    with pytest.raises(UserError, match="missing weights.*latentsync download --model inception"):
        FIDInception.from_pretrained(tmp_path / "none.pth")


def test_resizing_has_no_half_pixel_centers():
    row = torch.arange(4.0).view(1, 1, 1, 4).expand(1, 1, 4, 4)
    assert resize_tf1(row, 8)[0, 0, 0].tolist() == [0, 0.5, 1, 1.5, 2, 2.5, 3, 3]
    assert torch.equal(resize_tf1(row, 4), row)
