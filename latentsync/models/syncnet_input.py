"""Inputs of a SyncNet, for the datasets, the sync loss and the scorer alike.

Legend: B batch, F frames, C channels, H W pixels or latent cells, S audio tokens of a frame, L Whisper states a row
(encoder blocks + 1), D their width.
"""

from typing import Literal

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from latentsync.constants import WHISPER_ROWS_PER_FRAME

AudioFeatures = Literal["mel", "whisper"]


def lower_half(x: Tensor) -> Tensor:
    """(..., H, W) -> (..., ceil(H / 2), W): the half of an aligned face with the mouth."""
    return x[..., x.shape[-2] // 2 :, :]


def stack_frames(frames: Tensor) -> Tensor:
    """(B, F, C, H, W) -> (B, F * C, H, W), frames stacked along the channels."""
    return rearrange(frames, "b f c h w -> b (f c) h w")


def visual_input(frames: Tensor, halve: bool) -> Tensor:
    """Whole frames or latents (B, F, C, H, W) -> input of the visual encoder; `halve`: use the lower half of each."""
    return stack_frames(lower_half(frames) if halve else frames)


def whisper_rows(tokens: Tensor, num_layers: int, audio_feat_length: tuple[int, int] = (2, 2)) -> Tensor:
    """The UNet's audio tokens (B, F, S, D) -> the audio rows of the frames themselves (B, 2F, L, D), without context.

    Of each frame's 2(l + r + 1) rows, the two that begin at its own time are kept, so that the rows of consecutive
    frames are contiguous at 25 frames/s.

    Args:
        num_layers: L; S = 2(l + r + 1) * L, time outside, layer inside.
        audio_feat_length: (l, r), frames of context before and after.
    """
    before, after = audio_feat_length
    rows = WHISPER_ROWS_PER_FRAME * (before + after + 1)
    if tokens.shape[-2] != rows * num_layers:
        raise ValueError(f"{tokens.shape[-2]} tokens a frame are not {rows} rows of {num_layers} states")
    own = WHISPER_ROWS_PER_FRAME * before
    by_row = rearrange(tokens, "b f (t l) d -> b f t l d", t=rows)[:, :, own : own + WHISPER_ROWS_PER_FRAME]
    return rearrange(by_row, "b f t l d -> b (f t) l d")


def stack_whisper(rows: Tensor) -> Tensor:
    """(B, 2F, L, D) -> (B, L * D, 1, 2F), each state normalized over D: the scales of the layers differ widely."""
    normalized = F.layer_norm(rows, rows.shape[-1:])
    return rearrange(normalized, "b t l d -> b (l d) 1 t")


def audio_input(samples: Tensor, features: AudioFeatures) -> Tensor:
    """A batch of the dataset's `audio_samples` -> input of the audio encoder.

    Args:
        samples: mel (B, 1, 80, T), returned unchanged, or Whisper rows (B, 2F, L, D).
        features: which of the two.
    """
    return stack_whisper(samples) if features == "whisper" else samples
