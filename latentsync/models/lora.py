"""LoRA: low-rank additions to the linear layers of attention blocks, trained through peft, merged for inference.

Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models": W becomes W + scale * alpha / R * B A.

An adapter file is safetensors with `<projection>.lora_A.weight` (R, I) and `<projection>.lora_B.weight` (O, R) of each
adapted projection, and metadata that identifies the model it belongs to. Legend: R rank; I, O widths of a projection.
"""

import hashlib
import json
import logging
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from latentsync.checkpoints.loading import load_checkpoint, save_checkpoint
from latentsync.utils.errors import UserError

if TYPE_CHECKING:
    from latentsync.models.unet import UNet3DConditionModel

logger = logging.getLogger(__name__)

PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")
FEED_FORWARD = "ff"  # the target that names the feed-forward layers
FEED_FORWARD_LAYERS = ("ff.net.0.proj", "ff.net.2")
ALL_LAYERS = (*PROJECTIONS, FEED_FORWARD)
FORMAT = "latentsync-lora-1"
ADAPTER_NAME = "default"  # peft's name of a single adapter
PEFT_KEY = re.compile(rf"(.+)\.lora_([AB])\.{ADAPTER_NAME}\.weight")
FILE_KEY = re.compile(r"(.+)\.lora_([AB])\.weight")
# Config keys that may differ between the model that an adapter was trained on and the one that it is merged into.
HARMLESS_KEYS = {"sample_size", "zero_initialize_conv_in"}


@dataclass(frozen=True)
class LoraSettings:
    """Shape of an adapter. targets: parts of the names of the adapted projections, see `find_projections`."""

    rank: int
    alpha: float
    targets: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise UserError(f"LoRA rank must be at least 1, got {self.rank}")
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            raise UserError(f"LoRA alpha must be above 0, got {self.alpha}")


@dataclass(frozen=True)
class LoraInfo:
    """Metadata of an adapter file. base: the weights it was trained on; step: training steps. few_steps: evaluations
    without guidance that it was distilled to, 0 for none."""

    settings: LoraSettings
    base: str
    step: int
    few_steps: int = 0


def find_projections(unet: nn.Module, targets: Sequence[str]) -> list[str]:
    """Names of the attention projections (`PROJECTIONS`) with one of `targets` among the dotted parts of their name.

    attn1 is attention within a frame, attn2 to the audio, attention_blocks along time; to_q, attn2.to_k, mid_block
    and similar parts work as well. Feed-forward layers need a target with ff, such as ff or mid_block.ff. Raises
    UserError for a target that matches none.
    """
    endings = tuple(f".{layer}" for layer in (*PROJECTIONS, *FEED_FORWARD_LAYERS))
    names = [name for name, module in unet.named_modules() if name.endswith(endings) and isinstance(module, nn.Linear)]
    unused = [target for target in targets if not any(_is_target(name, target) for name in names)]
    if unused or not targets:
        raise UserError(
            f"LoRA targets: {', '.join(map(repr, unused)) or 'none given'}: no attention projection of this UNet; name"
            " some of attn1, attn2, attention_blocks (with motion modules), to_q, to_k, to_v, to_out, ff"
        )
    return [name for name in names if any(_is_target(name, target) for target in targets)]


def _is_target(name: str, target: str) -> bool:
    parts = target.strip(".").split(".")
    return f".{'.'.join(parts)}." in f".{name}." and (name.endswith(PROJECTIONS) or FEED_FORWARD in parts)


def add_lora(
    unet: "UNet3DConditionModel", rank: int, alpha: float = 16.0, targets: Sequence[str] = PROJECTIONS
) -> list[nn.Parameter]:
    """Add adapters to the layers that `targets` name, freeze everything else, and return the trainable parameters.

    A new adapter has no effect (B is zero; A is drawn from the global generator). The layers become peft layers,
    whose weight is named `base_layer.weight`.

    Raises:
        UserError: a target names no projection, the rank is below 1, or peft is not installed.
    """
    if _adapter_of(unet) is not None:
        raise ValueError("this UNet has an adapter already")
    settings = LoraSettings(rank, float(alpha), tuple(targets))
    names = find_projections(unet, settings.targets)
    try:
        import peft  # takes seconds: it imports transformers
    except ImportError as error:
        raise UserError(f"LoRA training needs peft ({error}); install the project with its extra [train]") from error
    unet.requires_grad_(False)
    peft.inject_adapter_in_model(
        peft.LoraConfig(r=rank, lora_alpha=settings.alpha, target_modules=names), unet, ADAPTER_NAME
    )
    unet.lora_settings = settings
    return [parameter for parameter in unet.parameters() if parameter.requires_grad]


