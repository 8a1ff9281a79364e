"""The first generation's UNet with more latent channels, computing the same in the old ones.

Legend: C old latent channels, C' new ones.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from latentsync.models.unet import UNet3DConditionModel
from latentsync.models.unet_config import UNetConfig

OLD_GATE, NEW_GATE = -6.0, 2.0  # the old channels do not let the reference through, the new ones do


def inflated_config(config: UNetConfig, channels: int) -> UNetConfig:
    """`config` for C' = `channels`, with a reference gate."""
    return replace(config, in_channels=3 * channels + 1, out_channels=channels, reference_gate=True)


@torch.no_grad()
def inflate(state: Mapping[str, Tensor], config: UNetConfig, channels: int) -> UNet3DConditionModel:
    """A UNet for C' = `channels` from the weights of one for C = `config.out_channels`.

    Its first C channels are those of the old one to about 0.3% of the reference; the others are a share of the
    reference frame's.
    """
    unet = UNet3DConditionModel(inflated_config(config, channels))
    old = config.out_channels
    # noisy, mask, masked, reference
    kept = [*range(old), channels, *range(channels + 1, channels + 1 + old)]
    kept += range(2 * channels + 1, 2 * channels + 1 + old)
    new = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    for name, tensor in state.items():
        if name == "conv_in.weight":
            new[name].zero_()
            new[name][:, kept] = tensor.float()
        elif name in ("conv_out.weight", "conv_out.bias"):
            new[name].zero_()
            new[name][:old] = tensor.float()
        else:
            new[name] = tensor.float()
    new["conv_gate.weight"].zero_()
    new["conv_gate.bias"][:old], new["conv_gate.bias"][old:] = OLD_GATE, NEW_GATE
    unet.load_state_dict(new)
    return unet
