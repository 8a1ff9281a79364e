"""CSIM: cosine similarity of face embeddings.

Legend: N frames, R pixels, D width of an embedding.
"""

import numpy as np
import torch

from latentsync.data.clips import to_pixel_values
from latentsync.pretrained.face_embedding import FaceEmbedder


@torch.no_grad()
def identity_similarity(embedder: FaceEmbedder, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Cosine similarity of the ArcFace embeddings of aligned faces (N, R, R, 3) uint8: (N,) in [-1, 1].

    About 0 for different people, 1 for equal images.
    """
    if first.shape != second.shape:
        raise ValueError(f"expected two arrays of equal shape (N, R, R, 3), got {first.shape} and {second.shape}")
    device = next(embedder.buffers()).device
    embeddings = [embedder(to_pixel_values(faces).to(device)).double().cpu() for faces in (first, second)]
    return (embeddings[0] * embeddings[1]).sum(dim=1).numpy()
