"""Loading weights strictly into models, and saving them atomically.

A checkpoint is a `.safetensors` file, a PyTorch file with `{"global_step": int, "state_dict": {...}}` or the bare
tensors, or a folder or index of shards.
"""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from latentsync.checkpoints.differences import (
    UNET_PATCHES,
    Patch,
    State,
    describe_difference,
    find_patches,
    prefix_of_model,
    without_prefix,
    without_wrappers,
)
from latentsync.checkpoints.formats import Checkpoint, first_line, read_file
from latentsync.checkpoints.shards import is_sharded, read_sharded
from latentsync.utils.errors import UserError
from latentsync.utils.files import replaced

logger = logging.getLogger(__name__)
Model = TypeVar("Model", bound=nn.Module)


def load_state_dict(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name, on the CPU. Raises UserError as `load_checkpoint` does."""
    return load_checkpoint(path).state_dict


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint of any supported format. Raises UserError for everything else."""
    path = Path(path)
    return read_sharded(path) if is_sharded(path) else read_file(path)


def load_into(
    build: Callable[[], Model],
    checkpoint: Checkpoint,
    exact: bool = False,
    *,
    network: str = "",
    config: str = "the model config",
) -> Model:
    """Build a model and load the checkpoint's weights strictly; floating-point tensors take the model's dtype.

    A prefix that all names share (`module.`, `_orig_mod.`, `unet.`), and wrapping modules within names, are removed and
    logged. Other missing, unknown or differently shaped tensors are errors, except for the differences of
    `UNET_PATCHES`: each that applies is logged by name, and tensors that the file lacks keep their fresh
    initialization. With `exact` these are errors as well.

    Args:
        build: called on the meta device first, so that a model that takes all its weights from the file never
            allocates them twice.
        network: name of the published network, for the message that the file holds something else.
        config: file the model was built from, for error messages.

    Raises:
        UserError: the weights do not fit; the message names the tensors and the remedy.
    """
    with torch.device("meta"):
        model = build()
    expected = model.state_dict()
    prefix, given = without_prefix(expected, checkpoint.state_dict)
    wrappers, given = without_wrappers(expected, given)
    if wrappers and not prefix:
        prefix, given = without_prefix(expected, given)
    patches, rest = find_patches(expected, given, UNET_PATCHES)
    if rest or (exact and patches):
        difference = describe_difference(expected, given)
        if network:
            raise UserError(f"{checkpoint.path}: not the weights of {network} ({difference}); download the file again")
        raise UserError(f"{checkpoint.path}: {_mismatch(expected, given, config, difference, patches, rest)}")
    _check_kinds(checkpoint.path, expected, given)
    if prefix:
        logger.warning(
            "%s: tolerated difference 'prefix': removed %r from the names of all tensors", checkpoint.path, prefix
        )
    if wrappers:
        logger.warning(
            "%s: tolerated difference 'wrapping modules': removed %s from the names of tensors",
            *(checkpoint.path, ", ".join(map(repr, wrappers))),
        )
    for patch in patches:
        logger.warning("%s: tolerated difference '%s': %s", checkpoint.path, patch.name, patch.effect)
    if patches or _has_hidden_buffers(model):
        model = build()
    state = {name: tensor.to(expected[name].dtype) for name, tensor in given.items()}
    for patch in patches:
        patch.apply(state, expected)
    # Strictness was established above; only tensors that a patch leaves at their fresh values are missing here.
    model.load_state_dict(state, strict=not patches, assign=True)
    return model


def save_checkpoint(
    path: str | Path,
    state_dict: Mapping[str, Tensor],
    global_step: int = 0,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a checkpoint atomically: safetensors by the suffix, otherwise PyTorch, which holds no `metadata`.

    Raises:
        UserError: it cannot be written (no space, no permission); `path` is unchanged.
    """
    path = Path(path)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state_dict.items()}
    try:
        with replaced(path) as temporary:
            if path.suffix == ".safetensors":
                write_safetensors(temporary, tensors, {**(metadata or {}), "global_step": str(global_step)})
            else:
                torch.save({"global_step": global_step, "state_dict": tensors}, temporary)
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:
        # torch and safetensors report a full disk with their own error types.
        reason = error.strerror if isinstance(error, OSError) else f"disk full or failing: {first_line(error)}"
        raise UserError(f"{path}: cannot be written ({reason}); free space or choose another place") from error


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors to a safetensors file, not atomically.

    The file gets the permissions of any other new file; the library alone makes it readable by its owner only.
    """
    path.touch()
    mode = path.stat().st_mode
    safetensors.torch.save_file(dict(tensors), path, metadata=dict(metadata) if metadata else None)
    path.chmod(mode)


def _check_kinds(path: Path, expected: State, given: State) -> None:
    """Raise UserError where loading would turn integers into weights or the other way round."""
    for name, tensor in given.items():
        if name in expected and tensor.is_floating_point() != expected[name].is_floating_point():
            kind = str(tensor.dtype).removeprefix("torch.")
            raise UserError(f"{path}: {name} is stored as {kind}, which does not fit this model; check the file")


def _mismatch(
    expected: State, given: State, config: str, difference: str, patches: list[Patch], rest: list[str]
) -> str:
    if not rest:
        names = ", ".join(f"'{patch.name}'" for patch in patches)
        return f"fits {config} only as a start for training ({names}: {difference}); give the matching config"
    prefix = prefix_of_model(expected, given)
    if prefix:
        return f"holds this model under the prefix {prefix!r}, and other tensors ({difference}); save the model alone"
    return f"does not fit {config} ({difference}); give the config this checkpoint was trained with"


def _has_hidden_buffers(model: nn.Module) -> bool:
    """Whether some buffer is not part of the state dict, so that no checkpoint can fill it."""
    saved = model.state_dict().keys()
    return any(name not in saved for name, _ in model.named_buffers())
