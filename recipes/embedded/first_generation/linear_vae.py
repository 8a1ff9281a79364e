"""Initial weights of an autoencoder, set by hand: diffusers' `AutoencoderKL` that encodes exactly linearly.

The encoder is set to be exactly linear: the leading principal components of 8x8 color patches (Karhunen-Loeve,
the linear code of that size with the least error). The decoder starts as a smooth enlargement of each
patch's mean color and learns the rest. Training both from random weights takes many times longer.

Two facts make a network of group norms and SiLUs linear. silu(z) - silu(-z) = z, so a signal travels as a pair of
channels. And a group that also holds constants of +A and -A, large against the signal, is normalized by A alone.

Legend: N images, P pixels of a patch times 3, C latent channels.
"""

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn

from latentsync.constants import RGB
from latentsync.utils.light_diffusers import AutoencoderKL

PATCH = 8
ENCODER_CONSTANT = 100.0
DECODER_CONSTANT = 10.0
LOG_VARIANCE = -10.0  # of the posterior: encoding is deterministic for all purposes


@dataclass(frozen=True)
class PatchCode:
    """Latents of a patch x (P,): `basis @ (x - mean)`; basis (C, P), mean (P,), order of P: row, column, color."""

    basis: Tensor
    mean: Tensor


def fit_patch_code(images: Tensor, channels: int, whitening: float = 0.5) -> PatchCode:
    """Principal components of the 8x8 patches of images (N, 3, H, W) in [-1, 1].

    Component j, of standard deviation d_j, is divided by d_j ** whitening: 0 keeps pixel distances, 1 makes all
    components count alike. With values between, noise affects fine detail more than color, as in a learned latent
    space, without hiding it.
    """
    patches = rearrange(images, "n c (h y) (w x) -> (n h w) (y x c)", y=PATCH, x=PATCH)
    mean = patches.mean(dim=0)
    centered = (patches - mean).double()
    variances, vectors = torch.linalg.eigh(centered.T @ centered / len(centered))
    leading = vectors[:, -channels:].flip(1).T
    deviations = variances[-channels:].flip(0).sqrt()
    return PatchCode((leading / deviations[:, None] ** whitening).float(), mean)


