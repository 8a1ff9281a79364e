"""Attention in half precision on a CPU."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from latentsync.models.attention import Attention
from tests.conformance.seeded import fill_, seeded_input


@pytest.mark.parametrize("autocast", [False, True])
def test_gradients_in_bfloat16_are_computed_in_float32(monkeypatch: pytest.MonkeyPatch, autocast: bool):
    seen: list[torch.dtype] = []
    attend = F.scaled_dot_product_attention

    def watched(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        seen.append(query.dtype)
        return attend(query, key, value)

    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    layer, x = fill_(Attention(32, 4)), seeded_input("x", (2, 6, 32))
    exact = layer(x)
    (expected,) = torch.autograd.grad(exact.square().sum(), layer.to_q.weight)
    half = layer if autocast else fill_(Attention(32, 4)).bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        result = half(x if autocast else x.bfloat16())
    (found,) = torch.autograd.grad(result.float().square().sum(), half.to_q.weight)
    assert result.dtype == torch.bfloat16 and seen == [torch.float32, torch.float32]
    assert (result - exact).abs().max() < 0.05 * exact.abs().max()
    assert (found - expected).norm() < 0.1 * expected.norm()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        half(x if autocast else x.bfloat16())
    assert seen[-1] == torch.bfloat16
