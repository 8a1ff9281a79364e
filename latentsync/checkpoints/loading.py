"""Reading weights safely, loading them strictly, writing them atomically.

Files: `.safetensors`, or PyTorch files holding `{"global_step": int, "state_dict": {...}}` or the bare tensors. What a
file is, is told by its content, not its name. Nothing in a file is ever executed.
"""

import logging
import os
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from latentsync.checkpoints.differences import UNET_PATCHES, Patch, describe_difference, find_patches
from latentsync.utils.errors import UserError

logger = logging.getLogger(__name__)
Model = TypeVar("Model", bound=nn.Module)

ZIP_MAGIC = b"PK\x03\x04"
PICKLE_MAGIC = b"\x80"
LEGACY_TORCH_MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # torch.save before 1.6
# Where the weights lie in a file that holds more: ours and LatentSync's first, then Real-ESRGAN's and VideoMAE's.
WRAPPER_KEYS = ("state_dict", "params_ema", "params", "model", "module")
# As weights and buffers are stored. Quantized and packed weights (int8, float8) mean something only with their scales.
STORED_DTYPES = frozenset(
    {torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int32, torch.int64, torch.bool}
)
MAX_STEP_DIGITS = 18
SAFETENSORS_LENGTH = struct.Struct("<Q")  # of the JSON header that follows
# What the restricted unpickler and the archive reader raise on damaged or foreign content.
READ_ERRORS = (
    pickle.UnpicklingError,
    RuntimeError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    EOFError,
    OSError,
    struct.error,
)


@dataclass(frozen=True)
class Checkpoint:
    """Weights as they lie in the file (memory-mapped where the format allows) and the training step they are from.

    metadata: the remarks of a safetensors file; PyTorch files have none.
    """

    path: Path
    state_dict: dict[str, Tensor]
    global_step: int = 0
    metadata: dict[str, str] = field(default_factory=dict)


