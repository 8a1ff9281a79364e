"""Large contrastive batches on one device: the network sees the batch in pieces, the loss sees all of it.

Gradient caching (Gao et al. 2021): all pieces are embedded without a graph; the loss of all embeddings gives a
gradient for each of them; then each piece is embedded once more, with a graph, and takes its share of that gradient.
This is what activation checkpointing does when its segments are pieces of the batch instead of layers, so that is what
is used: the gradient is that of the whole batch, the memory that of one piece, the price a second forward pass.
"""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from latentsync.utils.errors import UserError


class GradientCache(nn.Module):
    """Calls a SyncNet piece by piece. With `chunk` 0 all at once.

    Raises:
        UserError: `chunk` is set and the network normalises over the batch, which then depends on the pieces.
    """

    def __init__(self, network: nn.Module, chunk: int = 0) -> None:
        super().__init__()
        if chunk and any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules()):
            raise UserError("gradient_cache_chunk cannot be used with batch norm; set it to 0")
        self.network, self.chunk = network, chunk

    def forward(self, image_sequences: Tensor, audio_sequences: Tensor) -> tuple[Tensor, Tensor]:
        """As the network's own: (B, ...), (B, ...) -> (B, D), (B, D)."""
        if not self.chunk or not torch.is_grad_enabled() or len(image_sequences) <= self.chunk:
            return self.network(image_sequences, audio_sequences)
        pieces = zip(image_sequences.split(self.chunk), audio_sequences.split(self.chunk), strict=True)
        embeds = [checkpoint(self.network, *piece, use_reentrant=False) for piece in pieces]
        vision, audio = zip(*embeds, strict=True)
        return torch.cat(vision), torch.cat(audio)
