"""DeepCache: skipped and cached layers, and when it is off."""

import pytest
import torch

from latentsync.models.deepcache import DeepCache
from latentsync.models.unet import UNet3DConditionModel
from latentsync.utils.errors import UserError
from tests.conformance.seeded import fill_, seeded_input


@pytest.fixture
def unet(tiny_config) -> UNet3DConditionModel:
    return fill_(UNet3DConditionModel(tiny_config)).eval()


@pytest.fixture
def audio(tiny_config) -> torch.Tensor:
    return seeded_input("audio", (1, 3, 5, tiny_config.cross_attention_dim))


def run(unet: UNet3DConditionModel, audio: torch.Tensor, steps: int = 4) -> list[torch.Tensor]:
    """Predictions of a sampling run whose sample moves a little at every step."""
    unet.reset_deepcache()
    sample, drift = (seeded_input(name, (1, 9, 3, 8, 8)) for name in ("sample", "drift"))
    with torch.no_grad():
        return [unet(sample + 0.01 * step * drift, 900 - 20 * step, audio).sample for step in range(steps)]


def count_calls(module: torch.nn.Module) -> list[int]:
    calls: list[int] = []
    module.register_forward_hook(lambda *_: calls.append(1))
    return calls


@pytest.mark.parametrize("branch", [0, 1, 2])
def test_interval_one_equals_no_cache(unet, audio, branch):
    plain = run(unet, audio)
    with unet.deepcache(interval=1, branch=branch):
        cached = run(unet, audio)
    for expected, given in zip(plain, cached, strict=True):
        assert torch.equal(expected, given)


@pytest.mark.parametrize("branch", [0, 1, 2])
def test_steps_between_skip_the_deep_layers(unet, audio, branch):
    deep = [count_calls(module) for module in (unet.mid_block, unet.down_blocks[1], unet.up_blocks[0])]
    down = [count_calls(resnet) for resnet in unet.down_blocks[0].resnets]
    up = [count_calls(resnet) for resnet in unet.up_blocks[-1].resnets]
    unet.enable_deepcache(interval=3, branch=branch)
    run(unet, audio, steps=7)  # whole at 0, 3 and 6
    assert [len(calls) for calls in deep] == [3, 3, 3]
    assert [len(calls) for calls in down] == [7 if index < branch else 3 for index in range(2)]
    assert [len(calls) for calls in up] == [3 if index < 2 - branch else 7 for index in range(3)]


def test_whole_steps_are_exact_and_those_between_are_not(unet, audio):
    plain = run(unet, audio)
    with unet.deepcache(interval=3):
        cached = run(unet, audio)
    assert torch.equal(cached[0], plain[0]) and torch.equal(cached[3], plain[3])
    assert not torch.equal(cached[1], plain[1]) and not torch.equal(cached[2], plain[2])


def test_same_input_between_steps_gives_the_same_output(unet, audio):
    sample = seeded_input("sample", (1, 9, 3, 8, 8))
    with unet.deepcache(interval=2), torch.no_grad():
        whole, between = (unet(sample, 500, audio).sample for _ in range(2))
    torch.testing.assert_close(between, whole)


def test_reset_and_new_shapes_run_whole(unet, audio):
    calls = count_calls(unet.mid_block)
    sample = seeded_input("sample", (1, 9, 3, 8, 8))
    unet.enable_deepcache(interval=3)
    with torch.no_grad():
        unet(sample, 500, audio)
        unet.reset_deepcache()
        unet(sample, 500, audio)
        unet(sample[:, :, :2], 480, audio[:, :2])  # a shorter last chunk
        unet(sample[:, :, :2], 460, audio[:, :2])
    assert len(calls) == 3


def test_gradients_never_see_the_cache(unet, audio):
    calls = count_calls(unet.mid_block)
    unet.enable_deepcache(interval=3)
    for _ in range(2):
        unet(seeded_input("sample", (1, 9, 3, 8, 8)), 500, audio)
    assert len(calls) == 2


def test_disable_and_context_restore(unet, audio):
    calls = count_calls(unet.mid_block)
    with unet.deepcache():
        pass
    run(unet, audio, steps=2)
    unet.enable_deepcache()
    unet.disable_deepcache()
    run(unet, audio, steps=2)
    assert len(calls) == 4


def test_bad_settings_are_refused(unet):
    with pytest.raises(UserError, match="interval must be at least 1"):
        DeepCache(interval=0)
    with pytest.raises(UserError, match="branch must be at least 0"):
        DeepCache(branch=-1)
    with pytest.raises(UserError, match="branch must be 0 to 2, got 3"):
        unet.enable_deepcache(branch=3)
