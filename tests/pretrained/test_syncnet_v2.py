"""The published evaluation SyncNet against recorded figures, names and shapes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from latentsync.pretrained.syncnet_v2 import SyncNetV2
from latentsync.utils.errors import UserError
from tests.conformance.seeded import fill_, seeded_input

CONFORMANCE = Path(__file__).parents[1] / "conformance"


@pytest.fixture(scope="module")
def net() -> SyncNetV2:
    return fill_(SyncNetV2(), 0).eval()


def test_names_and_shapes_are_the_published_ones(net):
    shapes = json.loads((CONFORMANCE / "state_dicts.json").read_text())["syncnet_v2"]
    assert {name: list(tensor.shape) for name, tensor in net.state_dict().items()} == shapes


def test_conformance(net):
    with np.load(CONFORMANCE / "syncnet_v2.npz") as case:
        meta = json.loads(str(case["meta"]))
        expected = case["lip"], case["aud"]
    scale, shift = meta["lip_scale"]
    faces = seeded_input("lip", tuple(meta["lip"]), meta["seed"]) * scale + shift
    audio = seeded_input("mfcc", tuple(meta["mfcc"]), meta["seed"]) * meta["mfcc_scale"]
    with torch.no_grad():
        embeds = net(faces, audio)
    for got, wanted in zip(embeds, expected, strict=True):
        np.testing.assert_allclose(got.numpy(), wanted, atol=1e-3 * abs(wanted).max())


def test_a_bare_state_dict_is_loaded_and_another_refused(net, tmp_path):
    path = tmp_path / "syncnet_v2.model"
    torch.save(net.state_dict(), path)
    loaded = SyncNetV2.from_pretrained(path)
    assert not loaded.training
    assert all(torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), net.state_dict().values(), strict=True))
    state = net.state_dict()
    state.pop("netfclip.3.bias")
    torch.save(state, path)
    with pytest.raises(UserError, match=r"netfclip\.3\.bias"):
        SyncNetV2.from_pretrained(path)
