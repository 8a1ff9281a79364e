"""Convert weights for release: `python -m tools.export_weights --checkpoint unet-700.pt --output unet.safetensors`.

Training writes float32 weights; releases are float16 safetensors with the global step in their metadata.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from latentsync.checkpoints.loading import load_checkpoint, save_checkpoint
from latentsync.utils.commands import command
from latentsync.utils.errors import UserError

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


def export(checkpoint: Path, output: Path, dtype: torch.dtype) -> None:
    """Write the weights of `checkpoint` to `output`, floating-point tensors as `dtype`.

    Raises:
        UserError: the checkpoint cannot be read, the output cannot be written, or a weight overflows `dtype`.
    """
    if output.suffix != ".safetensors":
        raise UserError(f"{output}: give a name that ends in .safetensors")
    loaded = load_checkpoint(checkpoint)
    converted = {}
    for name, tensor in loaded.state_dict.items():
        converted[name] = tensor.to(dtype) if tensor.is_floating_point() else tensor
        if not converted[name].isfinite().all():
            raise UserError(f"{checkpoint}: {name} does not fit into {str(dtype).removeprefix('torch.')}")
    save_checkpoint(output, converted, loaded.global_step)


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--checkpoint", type=Path, required=True, help="weights to convert (.pt or .safetensors)")
    parser.add_argument("--output", type=Path, required=True, help=".safetensors file to write")
    parser.add_argument(
        "--dtype", choices=DTYPES, default="float16", help="type of the written weights (default: %(default)s)"
    )
    args = parser.parse_args(argv)
    export(args.checkpoint, args.output, DTYPES[args.dtype])
    return 0


if __name__ == "__main__":
    sys.exit(main())
