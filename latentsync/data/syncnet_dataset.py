"""Training samples of SyncNet: a window of frames with its own audio (in sync) or other audio (out of sync).

Legend: F frames of a window, C latent channels, H W pixels, h latent cells, L layers, D width.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from latentsync.config.sections import AugmentConfig
from latentsync.constants import DEFAULT_SEED
from latentsync.data.audio import AudioReader, AudioTrack
from latentsync.data.augment import augment, draw_augmentation
from latentsync.data.clip_dataset import ClipDataset, draw_shifted, spread_start
from latentsync.data.clips import Clip, drop_short_clips, examine_clips, read_frames, to_pixel_values
from latentsync.data.encoded_clips import EncodedClip
from latentsync.models.syncnet_input import lower_half
from latentsync.utils.errors import UserError

MIN_SHIFT = 6  # frames between the windows of a pair that counts as out of sync
NEGATIVE_SHARE = 0.5


class SyncNetDataset(ClipDataset):
    """Pairs of frames and audio.

    Items: frames (F, 3, H, W) float32 in [-1, 1], or latents (F, C, h, w) of encoded clips; audio_samples, mel
    (1, 80, columns) or Whisper states (2F, L, D); y (1,), 1 in sync and 0 not; start_idx int; pace () float32,
    frames of the original clip per frame of the sample; key, video_path, failed_paths.

    Half of the pairs are out of sync: the audio is at least 6 frames off in the same clip, or from another clip. In
    contrastive mode all are in sync, the other rows of the batch being the negatives; consecutive keys get windows far
    from each other.

    Args:
        clips: of a file list, checked by `examine_clips`; or encoded ones, to train on latents.
        audio: mel or Whisper states, at the clips' frame rate.
        num_frames: F.
        seed: of the whole run.
        resolution: side in pixels that clips must have; ignored for encoded ones.
        use_lower_half: return only the lower half of frames or latents.
        contrastive: in-sync pairs only.
        other_clip_negatives: share of the out-of-sync pairs with audio of another clip, in [0, 1].
        augmentation: of the frames; latents cannot be augmented.

    Raises:
        UserError: the clips cannot be used for training, or the options contradict each other.
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        audio: AudioReader,
        num_frames: int = 16,
        seed: int = DEFAULT_SEED,
        *,
        resolution: int | None = None,
        use_lower_half: bool = True,
        contrastive: bool = False,
        other_clip_negatives: float = 0.0,
        augmentation: AugmentConfig | None = None,
    ) -> None:
        shortest = num_frames if contrastive else num_frames + MIN_SHIFT
        encoded = isinstance(clips[0], EncodedClip) if len(clips) else False
        if encoded:
            fit = drop_short_clips(clips, shortest)
        else:
            fit = examine_clips(clips, min_frames=shortest, fps=audio.fps, resolution=resolution)
        super().__init__(fit, seed)
        self.audio, self.num_frames, self.shortest = audio, num_frames, shortest
        self.resolution, self.use_lower_half = resolution, use_lower_half
        self.contrastive, self.other_clip_negatives = contrastive, other_clip_negatives
        self.augmentation = augmentation or AugmentConfig()
        self._check_options(encoded)

    def _check_options(self, encoded: bool) -> None:
        if not 0 <= self.other_clip_negatives <= 1:
            raise UserError(f"other_clip_negatives must be between 0 and 1, got {self.other_clip_negatives:g}")
        first = self.clips[0].name
        if self.other_clip_negatives and not self.contrastive and all(clip.name == first for clip in self.clips):
            raise UserError("other_clip_negatives needs at least two clips; give more, or set it to 0")
        if encoded and self.augmentation != AugmentConfig():
            raise UserError("latents cannot be augmented; remove augment, or train on frames")

    def make_item(self, clip: Clip, key: int, rng: np.random.Generator) -> dict:
        with clip.fetched() as local:
            return self._item(local, key, rng)

    def _item(self, clip: Clip, key: int, rng: np.random.Generator) -> dict:
        track = self.audio.open(clip)
        total = min(clip.num_frames, track.num_frames)
        if total < self.shortest:
            raise UserError(
                f"{clip.name}: only {total} frames have audio, {self.shortest} are needed; process it again"
            )
        start = spread_start(total, self.num_frames, self.seed, key)
        in_sync = self.contrastive or rng.random() >= NEGATIVE_SHARE
        samples = track.window(start, self.num_frames) if in_sync else self._negative(clip, track, total, start, rng)
        frames = self._frames(clip, start, rng)
        return {
            "frames": lower_half(frames).contiguous() if self.use_lower_half else frames,
            "audio_samples": samples,
            "y": torch.tensor([float(in_sync)]),
            "start_idx": start,
            "pace": torch.tensor(float(clip.pace) if isinstance(clip, EncodedClip) else 1.0),
        }

    def _negative(self, clip: Clip, track: AudioTrack, total: int, start: int, rng: np.random.Generator) -> Tensor:
        """Audio that does not belong to the window from `start` on."""
        if rng.random() >= self.other_clip_negatives:
            return track.window(draw_shifted(total, self.num_frames, start, MIN_SHIFT, rng), self.num_frames)
        other = clip
        while other.name == clip.name:  # a clip may have several encoded copies
            other = self.clips[int(rng.integers(len(self.clips)))]
        track = self.audio.open(other)
        available = min(other.num_frames, track.num_frames)
        if available < self.num_frames:
            raise UserError(f"{other.name}: only {available} frames have audio, {self.num_frames} are needed")
        return track.window(int(rng.integers(available - self.num_frames + 1)), self.num_frames)

    def _frames(self, clip: Clip, start: int, rng: np.random.Generator) -> Tensor:
        """(F, 3, R, R) float32 in [-1, 1], or latents (F, C, h, h)."""
        window = range(start, start + self.num_frames)
        if isinstance(clip, EncodedClip):
            return clip.read(latents=window)["latents"]
        with clip.local() as path:
            frames = read_frames(path, np.array(window), resolution=self.resolution, fps=self.audio.fps)
        return augment(to_pixel_values(frames), draw_augmentation(self.augmentation, rng))
