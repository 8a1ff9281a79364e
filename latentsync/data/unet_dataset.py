"""Training samples of the UNet in pixels: a run of frames, the same masked, a reference run, and their sound.

Legend: F frames of a run, R pixels of a side, S audio tokens, D width.
"""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from latentsync.data.augment import augment, draw_augmentation
from latentsync.data.clip_dataset import ClipDataset
from latentsync.data.clips import Clip, examine_clips, read_frames, to_pixel_values
from latentsync.data.sound import MelReader
from latentsync.data.windows import draw_start_and_reference
from latentsync.options import DEFAULT_SEED
from latentsync.utils.augment_config import AugmentConfig
from latentsync.whisper.audio2feature import Audio2Feature


class UNetDataset(ClipDataset):
    """Runs of frames with a reference run of the same clip that does not overlap them.

    Items: gt_pixel_values, masked_pixel_values, ref_pixel_values (F, 3, R, R) float32 in [-1, 1]; masks (F, 1, R, R),
    1 = keep; mel (1, 80, columns); audio (F, S, D); start_idx int; key, video_path, failed_paths.

    Args:
        clips: of a file list; their headers are looked at, see `examine_clips`.
        audio: audio encoder; its `num_frames` is F. On the CPU when worker processes read the data. Without a cache
            directory of its own the whole sound of a clip is encoded for each sample.
        mask: (1, 1, R, R), 1 keeps a pixel.
        seed: of the whole run.
        fps: frames a second that clips must have.
        mel_cache_dir: keeps the mel of whole files; empty or None computes it for each sample.
        augmentation: variation of the frames.

    Raises:
        UserError: the clips are not fit for training.
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        audio: Audio2Feature,
        mask: Tensor,
        seed: int = DEFAULT_SEED,
        *,
        fps: float = 25.0,
        mel_cache_dir: str | None = None,
        augmentation: AugmentConfig | None = None,
    ) -> None:
        self.audio, self.mask, self.fps = audio, mask, fps
        self.num_frames, self.resolution = audio.num_frames, mask.shape[-1]
        super().__init__(
            examine_clips(clips, min_frames=2 * self.num_frames, fps=fps, resolution=self.resolution), seed
        )
        self.mels = MelReader(mel_cache_dir, fps)
        self.augmentation = augmentation or AugmentConfig()

    def make_item(self, clip: Clip, key: int, rng: np.random.Generator) -> dict:
        start, reference = draw_start_and_reference(clip.num_frames, self.num_frames, rng)
        run = np.arange(self.num_frames)
        frames = read_frames(
            clip.path, np.concatenate([start + run, reference + run]), resolution=self.resolution, fps=self.fps
        )
        pixels = augment(to_pixel_values(frames), draw_augmentation(self.augmentation, rng))
        target, reference_pixels = pixels.split(self.num_frames)
        return {
            "gt_pixel_values": target.contiguous(),
            "masked_pixel_values": target * self.mask,
            "ref_pixel_values": reference_pixels.contiguous(),
            "masks": self.mask.expand(self.num_frames, -1, -1, -1),
            "mel": self.mels.open(clip).window(start, self.num_frames),
            "audio": self.audio.crop_overlap_audio_window(self.audio.audio2feat(clip.path), start, self.fps),
            "start_idx": start,
        }
