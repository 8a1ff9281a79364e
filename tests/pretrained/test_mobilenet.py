"""MobileNetV2 features: against transformers' implementation, and strictly loaded."""

import pytest
import torch
from transformers import MobileNetV2Config, MobileNetV2Model

from latentsync.pretrained.mobilenet import FEATURE_LAYERS, MobileNetDistance, MobileNetV2Trunk, find_weights
from latentsync.utils.errors import UserError


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    """Random weights and statistics of the right shapes."""
    generator = torch.Generator().manual_seed(0)
    trunk = MobileNetV2Trunk()
    found = {}
    for name, tensor in trunk.state_dict().items():
        if name.endswith("running_var"):
            found[name] = torch.rand(tensor.shape, generator=generator) + 0.5
        elif tensor.is_floating_point():
            scale = tensor[0].numel() ** -0.5 if tensor.ndim == 4 else 0.5
            found[name] = torch.randn(tensor.shape, generator=generator) * scale * 1.5
        else:
            found[name] = tensor
    return found


def theirs(state: dict[str, torch.Tensor]) -> tuple[MobileNetV2Model, dict[str, torch.Tensor]]:
    """The same tensors under the names of transformers' model, whose modules come in the same order."""
    model = MobileNetV2Model(MobileNetV2Config(tf_padding=False, finegrained_output=False, layer_norm_eps=1e-5))
    names = [name for name in model.state_dict() if not name.startswith("conv_1x1")]
    assert len(names) == len(state)
    return model, dict(zip(names, state.values(), strict=True))


def test_features_agree_with_transformers(state):
    model, renamed = theirs(state)
    model.load_state_dict(renamed, strict=False)
    pixels = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        stem = model.eval().conv_stem(pixels)  # their hidden states begin after it
        expected = [stem, *model(pixels, output_hidden_states=True).hidden_states]
        trunk = MobileNetV2Trunk()
        trunk.load_state_dict(state)
        maps = trunk.eval()(pixels)
    assert [tuple(map_.shape[1:]) for map_ in maps] == [
        (16, 32, 48),
        (24, 16, 24),
        (32, 8, 12),
        (96, 4, 6),
        (320, 2, 3),
    ]
    for map_, layer in zip(maps, FEATURE_LAYERS, strict=True):
        torch.testing.assert_close(map_, expected[layer - 1], rtol=1e-4, atol=1e-4)


def test_distance_is_symmetric_and_zero_for_equal_images(state):
    distance = MobileNetDistance(state)
    first, second = torch.rand(2, 3, 3, 64, 64, generator=torch.Generator().manual_seed(2)) * 2 - 1
    assert distance(first, first).abs().max() == 0
    assert distance(first, second).shape == (3, 1, 1, 1) and (distance(first, second) > 0).all()
    torch.testing.assert_close(distance(first, second), distance(second, first))
    assert not distance.train().trunk.training


def test_only_gradients_of_the_images_are_kept(state):
    distance = MobileNetDistance(state)
    image = torch.zeros(1, 3, 32, 32, requires_grad=True)
    distance(image, torch.ones(1, 3, 32, 32)).sum().backward()
    assert image.grad.abs().sum() > 0
    assert all(not parameter.requires_grad for parameter in distance.parameters())


def test_other_weights_and_small_images_are_refused(state):
    unused = {"features.18.0.weight": torch.zeros(1280, 320, 1, 1), "classifier.1.bias": torch.zeros(1000)}
    assert isinstance(MobileNetDistance(state | unused), MobileNetDistance)
    missing = dict(list(state.items())[1:])
    for wrong in (missing, state | {"head.weight": torch.zeros(1)}):
        with pytest.raises(UserError, match="not the weights of torchvision's MobileNetV2"):
            MobileNetDistance(wrong)
    with pytest.raises(ValueError, match="at least 32 pixels"):
        MobileNetDistance(state).features(torch.zeros(1, 3, 16, 64))


@pytest.mark.skipif(find_weights() is None, reason="needs the package of MobileNetV2's weights")
def test_published_weights_grade_blur():
    """More blur, more distance."""
    distance = MobileNetDistance()
    image = torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(3)) * 2 - 1
    blurred = [torch.nn.functional.avg_pool2d(image, size, 1, size // 2, count_include_pad=False) for size in (3, 7)]
    near, far = (distance(image, other).item() for other in blurred)
    assert 0 < near < far
