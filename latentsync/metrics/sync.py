"""Audio-visual sync of a clip, scored by a SyncNet.

Legend: T frames of a clip, F frames of a window, W windows, D width of the embeddings, R pixels.
The metrics are those of Chung & Zisserman, "Out of time" (2016), on unit vectors.

Sign of every offset in this project: +k means that the audio is k frames EARLY, so the mouth at frame i belongs to the
audio at frame i - k. The script of the published SyncNet prints the same sign. To correct it, delay the audio by k
frames.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from latentsync.checkpoints.loading import load_checkpoint, load_into
from latentsync.config.syncnet import SyncNetDataConfig, load_syncnet_config
from latentsync.constants import FPS, WHISPER_ROWS_PER_FRAME
from latentsync.data.audio import mel_window, syncnet_mel
from latentsync.models.framewise_syncnet import FramewiseSyncNet
from latentsync.models.syncnet_input import AudioFeatures, audio_input, visual_input, whisper_rows
from latentsync.models.syncnets import SYNCNET_SCHEMAS, make_syncnet
from latentsync.models.vae import LatentCodec
from latentsync.utils.errors import UserError
from latentsync.whisper.audio2feature import Audio2Feature
from latentsync.whisper.windows import count_frames

OFFSET_REACH = 15  # frames: largest offset searched in either direction
NEGATIVE_GAP = 6  # frames: smallest distance of windows that count as mismatched
CHUNK_WINDOWS = 128  # windows embedded together if they share frames


@dataclass(frozen=True)
class SyncScore:
    """Mean distances (2 * reach + 1,) of video and audio windows for offsets -reach..reach.

    At offset k the video window starting at frame i is compared with the audio window starting at frame i - k.
    """

    distances: np.ndarray

    @property
    def offsets(self) -> np.ndarray:
        reach = len(self.distances) // 2
        return np.arange(-reach, reach + 1)

    @property
    def offset(self) -> int:
        """Frames by which the audio is early: where the distance is smallest."""
        return int(self.offsets[self.distances.argmin()])

    @property
    def confidence(self) -> float:
        """Median minus minimum of the distances: 0 for unrelated audio, at most 2."""
        return float(np.median(self.distances) - self.distances.min())


def offset_score(vision: Tensor, audio: Tensor, reach: int = OFFSET_REACH) -> SyncScore:
    """Mean distance at each offset, over the windows that have a counterpart there.

    Args:
        vision, audio: (W, D) unit vectors of the windows starting at frame 0, 1, 2, ...

    Raises:
        ValueError: the shapes differ, or W <= reach, so that some offset has no pair.
    """
    if vision.shape != audio.shape or vision.ndim != 2:
        raise ValueError(
            f"expected two tensors of equal shape (W, D), got {tuple(vision.shape)} and {tuple(audio.shape)}"
        )
    count = len(vision)
    if count <= reach:
        raise ValueError(f"{count} windows are too few for offsets of {reach} frames")
    distances = torch.cdist(vision.double(), audio.double(), compute_mode="donot_use_mm_for_euclid_dist")
    means = [distances.diagonal(-offset).mean() for offset in range(-reach, reach + 1)]
    return SyncScore(torch.stack(means).cpu().numpy())


def preference(vision: Tensor, audio: Tensor, gap: int = NEGATIVE_GAP) -> Tensor:
    """How often each window is closer to its own audio than to the audio of another window of the clip.

    Args:
        vision, audio: (W, D) unit vectors.
        gap: smallest distance in frames to the other window.

    Returns:
        (W',) in [0, 1], for each window with others at that distance: the share of them whose audio has a lower cosine
        similarity than the window's own. The mean is the accuracy on randomly drawn pairs.
    """
    similarity = vision.double() @ audio.double().T
    index = torch.arange(len(vision), device=vision.device)
    far = (index[:, None] - index[None]).abs() >= gap
    wins = (similarity.diagonal()[:, None] > similarity) & far
    usable = far.any(dim=1)
    return wins.sum(dim=1)[usable].double() / far.sum(dim=1)[usable]


class SyncScorer:
    """Embeds the windows of a clip with a SyncNet, with the inputs it was trained on.

    Args:
        net: one of `latentsync.models.syncnets`: `embed_images` and `embed_audio`, (B, C, H, W) -> unit vectors (B, D).
        num_frames: F.
        resolution: side of the faces that `net` was trained on; other faces are resized.
        lower_half: `net` takes the lower half of the face (or of its latents).
        latent_space: `net` takes latents, encoded by `codec`.
        audio_features: "mel" or "whisper"; the latter needs `audio`.
        batch_size: windows embedded together.

    Raises:
        UserError: the codec or the audio encoder that the network needs is not given.
    """

    def __init__(
        self,
        net: nn.Module,
        num_frames: int = 16,
        resolution: int = 256,
        *,
        lower_half: bool = True,
        latent_space: bool = False,
        audio_features: AudioFeatures = "mel",
        codec: LatentCodec | None = None,
        audio: Audio2Feature | None = None,
        batch_size: int = 16,
    ):
        if latent_space and codec is None:
            raise UserError("this SyncNet takes latents; pass the autoencoder")
        if audio_features == "whisper" and audio is None:
            raise UserError("this SyncNet takes Whisper features; pass the Whisper checkpoint")
        self.net: Any = net.eval()  # Module does not declare embed_images and embed_audio
        self.num_frames, self.resolution = num_frames, resolution
        self.lower_half, self.batch_size = lower_half, batch_size
        self.audio_features = audio_features
        self.codec = codec if latent_space else None
        self.audio = audio if audio_features == "whisper" else None

    @property
    def shortest_clip(self) -> int:
        """Fewest frames that `score` accepts."""
        return self.num_frames + OFFSET_REACH

    @property
    def device(self) -> torch.device:
        return next(self.net.parameters()).device

    @classmethod
    def from_pretrained(
        cls,
        config_path: str | Path,
        ckpt_path: str | Path,
        codec: LatentCodec | None = None,
        audio: Audio2Feature | None = None,
        device: str | torch.device = "cpu",
    ) -> "SyncScorer":
        """Load a SyncNet from its config and checkpoint; `codec` and `audio` as in the constructor.

        Raises:
            UserError: a file is missing or damaged, or config, weights, codec and audio do not match.
        """
        config = load_syncnet_config(config_path, *SYNCNET_SCHEMAS)
        net = load_into(lambda: make_syncnet(config.model), load_checkpoint(ckpt_path), exact=True)
        return cls.from_config(net.to(device), config.data, codec, audio)

    @classmethod
    def from_config(
        cls,
        net: nn.Module,
        data: SyncNetDataConfig,
        codec: LatentCodec | None = None,
        audio: Audio2Feature | None = None,
    ) -> "SyncScorer":
        """Wrap a loaded network, given the `data` section of its training config."""
        if data.video_fps != FPS:
            raise UserError(f"this SyncNet was trained at {data.video_fps:g} frames/s; use one trained at {FPS}")
        return cls(
            net,
            data.num_frames,
            data.resolution,
            lower_half=data.lower_half,
            latent_space=data.latent_space,
            audio_features=data.audio_features,
            codec=codec,
            audio=audio,
        )

    def frames_of(self, num_faces: int, wave: np.ndarray) -> int:
        """Number of frames covered by both video and audio."""
        return min(num_faces, count_frames(len(wave), FPS))

    @torch.no_grad()
    def embed_faces(self, faces: Tensor) -> Tensor:
        """Embeddings of the windows starting at frame 0, 1, 2, ...: (W, D) on the CPU, W = T - F + 1.

        Args:
            faces: (T, 3, R, R) aligned, in [-1, 1], at 25 frames/s.

        Raises:
            UserError: fewer frames than one window.
        """
        self._check_length(len(faces), self.num_frames)
        inputs = self._visual_inputs(faces)
        if isinstance(self.net, FramewiseSyncNet):
            return self._embed_chunks(inputs)
        windows = inputs.unfold(0, self.num_frames, 1).movedim(-1, 1)  # (W, F, C, H, W)
        batches = windows.split(self.batch_size)
        images = (visual_input(batch, self.lower_half).to(self.device) for batch in batches)
        return torch.cat([self.net.embed_images(image).float().cpu() for image in images])

    def _embed_chunks(self, inputs: Tensor) -> Tensor:
        """As `embed_faces`, for a network that processes each frame of a chunk once: (T, C, H, W) -> (W, D)."""
        overlap = self.num_frames - 1
        starts = range(0, len(inputs) - overlap, CHUNK_WINDOWS)
        chunks = (inputs[None, start : start + CHUNK_WINDOWS + overlap] for start in starts)
        images = (visual_input(chunk, self.lower_half).to(self.device) for chunk in chunks)
        return torch.cat([self.net.embed_images(image, stride=1).float().cpu() for image in images])

    @torch.no_grad()
    def embed_audio(self, wave: np.ndarray, frames: int) -> Tensor:
        """Embeddings of the audio of the same windows: (W, D) on the CPU, W = frames - F + 1.

        Args:
            wave: (N,) audio starting at the first frame, mono at 16 kHz in [-1, 1].
            frames: number of video frames.

        Raises:
            UserError: fewer frames than one window.
        """
        self._check_length(frames, self.num_frames)
        batches = self._audio_inputs(wave, frames).split(self.batch_size)
        inputs = (audio_input(batch, self.audio_features).to(self.device) for batch in batches)
        return torch.cat([self.net.embed_audio(batch).float().cpu() for batch in inputs])

    def embed(self, faces: Tensor, wave: np.ndarray) -> tuple[Tensor, Tensor]:
        """(vision, audio), both (W, D): `embed_faces` and `embed_audio` over the frames covered by both."""
        frames = self.frames_of(len(faces), wave)
        return self.embed_faces(faces[:frames]), self.embed_audio(wave, frames)

    def score(self, faces: Tensor, wave: np.ndarray) -> SyncScore:
        """Distances, offset and confidence of a clip; arguments as `embed`.

        Raises:
            UserError: the clip is shorter than `shortest_clip`.
        """
        self._check_length(self.frames_of(len(faces), wave), self.shortest_clip)
        return offset_score(*self.embed(faces, wave))

    def _check_length(self, frames: int, needed: int) -> None:
        if frames < needed:
            raise UserError(f"the clip has {frames} frames with audio, sync needs {needed}; leave it out")

    def _visual_inputs(self, faces: Tensor) -> Tensor:
        """(T, 3, R, R) -> resized faces, or their latents, (T, C, H, W)."""
        if faces.shape[-1] != self.resolution:
            size = (self.resolution, self.resolution)
            faces = F.interpolate(faces.float(), size=size, mode="bicubic", align_corners=False, antialias=True)
            faces = faces.clamp(-1, 1)
        if self.codec is None:
            return faces
        return torch.cat([self.codec.encode(part).float().cpu() for part in faces.split(self.batch_size)])

    def _audio_inputs(self, wave: np.ndarray, frames: int) -> Tensor:
        """Audio features of each window, as in training: mel (W, 1, 80, T) or Whisper rows (W, 2F, L, D)."""
        starts = range(frames - self.num_frames + 1)
        if self.audio is None:
            mel = syncnet_mel(torch.as_tensor(wave))
            return torch.stack([mel_window(mel, start, self.num_frames, FPS) for start in starts])
        tokens = self.audio.stream(wave, FPS, frames).chunks(0, frames)
        rows = whisper_rows(tokens[None], self.audio.num_layers, self.audio.audio_feat_length)[0]  # (2T, L, D)
        per_frame = rearrange(rows, "(t r) l d -> t r l d", r=WHISPER_ROWS_PER_FRAME)
        return torch.stack([per_frame[start : start + self.num_frames].flatten(0, 1) for start in starts])