def load_state_dict(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name, on the CPU. Raises UserError as `load_checkpoint` does."""
    return load_checkpoint(path).state_dict


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint of any supported format; UserError for everything that is not one."""
    path = Path(path)
    kind = _recognise(path)
    if kind == "safetensors":
        return _read_safetensors(path)
    content = _read_torch(path, mmap=kind == "zip")
    if not isinstance(content, Mapping):
        raise UserError(f"{path}: holds a {type(content).__name__}, not weights; give a checkpoint of named tensors")
    wrappers = [key for key in WRAPPER_KEYS if isinstance(content.get(key), Mapping)]
    if not wrappers:
        return Checkpoint(path, named_tensors(path, content))
    return Checkpoint(path, named_tensors(path, content[wrappers[0]]), _step(path, content.get("global_step", 0)))


def load_into(build: Callable[[], Model], checkpoint: Checkpoint, exact: bool = False) -> Model:
    """Build a model and give it the checkpoint's weights, strictly; floating tensors take the model's dtype.

    Missing, unknown or differently shaped tensors are a UserError, but for the differences of `patches.UNET_PATCHES`:
    each that applies is logged by name, and what the file lacks keeps its fresh initialisation. With `exact` they
    are errors as well. `build` is called on the meta device first, so that a model that takes all its weights from
    the file never allocates them twice.
    """
    with torch.device("meta"):
        model = build()
    expected = model.state_dict()
    patches, rest = find_patches(expected, checkpoint.state_dict, UNET_PATCHES)
    if rest or (exact and patches):
        raise UserError(_mismatch(checkpoint.path, describe_difference(expected, checkpoint.state_dict), patches, rest))
    wrong = [name for name in expected if _is_cast(expected[name], checkpoint.state_dict.get(name))]
    if wrong:
        kind = str(checkpoint.state_dict[wrong[0]].dtype).removeprefix("torch.")
        raise UserError(f"{checkpoint.path}: {wrong[0]} is stored as {kind}, which no weights of this model are")
    for patch in patches:
        logger.warning("%s: patch '%s': %s", checkpoint.path, patch.name, patch.effect)
    if patches or _has_hidden_buffers(model):
        model = build()
    state = {name: tensor.to(expected[name].dtype) for name, tensor in checkpoint.state_dict.items()}
    for patch in patches:
        patch.apply(state, expected)
    # Strictness was established above; here the only missing names are those a patch leaves at their fresh values.
    model.load_state_dict(state, strict=not patches, assign=True)
    return model


def save_checkpoint(
    path: str | Path,
    state_dict: Mapping[str, Tensor],
    global_step: int = 0,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write atomically, safetensors by that suffix, else PyTorch; `metadata` goes into safetensors only.

    Raises UserError when there is no space or no permission; `path` is then as it was.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state_dict.items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            if path.suffix == ".safetensors":
                remarks = {**(metadata or {}), "global_step": str(global_step)}
                write_safetensors(temporary, tensors, remarks)
            else:
                torch.save({"global_step": global_step, "state_dict": tensors}, temporary)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:
        # torch and safetensors report a full disk as errors of their own
        reason = error.strerror if isinstance(error, OSError) else f"disk full or failing: {_first_line(error)}"
        raise UserError(f"{path}: cannot be written ({reason}); free space or choose another place") from error


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors to a safetensors file, in place and with the mode of any other new file: left to itself the library
    makes files that their owner alone can read."""
    path.touch()
    mode = path.stat().st_mode
    safetensors.torch.save_file(dict(tensors), path, metadata=metadata and dict(metadata))
    path.chmod(mode)


def _recognise(path: Path) -> str:
    """'zip', 'legacy' (both PyTorch) or 'safetensors'; UserError for anything else."""
    if path.is_dir():
        raise UserError(f"{path}: is a directory; give the checkpoint file in it")
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such checkpoint; check the path or download it") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    if not head:
        raise UserError(f"{path}: is empty (0 bytes); download it again")
    if head.startswith(b"version https://git-lfs"):
        raise UserError(f"{path}: is a Git LFS pointer, not the weights; run `git lfs pull` or download the file")
    if head.startswith(ZIP_MAGIC):
        return _check_zip(path)
    if head.startswith(LEGACY_TORCH_MAGIC):
        return "legacy"
    # Before the pickles: a safetensors file begins with the length of its header, whose lowest byte is any.
    if path.suffix == ".safetensors" or head[8:9] == b"{":
        _check_safetensors_length(path, head)
        return "safetensors"
    if head.startswith(PICKLE_MAGIC):
        raise UserError(f"{path}: is a Python pickle, not a PyTorch checkpoint; it was not opened")
    raise UserError(f"{path}: is not a checkpoint (neither PyTorch nor safetensors); check the file")


def _check_zip(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError, struct.error) as error:
        raise UserError(f"{path}: is truncated or damaged; download it again") from error
    if not any(name.endswith("/data.pkl") for name in names):
        raise UserError(f"{path}: is a zip archive but not a PyTorch checkpoint; unpack it if the weights are inside")
    return "zip"


def _check_safetensors_length(path: Path, head: bytes) -> None:
    size = path.stat().st_size
    length = SAFETENSORS_LENGTH.unpack(head[:8])[0] if len(head) >= 8 else size
    if length + SAFETENSORS_LENGTH.size > size:
        raise UserError(f"{path}: is truncated or not a safetensors file; download it again")


def _read_safetensors(path: Path) -> Checkpoint:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        state_dict = safetensors.torch.load_file(path)
    except safetensors.SafetensorError as error:
        raise UserError(f"{path}: is truncated or damaged ({_first_line(error)}); download it again") from error
    step = _step(path, metadata.get("global_step", "0"))
    return Checkpoint(path, named_tensors(path, state_dict), step, metadata)


def _read_torch(path: Path, mmap: bool) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path}: holds Python objects besides weights, or is damaged; such code is never run,"
            " save the weights alone (state_dict) or download it again"
        ) from error
    except READ_ERRORS as error:
        raise UserError(f"{path}: is damaged or not a checkpoint ({_first_line(error)}); download it again") from error


def named_tensors(path: Path, state_dict: Mapping[Any, Any]) -> dict[str, Tensor]:
    """The tensors of a file by name. Raises UserError for anything else in it, and for tensors that no weights are."""
    strangers = [str(key) for key, value in state_dict.items() if not (isinstance(key, str) and torch.is_tensor(value))]
    if strangers:
        raise UserError(f"{path}: is not a file of weights: {', '.join(strangers[:3])} are not tensors")
    if not state_dict:
        raise UserError(f"{path}: holds no weights")
    for name, tensor in state_dict.items():
        problem = _problem(tensor)
        if problem:
            raise UserError(f"{path}: {name} is {problem}; save plain weights on the CPU, in float16 or float32")
    return dict(state_dict)


def _problem(tensor: Tensor) -> str:
    """Why a tensor is no plain weight; empty when it is one."""
    if tensor.is_meta:
        return "a tensor without data (device meta)"
    if tensor.layout is not torch.strided or tensor.is_quantized:
        return "a sparse or quantized tensor"
    if tensor.dtype not in STORED_DTYPES:
        return f"stored as {str(tensor.dtype).removeprefix('torch.')}"
    return ""


def _is_cast(expected: Tensor, given: Tensor | None) -> bool:
    """Whether loading would turn whole numbers into weights, or the other way round."""
    return given is not None and given.is_floating_point() != expected.is_floating_point()


def _step(path: Path, step: Any) -> int:
    """A training step as stored: a number, a tensor of one, or in the metadata of safetensors its digits."""
    if isinstance(step, str) and step.isascii() and step.isdigit() and len(step) <= MAX_STEP_DIGITS:
        step = int(step)
    if torch.is_tensor(step) and step.numel() == 1 and not _problem(step):
        step = step.item()
    if isinstance(step, float) and step.is_integer():
        step = int(step)
    if isinstance(step, int) and not isinstance(step, bool) and 0 <= step < 10**MAX_STEP_DIGITS:
        return step
    is_huge = isinstance(step, int) and step.bit_length() > 64
    shown = f"a number of {step.bit_length()} bits" if is_huge else repr(str(step)[:40])
    raise UserError(f"{path}: global_step is {shown}, not a number of steps; the file is not one of ours")


def _mismatch(path: Path, difference: str, patches: list[Patch], rest: list[str]) -> str:
    if rest:
        return f"{path}: does not fit the model config ({difference}); give the config this checkpoint was trained with"
    names = ", ".join(f"'{patch.name}'" for patch in patches)
    return (
        f"{path}: fits the model config only as a start for training ({names}: {difference}); give the matching config"
    )


def _has_hidden_buffers(model: nn.Module) -> bool:
    """Whether some buffer is not part of the state dict, so that no checkpoint can fill it."""
    saved = model.state_dict().keys()
    return any(name not in saved for name, _ in model.named_buffers())


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:160] if lines else type(error).__name__
