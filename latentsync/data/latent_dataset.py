"""Training samples from clips encoded once: no frame is decoded and no network runs while training.

Legend: F frames of a run, C latent channels, h latent cells, S audio tokens, D width, R pixels of a side.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from latentsync.data.clip_dataset import ClipDataset
from latentsync.data.clips import drop_short_clips
from latentsync.data.encoded_clips import EncodedClip
from latentsync.data.silent_runs import SilentRuns
from latentsync.data.sound import MelReader, frame_tokens
from latentsync.data.windows import draw_start_and_reference
from latentsync.options import DEFAULT_SEED


class LatentClipDataset(ClipDataset):
    """Runs of `num_frames` frames with a reference run of the same clip that does not overlap them.

    Items: latents, masked_latents, ref_latents (F, C, h, h) and audio (F, S, D), float32; start_idx and silent (0 or 1)
    int; key, video_path, failed_paths. On demand mel (1, 80, columns) and gt_pixel_values (F, 3, R, R) in [-1, 1].

    Args:
        clips: from `ClipEncoder`; those shorter than two runs are left out with a warning.
        audio_feat_length: (l, r), the frames heard before and after.
        num_frames: F.
        seed: of the whole run.
        fps: video frames a second.
        mels: gives the mel of a run; None leaves it out.
        with_pixels: read the frames of the run from the clip as well.
        silent_runs: makes some of the samples silent ones, whose mel means nothing; None for none.

    Raises:
        UserError: no clip is long enough.
    """

    def __init__(
        self,
        clips: Sequence[EncodedClip],
        audio_feat_length: Sequence[int],
        num_frames: int,
        seed: int = DEFAULT_SEED,
        *,
        fps: float = 25.0,
        mels: MelReader | None = None,
        with_pixels: bool = False,
        silent_runs: SilentRuns | None = None,
    ) -> None:
        super().__init__(drop_short_clips(clips, 2 * num_frames), seed)
        self.audio_feat_length, self.num_frames, self.fps = tuple(audio_feat_length), num_frames, fps
        self.mels, self.with_pixels, self.silent_runs = mels, with_pixels, silent_runs

    def make_item(self, clip: EncodedClip, key: int, rng: np.random.Generator) -> dict:
        silent = self.silent_runs.draw(clip, rng) if self.silent_runs is not None else None
        if silent is not None:
            frames, reference, tokens = silent.frames, silent.reference, silent.tokens
        else:
            start, reference = draw_start_and_reference(clip.num_frames, self.num_frames, rng)
            frames = np.arange(start, start + self.num_frames)
            tokens = self._tokens(clip, range(start, start + self.num_frames))
        first, within = int(frames.min()), range(int(frames.min()), int(frames.max()) + 1)
        read = clip.read(latents=within, masked_latents=within)
        item = {name: rows[torch.from_numpy(frames - first)] for name, rows in read.items()}
        item["ref_latents"] = clip.read(latents=range(reference, reference + self.num_frames))["latents"]
        if self.mels is not None:
            item["mel"] = self.mels.open(clip).window(int(frames[0]), self.num_frames)
        if self.with_pixels:
            item["gt_pixel_values"] = clip.pictures(frames, self.fps)
        return {**item, "audio": tokens, "start_idx": int(frames[0]), "silent": int(silent is not None)}

    def _tokens(self, clip: EncodedClip, run: range) -> Tensor:
        return frame_tokens(
            lambda rows: clip.read(audio_states=rows)["audio_states"],
            clip.num_rows,
            run,
            self.fps,
            self.audio_feat_length,
        )
