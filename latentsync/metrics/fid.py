"""Features for FID and KID (Heusel et al. 2017), by `latentsync.pretrained.inception`.

Legend: N frames, H W pixels.
"""

import numpy as np
import torch

from latentsync.data.clips import to_pixel_values
from latentsync.pretrained.inception import FIDInception

BATCH_SIZE = 8


@torch.no_grad()
def frame_features(net: FIDInception, images: np.ndarray) -> np.ndarray:
    """Images (N, H, W, 3) uint8 -> (N, 2048) float32."""
    device = next(net.parameters()).device
    batches = to_pixel_values(images).split(BATCH_SIZE)
    return np.concatenate([net(batch.to(device)).float().cpu().numpy() for batch in batches])
