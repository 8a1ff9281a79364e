"""Reading one checkpoint file: safetensors or PyTorch, recognized by content. Nothing in a file is ever executed."""

import logging
import pickle
import re
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from latentsync.utils.errors import UserError

logger = logging.getLogger(__name__)

ZIP_MAGIC = b"PK\x03\x04"
PICKLE_MAGIC = b"\x80"
LEGACY_TORCH_MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # torch.save before 1.6
# Entries that hold the weights in a file with more than weights, in order of preference.
WRAPPER_KEYS = ("state_dict", "model_state_dict", "params_ema", "params", "model", "module")
MAX_WRAPPERS = 4  # one inside the other
# Dtypes of plain weights and buffers. Quantized and packed weights (int8, float8) are meaningless without their scales.
STORED_DTYPES = frozenset(
    {torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int32, torch.int64, torch.bool}
)
MAX_STEP_DIGITS = 18
NUMBER_DTYPE = re.compile("[iuf][1248]")
SAFETENSORS_LENGTH = struct.Struct("<Q")  # of the JSON header that follows
# Raised by the restricted unpickler and the archive reader for damaged or foreign content.
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
    """Named tensors on the CPU (memory-mapped where the format allows it) and their training step.

    metadata: of a safetensors file; PyTorch files have none.
    """

    path: Path
    state_dict: dict[str, Tensor]
    global_step: int = 0
    metadata: dict[str, str] = field(default_factory=dict)


def read_file(path: Path) -> Checkpoint:
    """Read one file of any supported format. Raises UserError for everything that is not plain weights."""
    kind = _recognize(path)
    if kind == "safetensors":
        return _read_safetensors(path)
    content = _read_torch(path, mmap=kind == "zip")
    if not isinstance(content, Mapping):
        raise UserError(f"{path}: holds a {type(content).__name__}, not weights; give a checkpoint of named tensors")
    step: Any = 0
    for _ in range(MAX_WRAPPERS):
        key = _wrapper_key(path, content)
        if key is None:
            break
        step, content = content.get("global_step", step), content[key]
    return Checkpoint(path, named_tensors(path, content), _parse_step(path, step))


def named_tensors(path: Path, state_dict: Mapping[Any, Any]) -> dict[str, Tensor]:
    """The tensors of a file by name. Raises UserError for anything that is not a tensor of plain weights."""
    others = [str(key) for key, value in state_dict.items() if not (isinstance(key, str) and torch.is_tensor(value))]
    if others:
        raise UserError(
            f"{path}: is not a file of weights: {', '.join(others[:3])} are not tensors; save the state_dict alone"
        )
    if not state_dict:
        raise UserError(f"{path}: holds no weights")
    for name, tensor in state_dict.items():
        problem = _problem(tensor)
        if problem:
            raise UserError(f"{path}: {name} is {problem}; save plain weights on the CPU, in float16 or float32")
    return dict(state_dict)


def _wrapper_key(path: Path, content: Mapping[Any, Any]) -> str | None:
    """The entry that holds the weights; None where the entries are the weights.

    Raises:
        UserError: several entries hold weights and none has a usual name.
    """
    known = [key for key in WRAPPER_KEYS if isinstance(content.get(key), Mapping)]
    others = [str(key) for key, value in content.items() if key not in known and _are_weights(value)]
    if not known and len(others) > 1:
        raise UserError(f"{path}: holds several sets of weights ({', '.join(others)}); save one of them alone")
    found = known + others
    if not found:
        return None
    if not known or len(found) > 1:
        ignored = f"; not loading {', '.join(map(repr, found[1:]))}" if found[1:] else ""
        logger.warning("%s: tolerated difference 'wrapper': loading the weights in %r%s", path, found[0], ignored)
    return found[0]


def _are_weights(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(value) and all(map(torch.is_tensor, value.values()))


def _recognize(path: Path) -> str:
    """'zip', 'legacy' (both PyTorch) or 'safetensors'. Raises UserError for anything else."""
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
    if any("/code/" in name for name in names):
        raise UserError(f"{path}: is a TorchScript program, which is code; save the weights alone (state_dict)")
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
        raise UserError(f"{path}: is truncated or damaged ({first_line(error)}); download it again") from error
    step = _parse_step(path, metadata.get("global_step", "0"))
    return Checkpoint(path, named_tensors(path, state_dict), step, metadata)


class _NumpyDtype:
    """Stands for `numpy.dtype` in a PyTorch file: the type of a number, nothing else."""

    def __init__(self, name: object, *flags: object):
        if not NUMBER_DTYPE.fullmatch(str(name)):
            raise pickle.UnpicklingError(f"numpy dtype {str(name)[:20]!r}")
        self.name, self.order = str(name), "<"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = ">" if state[1] == ">" else "<"


def _numpy_number(dtype: _NumpyDtype, data: bytes) -> int | float:
    """Stands for the function that rebuilds a NumPy number, which trainers store as their step."""
    return np.frombuffer(data, dtype.order + dtype.name, count=1)[0].item()


# NumPy 1 and 2 name the function differently. Its own version would also build objects.
torch.serialization.add_safe_globals(
    [
        _NumpyDtype,
        (_NumpyDtype, "numpy.dtype"),
        (_numpy_number, "numpy._core.multiarray.scalar"),
        (_numpy_number, "numpy.core.multiarray.scalar"),
    ]
)


def _read_torch(path: Path, mmap: bool) -> Any:
    try:
        if mmap and path.suffix != ".safetensors":  # which torch.load would read as such, whatever it holds
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        with path.open("rb") as file:
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path}: holds Python objects besides weights, or is damaged; such code is never run,"
            " save the weights alone (state_dict) or download it again"
        ) from error
    except READ_ERRORS as error:
        reason = first_line(error).partition("  (Could")[0]  # PyTorch invites to report its message
        raise UserError(f"{path}: is damaged or not a checkpoint ({reason}); download it again") from error


def _problem(tensor: Tensor) -> str:
    """Why a tensor is not a plain weight; empty when it is one."""
    if tensor.is_meta:
        return "a tensor without data (device meta)"
    if tensor.layout is not torch.strided or tensor.is_quantized:
        return "a sparse or quantized tensor"
    if tensor.dtype not in STORED_DTYPES:
        return f"stored as {str(tensor.dtype).removeprefix('torch.')}"
    return ""


def _parse_step(path: Path, step: Any) -> int:
    """A stored training step: a number, a tensor of one number or, in the metadata of safetensors, digits."""
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
    raise UserError(f"{path}: global_step is {shown}, not a number of steps; save it as an integer")


def first_line(error: Exception) -> str:
    """The first line of a library's message, or its type where it has none."""
    lines = str(error).strip().splitlines()
    return lines[0][:160] if lines else type(error).__name__
