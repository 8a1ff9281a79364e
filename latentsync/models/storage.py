"""Weights of the UNet in less device memory: in 8 bits, or in the memory of the host; by hooks of diffusers."""

import torch
from torch import nn

from latentsync.models.unet import UNet3DConditionModel

FP8 = torch.float8_e4m3fn
# Layers that stay as they are: small, and their type is that of the model (`UNet3DConditionModel.dtype`).
KEPT = ("norm", "^conv_in$", "^conv_out$", "^conv_gate$", "^time_embedding")


def store_in_fp8(unet: UNet3DConditionModel) -> None:
    """Keep the weights of convolutions and linear layers in 8 bits and cast each layer when it runs, in place.

    Their rounding changes the results a little; all arithmetic stays in the type of the model.
    """
    from diffusers.hooks import apply_layerwise_casting  # takes a second to import

    apply_layerwise_casting(unet, FP8, unet.dtype, skip_modules_pattern=KEPT, non_blocking=True)


def store_on_host(unet: nn.Module, device: torch.device) -> None:
    """Keep the weights in the memory of the host and copy each layer to the device when it runs, in place.

    On CUDA the next layer is copied on a stream of its own, from pinned memory, while one runs. The result is the same.
    """
    from diffusers.hooks import apply_group_offloading

    on_gpu = device.type == "cuda"
    apply_group_offloading(unet, device, offload_type="leaf_level", use_stream=on_gpu, record_stream=on_gpu)