def pairs_per_group(width: int, groups: int, signals: int) -> int:
    pairs = -(-signals // groups)
    if 2 * pairs + 2 > width // groups or (width // groups) % 2:
        raise ValueError(f"{signals} signals do not fit into {groups} groups of {width // groups} channels")
    return pairs


def pair_layout(
    width: int, groups: int, signals: int, constant: float, pairs: int | None = None
) -> tuple[Tensor, Tensor, Tensor, float]:
    """Where signals go: weight (width, signals) of +1 and -1, bias (width,) of the constants, the mask (width,)
    of channels in use, and the standard deviation their groups are normalized by.

    `pairs` signals share a group; by default they are spread over all groups."""
    size, pairs = width // groups, pairs or pairs_per_group(width, groups, signals)
    weight, bias = torch.zeros(width, signals), torch.zeros(width)
    used = torch.zeros(width, dtype=torch.bool)
    for signal in range(signals):
        group, slot = divmod(signal, pairs)
        first = group * size + 2 * slot
        weight[first, signal], weight[first + 1, signal] = 1.0, -1.0
        used[group * size : (group + 1) * size] = True
    for group in range(-(-signals // pairs)):
        constants = bias[group * size + 2 * pairs : (group + 1) * size]
        half = len(constants) // 2
        constants[:half], constants[half:] = constant, -constant
    share = (size - 2 * pairs) / size
    return weight, bias, used, constant * share**0.5


@torch.no_grad()
def set_encoder(vae: AutoencoderKL, code: PatchCode) -> None:
    """Make the encoder compute `code` exactly (to about 1e-4 of a latent).

    Raises:
        ValueError: it has other than four levels, or is too narrow to hold a patch on its way.
    """
    encoder, channels = vae.encoder, len(code.basis)
    widths, needed = vae.config.block_out_channels, (12, 48, channels)
    if len(widths) != 4 or any(width < least for width, least in zip(widths, needed, strict=False)):
        raise ValueError(f"block_out_channels {list(widths)} must be four widths, the first three at least {needed}")
    for resnet in encoder.down_blocks[-1].resnets[1:]:
        _silence(resnet)
    for block in (*encoder.down_blocks[:-1], encoder.mid_block):
        for resnet in block.resnets:
            _silence(resnet)
            if resnet.conv_shortcut is not None:
                _copy_channels(resnet.conv_shortcut)
    _copy_channels(encoder.conv_in)
    for level, block in enumerate(encoder.down_blocks[:-1]):
        _set_downsampler(block.downsamplers[0].conv, level, code)
    weight, bias, _, deviation = pair_layout(
        encoder.conv_norm_out.num_channels, encoder.conv_norm_out.num_groups, channels, ENCODER_CONSTANT
    )
    first = encoder.down_blocks[-1].resnets[0]
    _silence(first)
    _zero(first.conv_shortcut)
    first.conv_shortcut.weight[:, :channels, 0, 0] = weight
    first.conv_shortcut.bias.copy_(bias)
    encoder.conv_norm_out.weight.fill_(deviation)
    encoder.conv_norm_out.bias.zero_()
    _zero(encoder.conv_out)
    encoder.conv_out.weight[:channels, :, 1, 1] = weight.T
    encoder.conv_out.bias[channels:] = LOG_VARIANCE
    _zero(vae.quant_conv)
    vae.quant_conv.weight[:, :, 0, 0] = torch.eye(2 * channels)


@torch.no_grad()
def set_decoder(vae: AutoencoderKL, code: PatchCode) -> None:
    """Start the decoder as a smooth enlargement of the patches' mean colors; everything else stays random."""
    decoder, channels = vae.decoder, len(code.basis)
    _zero(vae.post_quant_conv)
    vae.post_quant_conv.weight[:, :, 0, 0] = torch.eye(channels)
    inverse = torch.linalg.pinv(code.basis.double()).float()
    to_color = rearrange(inverse, "(p c) l -> p c l", c=RGB).mean(dim=0)
    decoder.conv_in.weight[:RGB] = 0
    decoder.conv_in.weight[:RGB, :, 1, 1] = to_color
    decoder.conv_in.bias[:RGB] = rearrange(code.mean, "(p c) -> p c", c=RGB).mean(dim=0)
    smooth = torch.tensor([0.25, 0.5, 0.25])
    for block in (decoder.mid_block, *decoder.up_blocks[:-1]):
        for resnet in block.resnets:
            _spare(resnet.conv2, RGB)
            if resnet.conv_shortcut is not None:
                _spare(resnet.conv_shortcut, RGB)
                resnet.conv_shortcut.weight[:RGB, :RGB, 0, 0] = torch.eye(RGB)
        for upsampler in getattr(block, "upsamplers", None) or ():
            _spare(upsampler.conv, RGB)
            for color in range(RGB):
                upsampler.conv.weight[color, color] = smooth[:, None] * smooth
    weight, bias, used, deviation = pair_layout(
        decoder.conv_norm_out.num_channels, decoder.conv_norm_out.num_groups, RGB, DECODER_CONSTANT
    )
    for index, resnet in enumerate(decoder.up_blocks[-1].resnets):
        resnet.conv2.weight[used] = 0
        resnet.conv2.bias[used] = 0
        if index == 0:
            resnet.conv_shortcut.weight[used] = 0
            resnet.conv_shortcut.weight[used, :RGB, 0, 0] = weight[used]
            resnet.conv_shortcut.bias[used] = bias[used]
    decoder.conv_norm_out.weight[used] = deviation
    decoder.conv_norm_out.bias.zero_()
    decoder.conv_out.weight.mul_(0.1)
    decoder.conv_out.weight[:, used] = 0
    decoder.conv_out.weight[:, used, 1, 1] = weight[used].T
    decoder.conv_out.bias.zero_()


def _set_downsampler(conv: nn.Conv2d, level: int, code: PatchCode) -> None:
    """Gather 2x2 neighbors into channels, ordered as `PatchCode` orders a patch; the last level takes the products."""
    _zero(conv)
    side = 2**level  # of the patches gathered so far
    if 2 * side < PATCH:
        for y, x in torch.cartesian_prod(torch.arange(2), torch.arange(2)).tolist():
            for position in range(side * side * RGB):
                row, column, color = _unravel(position, side)
                target = ((y * side + row) * 2 * side + x * side + column) * RGB + color
                conv.weight[target, position, y, x] = 1.0
        return
    basis = rearrange(code.basis, "l (ty y tx x c) -> l (y x c) ty tx", ty=2, tx=2, y=side, x=side)
    conv.weight[: len(code.basis), : side * side * RGB, :2, :2] = basis
    conv.bias[: len(code.basis)] = -code.basis @ code.mean


def _unravel(position: int, side: int) -> tuple[int, int, int]:
    pixel, color = divmod(position, RGB)
    row, column = divmod(pixel, side)
    return row, column, color


def _zero(layer: nn.Conv2d) -> None:
    layer.weight.zero_()
    layer.bias.zero_()


def _silence(resnet: nn.Module) -> None:
    """A resnet whose branch adds nothing."""
    _zero(resnet.conv2)


def _spare(layer: nn.Conv2d, channels: int) -> None:
    """Zero the first output channels of the layer."""
    layer.weight[:channels] = 0
    layer.bias[:channels] = 0


def _copy_channels(layer: nn.Conv2d) -> None:
    """A convolution that copies its channels; the others are zero."""
    _zero(layer)
    count, middle = min(layer.in_channels, layer.out_channels), layer.kernel_size[0] // 2
    layer.weight[range(count), range(count), middle, middle] = 1.0
