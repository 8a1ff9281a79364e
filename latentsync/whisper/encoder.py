"""The encoder of openai-whisper: loading a checkpoint, and its hidden states.

Letters: L encoder blocks, R rows (50 per second), D width.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from latentsync.checkpoints.formats import READ_ERRORS, named_tensors
from latentsync.utils.errors import UserError
from latentsync.utils.light_whisper import AudioEncoder

HEAD_WIDTH = 64  # of every published Whisper size
PREFIX = "encoder."
MAX_REASON = 200  # characters of a library's message in our own


def load_encoder(path: str | Path) -> AudioEncoder:
    """Load a Whisper encoder in float32, in evaluation mode, on the CPU.

    Args:
        path: a full openai-whisper checkpoint (`.pt`, `{"dims", "model_state_dict"}`), or the encoder alone
            (`.safetensors`, names with or without the prefix `encoder.`, any float type).

    Raises:
        UserError: the file is missing, unreadable, or not a Whisper encoder.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"Whisper checkpoint {path} does not exist; run `latentsync download`")
    tensors, num_heads = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pt(path)
    try:
        state = named_tensors(path, _encoder_state(tensors))
        encoder = AudioEncoder(**_dimensions(state, num_heads))
        encoder.load_state_dict(state, strict=True)
    except (LookupError, ValueError, RuntimeError, AttributeError, TypeError, OverflowError) as error:
        reason = " ".join(str(error).split())[:MAX_REASON]
        raise UserError(f"{path} is not an encoder in openai-whisper's layout: {reason}") from error
    return encoder.eval().requires_grad_(False)


@torch.no_grad()
def hidden_states(encoder: AudioEncoder, mel: torch.Tensor) -> torch.Tensor:
    """States of one window before the final LayerNorm.

    Args:
        mel: (n_mels, 2R) normalized log-mel of exactly the length of the context, or several, (B, n_mels, 2R).

    Returns:
        (R, L + 1, D), or (B, R, L + 1, D): the input embedding (after the convolutions and the positional embedding),
        then the output of each block.
    """
    states: list[torch.Tensor] = []
    hooks = [encoder.blocks[0].register_forward_pre_hook(lambda _module, args: states.append(args[0]))]
    hooks += [block.register_forward_hook(lambda _module, _args, out: states.append(out)) for block in encoder.blocks]
    try:
        encoder(mel if mel.ndim == 3 else mel[None])
    finally:
        for hook in hooks:
            hook.remove()
    stacked = torch.stack(states, 2)
    return stacked if mel.ndim == 3 else stacked[0]


def _read_pt(path: Path) -> tuple[dict[str, torch.Tensor], Any]:
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except READ_ERRORS as error:
        reason = " ".join(str(error).split())[:MAX_REASON] or type(error).__name__
        raise UserError(f"cannot read {path} as a Whisper checkpoint, download it again: {reason}") from error
    if not isinstance(checkpoint, dict) or not {"dims", "model_state_dict"} <= checkpoint.keys():
        raise UserError(f"{path} is not a Whisper checkpoint: it lacks the entries dims and model_state_dict")
    dims, tensors = checkpoint["dims"], checkpoint["model_state_dict"]
    if not isinstance(dims, dict) or not isinstance(tensors, dict):
        raise UserError(f"{path} is not a Whisper checkpoint: dims and model_state_dict must be dictionaries")
    return tensors, dims.get("n_audio_head")


def _read_safetensors(path: Path) -> tuple[dict[str, torch.Tensor], Any]:
    try:
        with safe_open(path, framework="pt") as file:
            num_heads = (file.metadata() or {}).get("n_audio_head")
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError) as error:
        raise UserError(f"cannot read {path} as safetensors, download it again: {error}") from error
    return tensors, num_heads


def _encoder_state(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors of the encoder under the names of `AudioEncoder`, without those of a decoder."""
    prefixed = {name.removeprefix(PREFIX): value for name, value in tensors.items() if name.startswith(PREFIX)}
    return prefixed or tensors


def _dimensions(state: dict[str, torch.Tensor], num_heads: Any) -> dict[str, int]:
    """Arguments of `AudioEncoder` from the shapes; heads are 64 wide if the file does not state their number."""
    width, n_mels, _kernel = state["conv1.weight"].shape
    num_heads = width // HEAD_WIDTH if num_heads is None else int(num_heads)
    if num_heads < 1 or width % num_heads:
        raise ValueError(f"{num_heads} attention heads do not divide its width of {width}")
    blocks = {name.split(".")[1] for name in state if name.startswith("blocks.")}
    return {
        "n_mels": n_mels,
        "n_ctx": state["positional_embedding"].shape[0],
        "n_state": width,
        "n_head": num_heads,
        "n_layer": len(blocks),
    }
