"""LipScore: whether a lip reader sees the same speech in result and source (Bigata et al. 2025, KeyFace).

Legend: F frames of a chunk, R pixels of an aligned face.
"""

import math

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from latentsync.pretrained.lip_reader import SIDE, LipReader

# Rows and columns of the aligned face as fractions of its side: a square of 60.5 units of the template (75 x 100 units)
# that ends at the chin, close to the lip reader's training data, 88 pixels of a face whose pupils are 58 pixels apart.
ROWS, COLUMNS = (0.395, 1.0), (0.0965, 0.9035)
WINDOW = 250  # frames read at once, ten seconds
MIN_FRAMES = 5  # of a track


class LipScore:
    """Cosine similarity of the lip reader's features of the same frames in result and source, mean over the frames."""

    def __init__(self, reader: LipReader) -> None:
        self._reader = reader
        self._mouths: list[np.ndarray] = []  # (2, SIDE, SIDE), result and source
        self._values: list[np.ndarray] = []

    def update(self, result: np.ndarray, source: np.ndarray, starts: np.ndarray) -> None:
        """Add the next faces, (F, R, R, 3) uint8 twice; `starts` (F,): True after a cut or a gap."""
        for *faces, new in zip(result, source, starts, strict=True):
            if new or len(self._mouths) == WINDOW:
                self._read()
            self._mouths.append(np.stack([crop_mouth(face) for face in faces]))

    def compute(self) -> float:
        """Mean over all frames, -1 to 1; NaN without a track of `MIN_FRAMES` frames."""
        self._read()
        return float(np.concatenate(self._values).mean()) if self._values else math.nan

    @torch.no_grad()
    def _read(self) -> None:
        mouths, self._mouths = self._mouths, []
        if len(mouths) < MIN_FRAMES:
            return
        device = next(self._reader.parameters()).device
        pixels = torch.from_numpy(np.stack(mouths, axis=1)).to(device).float() / 255
        made, real = self._reader(pixels).float()
        self._values.append(F.cosine_similarity(made, real, dim=-1).cpu().numpy())


def crop_mouth(face: np.ndarray) -> np.ndarray:
    """The lower face of an aligned face (R, R, 3) uint8 as the lip reader sees it: (88, 88) uint8, gray."""
    (top, bottom), (left, right) = ((round(len(face) * place) for place in edges) for edges in (ROWS, COLUMNS))
    gray = cv2.cvtColor(face[top:bottom, left:right], cv2.COLOR_RGB2GRAY)
    return cv2.resize(gray, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
