"""Losses on the embeddings of a SyncNet. Legend: B pairs, D embedding width. Always computed in float32."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

PROBABILITY_MARGIN = 1e-6  # keeps the logarithms, and the gradient of a confident mistake, finite
IN_SYNC_THRESHOLD = 0.5


def similarity(vision: Tensor, audio: Tensor) -> Tensor:
    """Cosine similarity of (B, D) and (B, D): (B,) float32, in [0, 1] for the non-negative embeddings of a SyncNet."""
    return F.cosine_similarity(vision.float(), audio.float(), dim=1)


def cosine_loss(vision: Tensor, audio: Tensor, y: Tensor, reduction: Literal["mean", "sum", "none"] = "mean") -> Tensor:
    """Binary cross-entropy of the cosine similarity, read as the probability of being in sync (Wav2Lip).

    Args:
        vision: (B, D), audio: (B, D).
        y: (B,) or (B, 1), 1 for a pair in sync and 0 for one that is not.

    Returns:
        A scalar, or (B,) with `reduction="none"`.
    """
    with torch.autocast(vision.device.type, enabled=False):
        probability = similarity(vision, audio).clamp(PROBABILITY_MARGIN, 1 - PROBABILITY_MARGIN)
        y = y.reshape(-1).float()
        # F.binary_cross_entropy ends the process on a NaN; the loop is to see it and skip the batch.
        losses = -(y * probability.log() + (1 - y) * (-probability).log1p())
        return losses if reduction == "none" else getattr(losses, reduction)()


def contrastive_loss(vision: Tensor, audio: Tensor, temperature: float, excluded: Tensor | None = None) -> Tensor:
    """Symmetric InfoNCE over the batch: row i of one side belongs to row i of the other (CLIP, Radford et al. 2021).

    Args:
        vision: (B, D) unit vectors, audio: (B, D) unit vectors; B at least 2.
        temperature: divides the similarities, above 0; 0.07 is usual.
        excluded: (B, B) bool, pairs that are no negatives (the same moment twice in a batch); its diagonal is ignored.

    Returns:
        A scalar; ln B where nothing is learned yet.
    """
    with torch.autocast(vision.device.type, enabled=False):
        logits = vision.float() @ audio.float().T / temperature
        if excluded is not None:
            own = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
            logits = logits.masked_fill(excluded & ~own, float("-inf"))
        target = torch.arange(len(logits), device=logits.device)
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def pair_accuracy(vision: Tensor, audio: Tensor, y: Tensor) -> Tensor:
    """Share of pairs where (similarity > 0.5) agrees with y (B,) or (B, 1): a scalar in [0, 1]."""
    predicted = similarity(vision, audio) > IN_SYNC_THRESHOLD
    return (predicted == (y.reshape(-1) > 0.5)).float().mean()
