"""Linear layers in 8 bits, by torchao: half of the UNet's arithmetic, and half of its weights.

Weights are rounded in advance, one scale a row or layer; activations as they come.
"""

import torch
from torch import nn

from latentsync.models.lora import ALL_LAYERS, find_projections
from latentsync.utils.errors import UserError

MULTIPLE = 16  # widths that matrix units take
FP8_CAPABILITY = (8, 9)  # of GPUs that multiply fp8: Ada, Hopper and later


def quantize_linear_layers(unet: nn.Module) -> str:
    """Quantize attention projections and feed-forward layers in place, where they are; returns "fp8" or "int8".

    fp8 (e4m3) on GPUs that multiply it, int8 elsewhere. Convolutions and embeddings stay as they are. Names of
    parameters stay; adapters can no longer be merged.

    Raises:
        UserError: torchao is not installed, or the CPU does not multiply int8 exactly.
    """
    try:
        from torchao.quantization import (
            Float8DynamicActivationFloat8WeightConfig,
            Int8DynamicActivationInt8WeightConfig,
            quantize_,
        )
    except ImportError as error:
        raise UserError("quantization needs torchao: run `pip install '.[lowbit]'` in the project's folder") from error
    device = next(unet.parameters()).device
    has_fp8 = device.type == "cuda" and torch.cuda.get_device_capability(device) >= FP8_CAPABILITY
    if device.type == "cpu" and not multiplies_int8():
        raise UserError("quantize: this CPU has no exact int8 multiplication (VNNI); leave the option out")
    # torchao's adjustments of the compiler are for language models.
    if has_fp8:
        config = Float8DynamicActivationFloat8WeightConfig(set_inductor_config=False)
    else:
        config = Int8DynamicActivationInt8WeightConfig(set_inductor_config=False)
    names = set(find_projections(unet, ALL_LAYERS))
    quantize_(unet, config, lambda module, name: name in names and _is_fit(module))
    return "fp8" if has_fp8 else "int8"


def multiplies_int8() -> bool:
    """Whether the CPU multiplies int8 exactly: without VNNI instructions, oneDNN's sums of products saturate."""
    largest = torch.full((64, 64), 127, dtype=torch.int8)
    return bool((torch._int_mm(largest, largest) == 64 * 127**2).all())


def _is_fit(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) and not (module.in_features % MULTIPLE or module.out_features % MULTIPLE)
