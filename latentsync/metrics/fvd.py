"""Features for FVD (Unterthiner et al. 2018): windows of 16 face crops, embedded by an I3D network in TorchScript.

Legend: T frames of a clip, W windows, D width of the features. Faces are (224, 224, 3) uint8 RGB, 25 frames/s.
"""

import hashlib
import io
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from latentsync.checkpoints import registry
from latentsync.checkpoints.registry import DOWNLOAD_COMMAND, known_digests
from latentsync.utils.errors import UserError
from latentsync.utils.paths import CHECKPOINTS_DIR

I3D = CHECKPOINTS_DIR / registry.I3D.path
SIDE = 224
WINDOW_FRAMES = 16
STRIDE = 8  # frames between the starts of two windows


class VideoFeatures:
    """I3D features, logits of Kinetics-400 in the published file."""

    def __init__(self, net: torch.nn.Module, device: str | torch.device = "cpu", batch_size: int = 4) -> None:
        """`net` is called as net(x, rescale=False, resize=False, return_features=True) with x (B, 3, 16, 224, 224) in
        [-1, 1], and returns (B, D)."""
        self.net, self.device, self.batch_size = net.eval(), torch.device(device), batch_size

    @classmethod
    def from_pretrained(
        cls, path: str | Path = I3D, device: str | torch.device = "cpu", *, trust: bool = False
    ) -> "VideoFeatures":
        """Load a TorchScript file. Since that executes the code in it, only published files are accepted.

        Args:
            path: TorchScript file, identified by its SHA-256.
            device: device of the network.
            trust: load an unknown file as well.

        Raises:
            UserError: the file is missing, damaged, not TorchScript, or not a published one.
        """
        if not Path(path).is_file():
            raise UserError(f"{path}: the I3D network of FVD is missing; run `{DOWNLOAD_COMMAND} auxiliary`")
        content = Path(path).read_bytes()  # read once: the bytes that are checked are those that are executed
        if not trust and hashlib.sha256(content).hexdigest() not in known_digests():
            raise UserError(
                f"{path}: is not the published I3D network (its SHA-256 is unknown), and a TorchScript file executes "
                f"the code in it; run `{DOWNLOAD_COMMAND} auxiliary`, or pass --trust if you trust its source"
            )
        try:
            net = torch.jit.load(io.BytesIO(content), map_location=device)
        except (RuntimeError, ValueError) as error:  # raised by the archive reader and by the compiler
            raise UserError(f"{path}: is damaged or not a TorchScript file; download it again") from error
        return cls(net, device)

    @torch.no_grad()
    def embed(self, clips: list[Tensor]) -> np.ndarray:
        """Windows (3, 16, 224, 224) in [-1, 1] -> (len(clips), D) float32."""
        batch = torch.stack(clips).to(self.device)
        features = self.net(batch, rescale=False, resize=False, return_features=True)
        return features.flatten(1).float().cpu().numpy()


class ClipFeatures:
    """Embeds windows of one clip, `stride` frames apart, while faces are added.

    A track is a sequence of faces without a cut or a gap. Its last window ends at its last face, so that every frame is
    covered.
    """

    def __init__(self, network: VideoFeatures, stride: int = STRIDE) -> None:
        if stride < 1:
            raise ValueError(f"stride must be 1 or more, not {stride}")
        self._network, self._stride = network, stride
        self._recent: list[np.ndarray] = []
        self._pending: list[Tensor] = []
        self._rows: list[np.ndarray] = []
        self._count, self._next_end, self._last_end = 0, WINDOW_FRAMES, 0

    def add(self, face: np.ndarray) -> None:
        """Add the next face, (224, 224, 3) uint8."""
        self._recent = [*self._recent[1 - WINDOW_FRAMES :], face]
        self._count += 1
        if self._count == self._next_end:
            self._add_window()
            self._next_end += self._stride

    def end_track(self) -> None:
        """End a track, at a cut or a frame without a face. No window spans two tracks."""
        if self._count >= WINDOW_FRAMES and self._last_end < self._count:
            self._add_window()
        self._recent = []
        self._count, self._next_end, self._last_end = 0, WINDOW_FRAMES, 0

    def features(self) -> np.ndarray:
        """End the clip; returns the features of all windows, (W, D) float32, or (0, 0) if no track has 16 faces."""
        self.end_track()
        self._embed()
        return np.concatenate(self._rows) if self._rows else np.zeros((0, 0))

    def _add_window(self) -> None:
        pixels = torch.from_numpy(np.stack(self._recent))
        self._pending.append(pixels.permute(3, 0, 1, 2).float() / 127.5 - 1)
        self._last_end = self._count
        if len(self._pending) == self._network.batch_size:
            self._embed()

    def _embed(self) -> None:
        if self._pending:
            self._rows.append(self._network.embed(self._pending))
            self._pending = []