def lora_state_dict(unet: "UNet3DConditionModel", state: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """The adapter's tensors by their names in a file; from `state` (such as averaged weights) if given."""
    values = unet.state_dict() if state is None else state
    found = {name: PEFT_KEY.fullmatch(name) for name in values}
    return {f"{match[1]}.lora_{match[2]}.weight": values[name] for name, match in found.items() if match}


def save_lora(
    unet: "UNet3DConditionModel",
    path: str | Path,
    base: str = "",
    step: int = 0,
    state: Mapping[str, Tensor] | None = None,
    few_steps: int = 0,
) -> None:
    """Write the adapter atomically as safetensors.

    base: name of the weights it was trained on, for messages; state: see `lora_state_dict`; few_steps: see `LoraInfo`.
    Raises UserError when it cannot be written.
    """
    settings = _adapter_of(unet)
    if settings is None:
        raise ValueError("this UNet has no adapter")
    if Path(path).suffix != ".safetensors":
        raise ValueError(f"{path}: an adapter file ends in .safetensors")
    tensors = lora_state_dict(unet, state)
    metadata = {
        "format": FORMAT,
        "rank": str(settings.rank),
        "alpha": str(settings.alpha),
        "targets": json.dumps(settings.targets),
        "base": base,
        "few_steps": str(few_steps),
        "base_shapes": _shapes_digest(unet),
        "base_weights": _weights_digest(unet, _modules(tensors)),
        "model": json.dumps(_plain_config(unet)),
    }
    save_checkpoint(path, tensors, step, metadata)


def load_lora(unet: "UNet3DConditionModel", path: str | Path, scale: float = 1.0) -> LoraInfo:
    """Merge an adapter into the weights of a plain UNet: W + scale * alpha / R * B A, computed in float32.

    Several may be merged one after the other. Names, shapes and dtypes of the weights do not change.

    Raises:
        UserError: the file is not an adapter, belongs to another architecture (the difference is named), or `scale`
            is not a finite number.
    """
    if not math.isfinite(scale):
        raise UserError(f"LoRA scale must be a number, got {scale}")
    if _adapter_of(unet) is not None:
        raise ValueError("merge adapters into a plain UNet, not into one in LoRA training")
    path = Path(path)
    checkpoint = load_checkpoint(path)
    tensors, metadata = checkpoint.state_dict, checkpoint.metadata
    if metadata.get("format") != FORMAT:
        raise UserError(f"{path}: is not a LoRA adapter of this project; a whole UNet goes to --inference_ckpt_path")
    info, trained_config = _read_metadata(path, metadata, checkpoint.global_step)
    settings = info.settings
    difference = _config_difference(unet, trained_config) or _shape_difference(unet, tensors, settings.rank)
    if not difference and metadata.get("base_shapes") != _shapes_digest(unet):
        difference = "it has tensors of other names or shapes"
    if difference:
        trained_on = f"; it was trained on {info.base}" if info.base else ""
        raise UserError(f"{path}: is an adapter for another model ({difference}){trained_on}; give the model it fits")
    if metadata.get("base_weights") != _weights_digest(unet, _modules(tensors)):
        logger.warning(
            "%s: was trained on other weights of the same architecture (%s); the result may be poor",
            path,
            info.base or "not named",
        )
    _merge(unet, tensors, scale * settings.alpha / settings.rank)
    return info


def is_adapter(state: Mapping[str, Tensor]) -> bool:
    """Whether these are the tensors of an adapter."""
    return bool(state) and all(FILE_KEY.fullmatch(name) for name in state)


@torch.no_grad()
def _merge(unet: nn.Module, tensors: Mapping[str, Tensor], factor: float) -> None:
    for name in _modules(tensors):
        weight = unet.get_parameter(f"{name}.weight")
        down, up = (tensors[f"{name}.lora_{matrix}.weight"].to(weight.device, torch.float32) for matrix in "AB")
        # Not in place: the weights may be memory-mapped from a file.
        weight.data = (weight.float() + factor * (up @ down)).to(weight.dtype)


def _config_difference(unet: "UNet3DConditionModel", trained: Mapping[str, Any]) -> str:
    """Keys of the model config whose values differ, in one phrase; empty if none differs."""
    config = _plain_config(unet)
    changed = [key for key in config if key not in HARMLESS_KEYS and trained.get(key, config[key]) != config[key]]
    return "; ".join(f"{key} {trained[key]} instead of {config[key]}" for key in changed)


def _shape_difference(unet: "UNet3DConditionModel", tensors: Mapping[str, Tensor], rank: int) -> str:
    """The first tensor of the adapter that does not fit the UNet, in one phrase; empty if all fit."""
    expected = _expected_shapes(unet, _modules(tensors), rank)
    for name in tensors:
        if name not in expected:
            return f"it has no projection for {name}"
    for name, shape in expected.items():
        if name not in tensors:
            return f"{name} is missing"
        if list(tensors[name].shape) != shape:
            return f"{name} {list(tensors[name].shape)} instead of {shape}"
    return ""


def _expected_shapes(unet: nn.Module, modules: Iterable[str], rank: int) -> dict[str, list[int]]:
    """Names and shapes of the adapter's tensors on those of `modules` that are projections of the UNet."""
    projections = set(find_projections(unet, ALL_LAYERS))
    shapes: dict[str, list[int]] = {}
    for name in modules:
        if name in projections:
            out_width, in_width = unet.get_parameter(f"{name}.weight").shape
            shapes |= {f"{name}.lora_A.weight": [rank, in_width], f"{name}.lora_B.weight": [out_width, rank]}
    return shapes


def _read_metadata(path: Path, metadata: Mapping[str, str], step: int) -> tuple[LoraInfo, dict[str, Any]]:
    """Metadata of the adapter, and the config of the model it was trained on."""
    try:
        targets, config = json.loads(metadata["targets"]), dict(json.loads(metadata["model"]))
        settings = LoraSettings(int(metadata["rank"]), float(metadata["alpha"]), tuple(targets))
        return LoraInfo(settings, metadata.get("base", ""), step, int(metadata.get("few_steps", 0))), config
    except (LookupError, TypeError, ValueError, OverflowError, RecursionError, UserError) as error:
        raise UserError(f"{path}: its metadata is damaged ({error}); save the adapter again") from error


def _adapter_of(unet: nn.Module) -> LoraSettings | None:
    return getattr(unet, "lora_settings", None)


def _modules(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of the adapted projections, without repetition, in the order of the file."""
    matches = [FILE_KEY.fullmatch(name) for name in tensors]
    return list(dict.fromkeys(match[1] for match in matches if match))


def _plain_config(unet: "UNet3DConditionModel") -> dict[str, Any]:
    """The model config as read from JSON (tuples are lists)."""
    return json.loads(json.dumps(asdict(unet.config)))


def _base_state(unet: nn.Module) -> dict[str, Tensor]:
    """The UNet's own tensors by their published names, with or without adapters."""
    state = unet.state_dict().items()
    return {name.replace(".base_layer.", "."): tensor for name, tensor in state if ".lora_" not in name}


def _shapes_digest(unet: nn.Module) -> str:
    """SHA-256 of names and shapes of the UNet's own tensors."""
    lines = sorted(f"{name} {list(tensor.shape)}" for name, tensor in _base_state(unet).items())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _weights_digest(unet: nn.Module, modules: Iterable[str]) -> str:
    """SHA-256 of the first row of each projection, rounded to bfloat16 so that storage types do not matter."""
    state, digest = _base_state(unet), hashlib.sha256()
    for name in sorted(modules):
        row = state[f"{name}.weight"][0].detach().cpu().to(torch.bfloat16)
        digest.update(row.view(torch.int16).numpy().tobytes())
    return digest.hexdigest()
