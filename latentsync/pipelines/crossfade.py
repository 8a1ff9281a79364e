"""Cross-fade of the frames that two chunks share, in the latents.

Chunks are denoised independently, so the mouth may jump where one follows another. Frames that were denoised twice pass
linearly from one chunk to the next, and are decoded once.

Legend: B chunks, C latent channels, F frames per chunk, h side of the latents.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from latentsync.faces.chunks import Chunk


class CrossFade:
    """Joins the chunks of one person, batch after batch; keeps the last latents of the chunk before."""

    def __init__(self) -> None:
        self._tail: Tensor | None = None

    def join(self, latents: Tensor, shared: Sequence[int], left: int) -> Tensor:
        """Denoised latents (B, C, F, h, h) -> those of the delivered frames (B, C, F - left, h, h).

        Args:
            latents: of consecutive chunks.
            shared: of each chunk, see `Chunk`.
            left: of all chunks, see `Chunk`.
        """
        joined = []
        for chunk, count in zip(latents, shared, strict=True):
            if count and self._tail is not None:
                share = torch.arange(1, count + 1, dtype=chunk.dtype, device=chunk.device)[:, None, None] / (count + 1)
                head = torch.lerp(self._tail.to(chunk), chunk[:, :count], share)
                chunk = torch.cat([head, chunk[:, count:]], dim=1)
            end = chunk.shape[1] - left
            self._tail = chunk[:, end:] if left else None
            joined.append(chunk[:, :end])
        return torch.stack(joined)

    def of(self, batch: Sequence[Chunk]) -> "Joint":
        """Where a batch of chunks of one shape joins the chunks before and after it."""
        return Joint(self, tuple(chunk.shared for chunk in batch), batch[0].left)


@dataclass(frozen=True)
class Joint:
    """`CrossFade.join` for one batch of chunks."""

    fade: CrossFade
    shared: tuple[int, ...]
    left: int

    def __call__(self, latents: Tensor) -> Tensor:
        return self.fade.join(latents, self.shared, self.left)
