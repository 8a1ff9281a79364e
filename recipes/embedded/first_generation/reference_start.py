"""Initial weights that copy the reference frame: from random ones a UNet needs thousands of steps to learn to do so."""

import torch

from latentsync.models.unet import UNet3DConditionModel
from recipes.embedded.first_generation.linear_vae import pair_layout

CONSTANT = 10.0
PAIRS = 6  # latent channels that share a group of a norm


@torch.no_grad()
def start_from_reference(unet: UNet3DConditionModel) -> None:
    """Set the outermost path so that the UNet returns the reference frame's latents: a first guess of the face.

    For models that predict the clean sample. The path (first convolution, skip, last resnet, output) carries the
    reference as pairs of channels, see `linear_vae`; all of it stays trainable, everything else starts random.

    Raises:
        ValueError: the first level is too narrow for the latent channels.
    """
    config, last = unet.config, unet.up_blocks[-1]
    channels, width = config.out_channels, config.block_out_channels[0]
    weight, bias, used, deviation = pair_layout(width, config.norm_num_groups, channels, CONSTANT, PAIRS)
    if used.all():
        raise ValueError(f"a first level of {width} channels has no room beside {channels} copied latent channels")
    unet.conv_in.weight[used] = 0
    unet.conv_in.weight[used, -channels:, 1, 1] = weight[used]
    unet.conv_in.bias[used] = bias[used]
    resnet, skip = last.resnets[-1], last.resnets[-1].conv_shortcut.in_channels - width
    resnet.conv_shortcut.weight[used] = 0
    resnet.conv_shortcut.weight[used, skip:, 0, 0] = torch.eye(width)[used]
    layers = [resnet.conv_shortcut, resnet.conv2]
    if last.attentions is not None:
        layers.append(last.attentions[-1].proj_out)
    for layer in layers:
        layer.bias[used] = 0
    for layer in layers[1:]:
        layer.weight[used] = 0
    unet.conv_norm_out.weight[used] = deviation
    unet.conv_norm_out.bias[used] = 0
    unet.conv_out.weight.zero_()
    unet.conv_out.weight[:, used, 1, 1] = weight[used].T
    unet.conv_out.bias.zero_()
