"""From audio to the tokens of the UNet's cross-attention: `Audio2Feature`.

Letters: T rows (50 per second), L encoder blocks, D width, F video frames, S tokens of one video frame.
"""

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from latentsync.constants import FPS, SAMPLE_RATE, WHISPER_ROWS_PER_SECOND
from latentsync.media.audio import load_audio
from latentsync.media.samples import Samples
from latentsync.utils.errors import UserError
from latentsync.utils.files import file_sha256, replaced
from latentsync.whisper.encoder import hidden_states, load_encoder
from latentsync.whisper.mel import LogMel
from latentsync.whisper.windows import (
    AudioFeatureStream,
    FeatureRows,
    Fps,
    count_frames,
    frame_rows,
    gather_tokens,
)

FEATURE_VERSION = 1  # increase when the same audio gives other features, so that old cache entries are not used
CACHE_KEY = "features"


class Audio2Feature:
    """Hidden states of a Whisper encoder, and the window of them for each video frame.

    The tokens of video frame i are the rows from `center - 2l` to `center + 2(r + 1) - 1`, center = int(i * 50 / fps),
    clamped to the ends, with all layers flattened, time first: (50, 384) for Whisper tiny and [l, r] = [2, 2].

    Not for use by several threads at the same time: they would share the encoder's hooks.

    Args:
        model_path: Whisper checkpoint, full (`.pt`) or encoder alone (`.safetensors`).
        device: where the encoder runs. Results are always float32 on the CPU.
        audio_embeds_cache_dir: cache of the features of files, in float16, keyed by the contents of file and model;
            None for no cache.
        num_frames: video frames of one training sample (`crop_overlap_audio_window`).
        audio_feat_length: [l, r], in video frames at 25 fps.
        overlap_seconds: overlap of neighboring 30 s windows, which are cross-faded. With 0, as the published
            checkpoints were trained, there is a glitch every 30 s. Makes no difference for audio up to 30 s.

    Raises:
        UserError: the checkpoint is missing or is not a Whisper encoder.
    """

    def __init__(
        self,
        model_path: str | Path,
        device: str | torch.device = "cpu",
        audio_embeds_cache_dir: str | Path | None = None,
        num_frames: int = 16,
        audio_feat_length: Sequence[int] = (2, 2),
        overlap_seconds: float = 4.0,
    ) -> None:
        left, right = audio_feat_length
        self.encoder = load_encoder(model_path).to(device)
        self.device = torch.device(device)
        self.num_frames = num_frames
        self.audio_feat_length = (left, right)
        self.cache_dir = Path(audio_embeds_cache_dir) if audio_embeds_cache_dir else None
        self._overlap_rows = 2 * round(overlap_seconds * WHISPER_ROWS_PER_SECOND / 2)
        if not 0 <= self._overlap_rows <= self._window_rows // 2:
            limit = self._window_rows / 2 / WHISPER_ROWS_PER_SECOND
            raise UserError(f"overlap_seconds must be between 0 and {limit:g}, got {overlap_seconds:g}")

    @property
    def _window_rows(self) -> int:
        return self.encoder.positional_embedding.shape[0]

    @property
    def width(self) -> int:
        """D: the UNet's `cross_attention_dim` (384 for tiny, 768 for small)."""
        return self.encoder.positional_embedding.shape[1]

    @property
    def num_layers(self) -> int:
        """Number of states per row: the outputs of the encoder's blocks and its input."""
        return len(self.encoder.blocks) + 1

    @property
    def num_tokens(self) -> int:
        """S: audio tokens of one video frame."""
        return 2 * (sum(self.audio_feat_length) + 1) * self.num_layers

    def to(self, device: str | torch.device) -> "Audio2Feature":
        """Move the encoder; returns self."""
        self.device = torch.device(device)
        self.encoder.to(device)
        return self

    def audio2feat(self, path: str | Path, digest: str = "") -> torch.Tensor:
        """States of a whole audio or video file: (T, L + 1, D) float32, from the cache if present.

        With a cache they are rounded to float16, whether they are found there or not.

        Args:
            digest: SHA-256 of the file, if it is known; otherwise a cache makes it necessary to compute it.

        Raises:
            UserError: the file has no readable audio.
        """
        if self.cache_dir is None or not Path(path).is_file():  # load_audio raises the error
            return self.wave2feat(load_audio(path, SAMPLE_RATE))
        entry = self.cache_dir / f"{self._cache_key(Path(path), digest)}.safetensors"
        features = self._read_cache(entry)
        if features is None:
            features = self.wave2feat(load_audio(path, SAMPLE_RATE)).half()
            with replaced(entry) as temporary:
                temporary.write_bytes(save({CACHE_KEY: features}))
        return features.float()

    def wave2feat(self, wave: np.ndarray) -> torch.Tensor:
        """States of a whole signal: (T, L + 1, D) float32. Takes 7.7 kB per row: use `stream` for long audio.

        Args:
            wave: (N,) mono at 16 kHz, float32 in [-1, 1] or int16.

        Raises:
            UserError: the signal contains NaN or infinite samples.
        """
        rows = self._rows(wave)
        return rows.read(0, rows.num_rows)

    def window_mel(self, wave: np.ndarray) -> tuple[torch.Tensor, int]:
        """The encoder's input for a signal of one window: (n_mels, 2 * window_rows) float32, and its number of rows.

        Raises:
            UserError: it is longer than a window, or contains NaN or infinite samples.
        """
        mel = LogMel(wave, n_mels=self.encoder.conv1.in_channels)
        width = 2 * self._window_rows
        if mel.num_frames > width:
            raise UserError(
                f"a clip of {len(wave) / SAMPLE_RATE:.0f} s exceeds the audio encoder's window of "
                f"{self.window_seconds:g} s; give shorter clips, or set data.whisper_on_device to false"
            )
        frames = mel.frames(0, mel.num_frames)
        return torch.nn.functional.pad(frames, (0, width - frames.shape[1])), mel.num_frames // 2

    def encode_windows(self, mels: torch.Tensor) -> torch.Tensor:
        """States of several signals: (B, n_mels, 2 * window_rows) from `window_mel` -> (B, window_rows, L + 1, D), on
        the encoder's device."""
        return hidden_states(self.encoder, mels.to(self.device))

    @property
    def window_seconds(self) -> float:
        """Length of the encoder's context."""
        return self._window_rows / WHISPER_ROWS_PER_SECOND

    def stream(self, wave: np.ndarray | Samples, fps: Fps, num_frames: int | None = None) -> AudioFeatureStream:
        """Tokens of each video frame, computed on demand in constant memory.

        Args:
            wave: as in `wave2feat`; kept by reference.
            fps: video frame rate; a Fraction for rates such as 30000/1001.
            num_frames: clip length; by default ceil(duration * fps).
        """
        num_frames = count_frames(len(wave), fps) if num_frames is None else num_frames
        return AudioFeatureStream(self._rows(wave), fps, self.audio_feat_length, num_frames)

    def feature2chunks(
        self, feature_array: torch.Tensor | np.ndarray, fps: Fps, num_frames: int | None = None
    ) -> list[torch.Tensor]:
        """Tokens of every video frame, each (S, D).

        Args:
            feature_array: (T, L + 1, D) from `audio2feat`.
            fps: video frame rate.
            num_frames: clip length; by default as many frames as the features cover, ceil(T * fps / 50).
        """
        features = torch.as_tensor(feature_array)
        if num_frames is None:
            num_frames = count_frames(len(features) * SAMPLE_RATE // WHISPER_ROWS_PER_SECOND, fps)
        return list(self._tokens(features, range(num_frames), fps))

    def crop_overlap_audio_window(self, feat: torch.Tensor, start_index: int, fps: Fps = FPS) -> torch.Tensor:
        """Tokens of `num_frames` video frames from `start_index`: (num_frames, S, D), for training."""
        return self._tokens(torch.as_tensor(feat), range(start_index, start_index + self.num_frames), fps)

    def _tokens(self, features: torch.Tensor, frames: range, fps: Fps) -> torch.Tensor:
        if not len(frames):
            return features.new_empty(0, self.num_tokens, self.width)
        indices = torch.stack([frame_rows(f, fps, self.audio_feat_length, len(features)) for f in frames])
        return gather_tokens(features, indices)

    def _rows(self, wave: np.ndarray | Samples) -> FeatureRows:
        mel = LogMel(wave, n_mels=self.encoder.conv1.in_channels)
        return FeatureRows(mel, self._encode, self._window_rows, self._overlap_rows)

    def _encode(self, mel: torch.Tensor) -> torch.Tensor:
        return hidden_states(self.encoder, mel.to(self.device)).cpu()

    @cached_property
    def _model_digest(self) -> str:
        digest = hashlib.sha256()
        for name, value in sorted(self.encoder.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.cpu().numpy().tobytes())
        return digest.hexdigest()

    def _cache_key(self, path: Path, digest: str) -> str:
        """Name of a cache entry, from the contents of the file, the encoder and its settings."""
        parts = (FEATURE_VERSION, digest or file_sha256(path), self._model_digest, self._overlap_rows)
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def _read_cache(self, entry: Path) -> torch.Tensor | None:
        """Features of a cache entry; None if it is missing or damaged, so that they are computed again."""
        try:
            features = load(entry.read_bytes())[CACHE_KEY]
        except (FileNotFoundError, SafetensorError, KeyError):
            return None
        return features.half() if features.shape[1:] == (self.num_layers, self.width) else None
