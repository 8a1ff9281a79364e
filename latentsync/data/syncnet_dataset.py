"""Training samples of SyncNet: a run of frames and the sound of that run (in sync) or of another (not).

Legend: F frames of a run, C latent channels, H W pixels, h latent cells, L layers, D width.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from latentsync.data.augment import augment, draw_augmentation
from latentsync.data.clip_dataset import ClipDataset
from latentsync.data.clips import Clip, drop_short_clips, examine_clips, read_frames, to_pixel_values
from latentsync.data.encoded_clips import EncodedClip
from latentsync.data.sound import SoundReader, SoundTrack
from latentsync.data.windows import draw_shifted, spread_start
from latentsync.models.syncnet_input import lower_half
from latentsync.options import DEFAULT_SEED
from latentsync.utils.augment_config import AugmentConfig
from latentsync.utils.errors import UserError

MIN_SHIFT = 6  # frames between the windows of a pair that counts as out of sync
NEGATIVE_SHARE = 0.5


class SyncNetDataset(ClipDataset):
    """Pairs of frames and sound.

    Items: frames (F, 3, H, W) float32 in [-1, 1], or latents (F, C, h, w) of encoded clips; audio_samples, mel
    (1, 80, columns) or Whisper states (2F, L, D); y (1,), 1 in sync and 0 not; start_idx int; pace () float32,
    frames of the clip that pass in one of the sample; key, video_path, failed_paths.

    Half of the pairs are out of sync: the sound is at least 6 frames off in the same clip, or of another clip. In the
    contrastive mode all are in sync, the other rows of the batch being what they are told from; neighbouring keys are
    given windows far from each other.

    Args:
        clips: of a file list, looked at by `examine_clips`; or encoded ones, to train on latents.
        sound: what is heard, mel or Whisper states, at the clips' frame rate.
        num_frames: F.
        seed: of the whole run.
        resolution: side in pixels that clips must have; not used for encoded ones.
        use_lower_half: give the lower half of frames or latents alone.
        contrastive: in-sync pairs only.
        other_clip_negatives: share of the out-of-sync pairs whose sound is of another clip, in [0, 1].
        augmentation: variation of the frames; latents take none.

    Raises:
        UserError: the clips are not fit for training, or the options contradict each other.
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        sound: SoundReader,
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
        encoded = all(isinstance(clip, EncodedClip) for clip in clips)
        if encoded:
            fit = drop_short_clips(clips, shortest)
        else:
            fit = examine_clips(clips, min_frames=shortest, fps=sound.fps, resolution=resolution)
        super().__init__(fit, seed)
        self.sound, self.num_frames, self.shortest = sound, num_frames, shortest
        self.resolution, self.use_lower_half = resolution, use_lower_half
        self.contrastive, self.other_clip_negatives = contrastive, other_clip_negatives
        self.augmentation = augmentation or AugmentConfig()
        self._check_options(encoded)

    def _check_options(self, encoded: bool) -> None:
        if not 0 <= self.other_clip_negatives <= 1:
            raise UserError(f"other_clip_negatives must be between 0 and 1, got {self.other_clip_negatives:g}")
        files = {clip.path for clip in self.clips}
        if self.other_clip_negatives and not self.contrastive and len(files) < 2:
            raise UserError("other_clip_negatives needs at least two clips; give more, or set it to 0")
        if encoded and self.augmentation != AugmentConfig():
            raise UserError("latents cannot be augmented; switch augmentation off, or train on frames")

    def make_item(self, clip: Clip, key: int, rng: np.random.Generator) -> dict:
        track = self.sound.open(clip)
        total = min(clip.num_frames, track.num_frames)
        if total < self.shortest:
            raise UserError(
                f"{clip.path}: only {total} frames have sound, {self.shortest} are needed; process it again"
            )
        start = spread_start(total, self.num_frames, self.seed, key)
        in_sync = self.contrastive or rng.random() >= NEGATIVE_SHARE
        heard = track.window(start, self.num_frames) if in_sync else self._wrong_sound(clip, track, total, start, rng)
        frames = self._frames(clip, start, rng)
        return {
            "frames": lower_half(frames).contiguous() if self.use_lower_half else frames,
            "audio_samples": heard,
            "y": torch.tensor([float(in_sync)]),
            "start_idx": start,
            "pace": torch.tensor(float(clip.pace) if isinstance(clip, EncodedClip) else 1.0),
        }

    def _wrong_sound(self, clip: Clip, track: SoundTrack, total: int, start: int, rng: np.random.Generator) -> Tensor:
        """A window of sound that does not belong to the run from `start` on."""
        if rng.random() >= self.other_clip_negatives:
            return track.window(draw_shifted(total, self.num_frames, start, MIN_SHIFT, rng), self.num_frames)
        other = clip
        while other.path == clip.path:  # an encoded clip may be there in several variants
            other = self.clips[int(rng.integers(len(self.clips)))]
        track = self.sound.open(other)
        available = min(other.num_frames, track.num_frames)
        if available < self.num_frames:
            raise UserError(f"{other.path}: only {available} frames have sound, {self.num_frames} are needed")
        return track.window(int(rng.integers(available - self.num_frames + 1)), self.num_frames)

    def _frames(self, clip: Clip, start: int, rng: np.random.Generator) -> Tensor:
        """(F, 3, R, R) float32 in [-1, 1], or latents (F, C, h, h)."""
        run = range(start, start + self.num_frames)
        if isinstance(clip, EncodedClip):
            return clip.read(latents=run)["latents"]
        frames = read_frames(clip.path, np.array(run), resolution=self.resolution, fps=self.sound.fps)
        return augment(to_pixel_values(frames), draw_augmentation(self.augmentation, rng))
