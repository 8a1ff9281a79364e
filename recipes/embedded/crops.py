"""Random crops of training faces for the autoencoder. Legend: N crops, S pixels of a side, R pixels of a face."""

import cv2
import numpy as np
import torch
from torch import Tensor

from recipes.embedded.pack import Pack, PackedClip

ZOOM = (0.8, 1.3)
TURN = 12.0  # degrees either way
LOWER_SHARE = 0.7  # of the crops lie on the part that the model regenerates
LOWER_CENTER, LOWER_REACH = (0.5, 0.68), (0.3, 0.2)  # right, down, as fractions of R
BLUR_SHARE, BLUR_SIGMA = 0.12, (0.4, 1.3)
NOISE_SHARE, NOISE_LEVEL = 0.12, 0.02
GRAY_SHARE = 0.04


class CropSampler:
    """Draws crops balanced by person.

    Args:
        pack: the training faces.
        size: S.
    """

    def __init__(self, pack: Pack, size: int) -> None:
        self.pack, self.size = pack, size
        self.people: list[list[PackedClip]] = [clips for _, clips in pack.by_person()]

    def draw(self, count: int, rng: np.random.Generator) -> Tensor:
        """(count, 3, S, S) float32 in [-1, 1], channels last."""
        crops = np.stack([self._crop(rng) for _ in range(count)])
        x = torch.from_numpy(crops).permute(0, 3, 1, 2).float() / 127.5 - 1
        return _recolor(x, rng).contiguous(memory_format=torch.channels_last)

    def _crop(self, rng: np.random.Generator) -> np.ndarray:
        clips = self.people[rng.integers(len(self.people))]
        clip = clips[rng.integers(len(clips))]
        face = self.pack.face(clip.first + int(rng.integers(clip.length)))
        matrix = self._placement(len(face), rng)
        crop = cv2.warpAffine(
            face, matrix, (self.size, self.size), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101
        )
        if rng.random() < BLUR_SHARE:
            crop = cv2.GaussianBlur(crop, (0, 0), rng.uniform(*BLUR_SIGMA))
        return crop

    def _placement(self, side: int, rng: np.random.Generator) -> np.ndarray:
        """(2, 3), face -> crop: half of the crops keep the face's own pixels, so that its sharpness is learned."""
        if rng.random() < LOWER_SHARE:
            center = np.array(LOWER_CENTER) + np.array(LOWER_REACH) * rng.uniform(-1, 1, 2)
        else:
            center = rng.uniform(0.15, 0.85, 2)
        center = np.rint(center * side)
        is_plain = rng.random() < 0.5
        zoom = 1.0 if is_plain else rng.uniform(*ZOOM)
        angle = 0.0 if is_plain else rng.uniform(-TURN, TURN)
        matrix = cv2.getRotationMatrix2D(tuple(center), angle, zoom)
        matrix[:, 2] += self.size / 2 - center
        if rng.random() < 0.5:
            matrix[0] = -matrix[0]
            matrix[0, 2] += self.size - 1
        return matrix


def _recolor(x: Tensor, rng: np.random.Generator) -> Tensor:
    """Other exposure and light for each crop; noise on some; a few in black and white."""
    n = len(x)

    def draw(low: float, high: float, channels: int = 1) -> Tensor:
        return torch.from_numpy(rng.uniform(low, high, (n, channels, 1, 1))).float()

    x = (x + 1) / 2 * draw(0.75, 1.15) * draw(0.9, 1.1, 3)
    x = x.clamp(0, 1) ** (2 ** draw(-0.4, 0.4)) * 2 - 1
    gray = x.mean(1, keepdim=True).expand_as(x)
    x = torch.where(draw(0, 1) < GRAY_SHARE, gray, x)
    noise = torch.from_numpy(rng.standard_normal(x.shape, dtype=np.float32))
    x = x + torch.where(draw(0, 1) < NOISE_SHARE, NOISE_LEVEL * draw(0, 2), torch.zeros(1)) * noise
    return x.clamp(-1, 1)
