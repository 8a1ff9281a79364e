"""PatchGAN: receptive field, bounded slope, sizes."""

import pytest
import torch

from latentsync.models.patchgan import PatchDiscriminator


@pytest.mark.parametrize("halvings, patch", [(1, 16), (2, 34), (3, 70)])
def test_a_logit_sees_its_patch_and_no_more(halvings, patch):
    torch.manual_seed(0)
    image = torch.zeros(1, 3, 96, 96, requires_grad=True)
    logits = PatchDiscriminator(4, halvings).eval()(image)
    logits[0, 0, logits.shape[2] // 2, logits.shape[3] // 2].backward()
    rows = image.grad.abs().sum(dim=(0, 1, 3)).nonzero()
    assert int(rows.max() - rows.min()) + 1 == patch


@pytest.mark.parametrize("size, halvings", [((18, 28), 2), ((37, 56), 3), ((74, 112), 3), ((8, 9), 1)])
def test_the_largest_patches_that_fit(size, halvings):
    net = PatchDiscriminator.for_images(*size, channels_wide=4)
    assert net.halvings == halvings
    logits = net(torch.zeros(2, 3, *size))
    assert logits.shape[:2] == (2, 1) and logits[0].numel() > 1


def test_images_do_not_depend_on_each_other():
    torch.manual_seed(0)
    net, images = PatchDiscriminator(4, 2).eval(), torch.randn(3, 3, 20, 20)
    torch.testing.assert_close(net(images)[1:2], net(images[1:2]))


def test_weights_are_spectrally_normalized():
    torch.manual_seed(0)
    net = PatchDiscriminator(4, 1)
    for _ in range(20):
        net(torch.zeros(1, 3, 8, 8))
    slope = torch.linalg.matrix_norm(net.layers[1].weight.detach().flatten(1), 2)
    assert slope.item() == pytest.approx(1, abs=0.05)


def test_too_small_images_are_reported():
    with pytest.raises(ValueError, match="needs images of 32 pixels"):
        PatchDiscriminator(4, 3)(torch.zeros(1, 3, 20, 40))
    with pytest.raises(ValueError, match="no PatchGAN for images of 7 x 20"):
        PatchDiscriminator.for_images(7, 20)
    with pytest.raises(ValueError, match="halvings"):
        PatchDiscriminator(4, 4)
