"""SyncNet, the standard metric of lip sync: Chung & Zisserman, "Out of time" (2016), `syncnet_v2.model`.

Parameter names are those of the published checkpoint. Legend: B windows, D = 1024 width of an embedding.
"""

from pathlib import Path

from torch import Tensor, nn

from latentsync.checkpoints.loading import load_checkpoint, load_into

WINDOW_FRAMES = 5
FACE_SIZE = 224
MFCC_COLUMNS = 20  # four per frame


class SyncNetV2(nn.Module):
    """Two encoders whose embeddings are close if five frames and 0.2 s of audio are in sync.

    The embeddings are not normalized; they are compared by Euclidean distance.
    """

    def __init__(self) -> None:
        super().__init__()
        self.netcnnaud = nn.Sequential(
            *_conv(nn.Conv2d(1, 64, 3, padding=1)),
            nn.MaxPool2d(1, 1),
            *_conv(nn.Conv2d(64, 192, 3, padding=1)),
            nn.MaxPool2d(3, (1, 2)),
            *_conv(nn.Conv2d(192, 384, 3, padding=1)),
            *_conv(nn.Conv2d(384, 256, 3, padding=1)),
            *_conv(nn.Conv2d(256, 256, 3, padding=1)),
            nn.MaxPool2d(3, 2),
            *_conv(nn.Conv2d(256, 512, (5, 4))),
        )
        self.netcnnlip = nn.Sequential(
            *_conv(nn.Conv3d(3, 96, (5, 7, 7), (1, 2, 2))),
            nn.MaxPool3d((1, 3, 3), (1, 2, 2)),
            *_conv(nn.Conv3d(96, 256, (1, 5, 5), (1, 2, 2), padding=(0, 1, 1))),
            nn.MaxPool3d((1, 3, 3), (1, 2, 2), padding=(0, 1, 1)),
            *_conv(nn.Conv3d(256, 256, (1, 3, 3), padding=(0, 1, 1))),
            *_conv(nn.Conv3d(256, 256, (1, 3, 3), padding=(0, 1, 1))),
            *_conv(nn.Conv3d(256, 256, (1, 3, 3), padding=(0, 1, 1))),
            nn.MaxPool3d((1, 3, 3), (1, 2, 2)),
            *_conv(nn.Conv3d(256, 512, (1, 6, 6))),
        )
        self.netfcaud, self.netfclip = _head(), _head()

    @classmethod
    def from_pretrained(cls, path: str | Path) -> "SyncNetV2":
        """The published weights, for inference. Raises UserError if the file is missing or holds other weights."""
        return load_into(cls, load_checkpoint(path), exact=True, network="SyncNet v2").eval()

    def embed_images(self, faces: Tensor) -> Tensor:
        """(B, 3, 5, 224, 224) BGR in 0..255 -> (B, D)."""
        return self.netfclip(self.netcnnlip(faces).flatten(1))

    def embed_audio(self, mfcc: Tensor) -> Tensor:
        """(B, 1, 13, 20) mel-frequency cepstral coefficients -> (B, D)."""
        return self.netfcaud(self.netcnnaud(mfcc).flatten(1))

    def forward(self, faces: Tensor, mfcc: Tensor) -> tuple[Tensor, Tensor]:
        """Both embeddings."""
        return self.embed_images(faces), self.embed_audio(mfcc)


def _conv(conv: nn.Conv2d | nn.Conv3d) -> tuple[nn.Module, ...]:
    norm = nn.BatchNorm2d if isinstance(conv, nn.Conv2d) else nn.BatchNorm3d
    return conv, norm(conv.out_channels), nn.ReLU()


def _head() -> nn.Sequential:
    return nn.Sequential(nn.Linear(512, 512), nn.BatchNorm1d(512), nn.ReLU(), nn.Linear(512, 1024))
