"""Offset and confidence of the published SyncNet (Chung & Zisserman 2016) over a whole clip.

Legend: T frames, W = T - 4 windows of five frames, D embedding width. 25 frames/s, audio mono at 16 kHz.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from latentsync.constants import SAMPLE_RATE
from latentsync.pretrained.syncnet_v2 import MFCC_COLUMNS, WINDOW_FRAMES, SyncNetV2

COLUMNS_PER_FRAME = 4  # 100 MFCC columns per second
REACH = 15  # frames: largest offset searched in either direction


@dataclass(frozen=True)
class PublishedScore:
    """Distances (W, 2 * reach + 1) of each window to the audio `reach` frames before to `reach` frames after it.

    Column j is the offset reach - j, with the sign of `latentsync.metrics.sync`: + means that the audio is early.
    vision, audio: the embeddings (W, D).
    """

    distances: np.ndarray
    vision: np.ndarray
    audio: np.ndarray

    @property
    def mean_distances(self) -> np.ndarray:
        """(2 * reach + 1,), over time."""
        return self.distances.mean(axis=0)

    @property
    def offset(self) -> int:
        """reach - argmin of the mean distances."""
        return int(self.distances.shape[1] // 2 - self.mean_distances.argmin())

    @property
    def confidence(self) -> float:
        """Sync-C (LSE-C): median minus minimum of the mean distances."""
        return float(np.median(self.mean_distances) - self.mean_distances.min())

    @property
    def min_distance(self) -> float:
        """Sync-D (LSE-D): the minimum of the mean distances."""
        return float(self.mean_distances.min())

    @property
    def window_confidences(self) -> np.ndarray:
        """(W,) median of each window's distances minus that at the clip's offset: sync over time."""
        own = self.distances[:, self.distances.shape[1] // 2 - self.offset]
        return np.median(self.distances, axis=1) - own


def score_embeddings(vision: Tensor, audio: Tensor, reach: int = REACH) -> PublishedScore:
    """Score embeddings (W, D). As in the published script, the audio is padded with zero vectors.

    Raises:
        ValueError: shapes differ or there is no window.
    """
    if vision.shape != audio.shape or vision.ndim != 2 or not len(vision):
        raise ValueError(
            f"expected two tensors of equal shape (W, D), got {tuple(vision.shape)} and {tuple(audio.shape)}"
        )
    near = F.pad(audio, (0, 0, reach, reach)).unfold(0, 2 * reach + 1, 1).transpose(1, 2)  # (W, 2 reach + 1, D)
    distances = [F.pairwise_distance(one[None], other) for one, other in zip(vision, near, strict=True)]
    return PublishedScore(torch.stack(distances).cpu().numpy(), vision.cpu().numpy(), audio.cpu().numpy())


def mfcc_windows(wave: np.ndarray) -> Tensor:
    """Audio (N,) in [-1, 1] -> MFCC windows (M, 13, 20), one for each frame followed by 0.2 s of audio.

    Coefficients of python_speech_features' defaults on 16-bit samples: 25 ms windows every 10 ms, 26 filters, 512
    points, pre-emphasis 0.97, lifter 22, log energy first.
    """
    from python_speech_features import mfcc  # of the extra `train`

    samples = np.clip(np.round(wave * 32768.0), -32768, 32767).astype(np.int16)
    columns = torch.from_numpy(mfcc(samples, SAMPLE_RATE).T.astype(np.float32))  # (13, columns)
    if columns.shape[1] < MFCC_COLUMNS:
        return columns.new_zeros(0, len(columns), MFCC_COLUMNS)
    return columns.unfold(1, MFCC_COLUMNS, COLUMNS_PER_FRAME).transpose(0, 1).contiguous()


@torch.no_grad()
def score_faces(net: SyncNetV2, faces: Iterable[np.ndarray], wave: np.ndarray, batch_size: int = 32) -> PublishedScore:
    """Score a stream of face crops in constant memory.

    Args:
        faces: (224, 224, 3) RGB uint8, one per frame.
        wave: (N,) audio starting at the first frame.

    Raises:
        ValueError: fewer than five frames, or less than 0.2 s of audio.
    """
    device = next(net.parameters()).device
    mfccs = mfcc_windows(wave)
    batches = batched_windows(faces, batch_size, limit=len(mfccs))
    embedded = [net.embed_images(batch.to(device)).float().cpu() for batch in batches]
    if not embedded:
        raise ValueError("fewer than five frames, or less than 0.2 s of audio")
    vision = torch.cat(embedded)
    audio = [net.embed_audio(part[:, None].to(device)).float().cpu() for part in mfccs[: len(vision)].split(batch_size)]
    return score_embeddings(vision, torch.cat(audio))


def batched_windows(faces: Iterable[np.ndarray], batch_size: int, limit: int) -> Iterator[Tensor]:
    """The first `limit` windows of five frames, (B, 3, 5, 224, 224) float BGR in 0..255."""
    buffer: list[np.ndarray] = []
    count = 0
    for face in faces:
        buffer.append(face[..., ::-1])
        if len(buffer) == batch_size + WINDOW_FRAMES - 1:
            yield _windows(buffer)[: limit - count]
            count += batch_size
            if count >= limit:
                return
            buffer = buffer[batch_size:]
    if len(buffer) >= WINDOW_FRAMES and count < limit:
        yield _windows(buffer)[: limit - count]


def _windows(frames: list[np.ndarray]) -> Tensor:
    pixels = torch.from_numpy(np.stack(frames)).float()  # (T, H, W, 3)
    return pixels.unfold(0, WINDOW_FRAMES, 1).permute(0, 3, 4, 1, 2)
