"""The linear encoder of the embedded model: principal components of 16x16 patches that extend the first generation's.

The first 16 channels are exactly the latents of the 128 px model: its 8x8 patches of the image at half the size. The
others are principal components of the residual, so that a UNet and SyncNets trained on the former keep their
meaning. Legend: N images, C channels, P = 3 * 16 * 16 values of a patch, order color, row, column.
"""

import torch
from diffusers import AutoencoderKL
from einops import rearrange
from torch import Tensor, nn

from latentsync.models.patch_autoencoder import COLORS, PatchAutoencoder
from latentsync.utils.errors import UserError

PATCH = 16
LINEAR_TOLERANCE = 1e-3  # of the largest latent


@torch.no_grad()
def linear_patches(vae: AutoencoderKL, factor: int) -> nn.Conv2d:
    """The mean of a linear encoder as one convolution over patches of `factor` pixels, measured with unit impulses.

    Raises:
        UserError: the encoder is not linear.
    """

    def encode(images: Tensor) -> Tensor:
        return vae.encode(images).latent_dist.mean

    image = 2 * torch.rand(1, 3, 2 * factor, 2 * factor, generator=torch.Generator().manual_seed(0)) - 1
    encoded, at_zero = encode(image), encode(torch.zeros(1, 3, factor, factor))
    pixels = torch.eye(3 * factor**2).unflatten(1, (3, factor, factor))
    patches = nn.Conv2d(3, encoded.shape[1], factor, factor).requires_grad_(False)
    bias = at_zero[0, :, 0, 0]
    patches.get_parameter("bias").copy_(bias)
    patches.weight.copy_((encode(pixels).flatten(1) - bias).T.unflatten(1, (3, factor, factor)))
    if not torch.allclose(patches(image), encoded, rtol=0, atol=LINEAR_TOLERANCE * float(encoded.abs().max())):
        raise UserError("the encoder of this autoencoder is not linear; give that of the first generation")
    return patches


@torch.no_grad()
def enlarged_basis(patches: nn.Conv2d, scale: float, shift: float) -> tuple[Tensor, Tensor]:
    """The encoder of 8x8 patches at half the size as one of 16x16 patches: weight (C, P), bias (C,), scaled latents."""
    halves = rearrange(patches.weight, "c k y x -> c k y 1 x 1").expand(-1, -1, -1, 2, -1, 2) / 4
    weight = rearrange(halves, "c k y a x b -> c (k y a x b)") * scale
    return weight, (patches.bias - shift) * scale


@torch.no_grad()
def residual_basis(images: Tensor, base: Tensor, channels: int, scale: float) -> tuple[Tensor, Tensor]:
    """Leading principal components of the residual of `base` (C, P) on patches of images (N, 3, R, R) in [-1, 1].

    Each is divided by the root of its standard deviation, as the first generation's are: per unit of the image's
    energy, so that old and new channels count alike.

    Returns:
        weight (channels, P), bias (channels,).
    """
    x = rearrange(images, "n k (h y) (w x) -> (n h w) (k y x)", y=PATCH, x=PATCH).double()
    mean = x.mean(dim=0)
    span = torch.linalg.qr(base.double().T).Q
    x = x - mean
    x = x - (x @ span) @ span.T
    variances, vectors = torch.linalg.eigh(x.T @ x / len(x))
    leading = vectors[:, -channels:].flip(1).T
    # A pixel of the old image is the mean of four: its patches have half the norm.
    halved = variances[-channels:].flip(0).sqrt() / 2
    weight = leading / 2 * scale / halved[:, None].sqrt()
    return weight.float(), -(weight @ mean).float()


@torch.no_grad()
def set_linear(autoencoder: PatchAutoencoder, weight: Tensor, bias: Tensor) -> None:
    """Make `weight` (C, P) and `bias` (C,) the encoder, and its least-squares inverse the decoder's linear part.

    The rest of the decoder starts by adding nothing.
    """
    shape = (-1, COLORS, PATCH, PATCH)
    autoencoder.encoder.weight.copy_(weight.unflatten(1, shape[1:]))
    autoencoder.encoder.bias.copy_(bias)
    inverse = torch.linalg.pinv(weight.double()).float()  # (P, C)
    linear = autoencoder.decoder.linear
    linear.weight.copy_(inverse.T.unflatten(1, shape[1:]))
    linear.bias.zero_()
    constant = rearrange(-(inverse @ bias), "(k p) -> k p", k=COLORS).mean(dim=1)
    linear.bias.copy_(constant)
