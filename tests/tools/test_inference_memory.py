"""Computed memory: of known operations, and in the documented order of the options."""

import pytest
import torch
from torch import nn

from latentsync.checkpoints.registry import GB, REGISTRY
from tools.benchmarks.full_size import FULL_SIZE, tiny
from tools.inference_memory import GIB, SETTINGS, peak_of, peaks

MIB = 2**20 / GIB


def test_live_bytes_of_known_operations():
    given = torch.empty(2**18, device="meta")  # 1 MiB, made before
    assert peak_of(lambda: given + 1) == MIB
    assert peak_of(lambda: (given + 1).view(2, -1)[0]) == MIB  # views take nothing
    assert peak_of(lambda: given.view(2, -1)) == 0
    assert peak_of(lambda: ((given + 1) + 1) + 1) == 2 * MIB  # the first is gone when the third is made
    assert peak_of(lambda: torch.stack([given + 1, given + 2])) == 4 * MIB


def test_weights_are_not_counted():
    layer = nn.Linear(512, 512, bias=False, device="meta")
    given = torch.empty(1, 512, device="meta")
    assert peak_of(lambda: layer(given), layer) == 512 * 4 / GIB


def test_attention_makes_only_its_result():
    query = torch.empty(1, 1, 1024, 16, device="meta")
    assert peak_of(lambda: nn.functional.scaled_dot_product_attention(query, query, query)) == query.nbytes / GIB


def test_options_of_less_memory_need_less():
    found = {name: peaks(tiny(), *settings) for name, settings in SETTINGS.items()}
    default, unguided, batched, efficient, in_8_bits, on_host = found.values()
    assert default["UNet"] == pytest.approx(2 * unguided["UNet"], rel=0.05)
    assert batched["UNet"] == pytest.approx(4 * default["UNet"], rel=0.05)
    assert efficient["decoder"] < default["decoder"] and efficient["encoder"] < default["encoder"]
    assert efficient["together"] < unguided["together"] <= default["together"] < batched["together"]
    assert on_host["weights"] < in_8_bits["weights"] < efficient["weights"]
    assert efficient["UNet"] <= in_8_bits["UNet"] < 1.5 * efficient["UNet"]  # a layer at a time is cast back


@pytest.mark.slow
@pytest.mark.parametrize("name", ["latentsync-1.5", "latentsync-1.6"])
def test_the_memory_of_the_model_table(name):
    settings = REGISTRY[name].model
    needed = peaks(FULL_SIZE[settings.resolution], *SETTINGS["default"])["together"] * GIB / GB
    assert needed + 2 <= settings.memory_gb < needed + 2.5
