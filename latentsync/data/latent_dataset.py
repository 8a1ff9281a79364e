"""Training samples from clips encoded once: no frame is decoded and no network runs while training.

Legend: F frames of a run, C latent channels, h latent cells, S audio tokens, D width, R pixels of a side.
"""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from latentsync.data.augment import jitter_clip
from latentsync.data.clip_dataset import ClipDataset
from latentsync.data.clips import drop_short_clips, read_frames, to_pixel_values
from latentsync.data.encoded_clips import EncodedClip
from latentsync.data.sound import MelReader, frame_tokens
from latentsync.data.windows import draw_start_and_reference


class LatentClipDataset(ClipDataset):
    """Runs of `num_frames` frames with a reference run of the same clip that does not overlap them.

    Items: latents, masked_latents, ref_latents (F, C, h, h) and audio (F, S, D), float32; start_idx int; key,
    video_path, failed_paths. On demand mel (1, 80, columns) and gt_pixel_values (F, 3, R, R) in [-1, 1].

    Args:
        clips: from `ClipEncoder`; those shorter than two runs are left out with a warning.
        audio_feat_length: (l, r), the frames heard before and after.
        num_frames: F.
        seed: of the whole run.
        fps: video frames a second.
        mels: gives the mel of a run; None leaves it out.
        with_pixels: read the frames of the run from the clip as well.

    Raises:
        UserError: no clip is long enough.
    """

    def __init__(
        self,
        clips: Sequence[EncodedClip],
        audio_feat_length: Sequence[int],
        num_frames: int,
        seed: int = 1247,
        *,
        fps: float = 25.0,
        mels: MelReader | None = None,
        with_pixels: bool = False,
    ) -> None:
        super().__init__(drop_short_clips(clips, 2 * num_frames), seed)
        self.audio_feat_length, self.num_frames, self.fps = tuple(audio_feat_length), num_frames, fps
        self.mels, self.with_pixels = mels, with_pixels

    def make_item(self, clip: EncodedClip, key: int, rng: np.random.Generator) -> dict:
        start, reference = draw_start_and_reference(clip.num_frames, self.num_frames, rng)
        run = range(start, start + self.num_frames)
        item = clip.read(latents=run, masked_latents=run)
        item["ref_latents"] = clip.read(latents=range(reference, reference + self.num_frames))["latents"]
        item["audio"] = frame_tokens(
            lambda rows: clip.read(audio_states=rows)["audio_states"],
            clip.num_rows,
            run,
            self.fps,
            self.audio_feat_length,
        )
        if self.mels is not None:
            item["mel"] = self.mels.open(clip).window(start, self.num_frames)
        if self.with_pixels:
            item["gt_pixel_values"] = self._pixels(clip, run)
        return {**item, "start_idx": start}

    def _pixels(self, clip: EncodedClip, run: range) -> Tensor:
        """Frames as they were encoded."""
        pixels = to_pixel_values(read_frames(clip.path, np.array(run), fps=self.fps))
        return jitter_clip(pixels, clip.variant) if clip.variant else pixels
