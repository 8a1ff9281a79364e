"""Training samples of the UNet, from clips as they are (pixels) or encoded once (latents).

Legend: F frames of a window, C latent channels, h latent cells, R pixels of a side, S audio tokens, D width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from latentsync.config.sections import AugmentConfig
from latentsync.constants import DEFAULT_SEED, FPS, SAMPLE_RATE
from latentsync.data.audio import MelReader, frame_tokens
from latentsync.data.augment import augment, draw_augmentation
from latentsync.data.clip_dataset import ClipDataset, draw_start_and_reference
from latentsync.data.clips import Clip, drop_short_clips, examine_clips, read_frames, to_pixel_values
from latentsync.data.encoded_clips import EncodedClip
from latentsync.media.audio import load_audio
from latentsync.whisper.audio2feature import Audio2Feature
from latentsync.whisper.windows import frame_rows


class UNetDataset(ClipDataset):
    """Windows of frames with a reference window of the same clip that does not overlap them.

    Items: gt_pixel_values, masked_pixel_values, ref_pixel_values (F, 3, R, R) float32 in [-1, 1]; masks (F, 1, R, R),
    1 = keep; mel (1, 80, columns); audio (F, S, D); start_idx int; key, video_path, failed_paths. With
    `whisper_on_device`, instead of audio: whisper_mel, the input of the audio encoder, and whisper_rows, the rows of
    its output that make the tokens of each frame, see `whisper_tokens`.

    Args:
        clips: of a file list; their headers are checked, see `examine_clips`.
        audio: audio encoder; its `num_frames` is F. On the CPU when worker processes read the data. Without a cache
            directory of its own the whole audio of a clip is encoded for each sample.
        mask: (1, 1, R, R), 1 keeps a pixel.
        seed: of the whole run.
        fps: frame rate that clips must have.
        mel_cache_dir: keeps the mel of whole files; empty or None computes it for each sample.
        augmentation: of the frames.
        whisper_on_device: leave the audio encoder to the training step, which needs no cache of its states.
        pairs: folder of altered twins (`twin_path`); the frames of the twin take the place of the masked frames.

    Raises:
        UserError: the clips cannot be used for training.
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        audio: Audio2Feature,
        mask: Tensor,
        seed: int = DEFAULT_SEED,
        *,
        fps: float = FPS,
        mel_cache_dir: str | None = None,
        augmentation: AugmentConfig | None = None,
        whisper_on_device: bool = False,
        pairs: Path | None = None,
    ) -> None:
        self.audio, self.mask, self.fps, self.whisper_on_device = audio, mask, fps, whisper_on_device
        self.pairs = pairs
        self.num_frames, self.resolution = audio.num_frames, mask.shape[-1]
        super().__init__(
            examine_clips(clips, min_frames=2 * self.num_frames, fps=fps, resolution=self.resolution), seed
        )
        self.mels = MelReader(mel_cache_dir, fps)
        self.augmentation = augmentation or AugmentConfig()

    def make_item(self, clip: Clip, key: int, rng: np.random.Generator) -> dict:
        start, reference = draw_start_and_reference(clip.num_frames, self.num_frames, rng)
        window = np.arange(self.num_frames)
        with clip.fetched() as local:
            indices = np.concatenate([start + window, reference + window])
            frames = read_frames(local.path, indices, resolution=self.resolution, fps=self.fps)
            mel = self.mels.open(local).window(start, self.num_frames)
            audio = self._whisper_input(local, start) if self.whisper_on_device else self._tokens(local, start)
        if self.pairs is not None:
            twin = read_frames(twin_path(self.pairs, clip), start + window, resolution=self.resolution, fps=self.fps)
            frames = np.concatenate([frames, twin])
        pixels = augment(to_pixel_values(frames), draw_augmentation(self.augmentation, rng))
        target, reference_pixels, *twins = pixels.split(self.num_frames)
        return {
            "gt_pixel_values": target.contiguous(),
            "masked_pixel_values": twins[0].contiguous() if twins else target * self.mask,
            "ref_pixel_values": reference_pixels.contiguous(),
            "masks": self.mask.expand(self.num_frames, -1, -1, -1),
            "mel": mel,
            **audio,
            "start_idx": start,
        }

    def _tokens(self, clip: Clip, start: int) -> dict[str, Tensor]:
        with clip.local() as path:
            states = self.audio.audio2feat(path, clip.digest)
        return {"audio": self.audio.crop_overlap_audio_window(states, start, self.fps)}

    def _whisper_input(self, clip: Clip, start: int) -> dict[str, Tensor]:
        with clip.local() as path:
            mel, num_rows = self.audio.window_mel(load_audio(path, SAMPLE_RATE))
        frames, context = range(start, start + self.num_frames), self.audio.audio_feat_length
        rows = torch.stack([frame_rows(frame, self.fps, context, num_rows) for frame in frames])
        return {"whisper_mel": mel, "whisper_rows": rows}


def twin_path(folder: Path, clip: Clip) -> Path:
    """The altered twin of a clip, named by its content."""
    return folder / f"{clip.content_digest}.mp4"


def whisper_tokens(audio: Audio2Feature, mels: Tensor, rows: Tensor) -> Tensor:
    """Tokens (B, F, S, D) of whisper_mel (B, n_mels, T) and whisper_rows (B, F, S / layers), on `audio`'s device."""
    states = audio.encode_windows(mels)
    batch = torch.arange(len(rows), device=states.device)[:, None, None]
    return rearrange(states[batch, rows.to(states.device)], "b f t l d -> b f (t l) d")


@dataclass(frozen=True)
class LatentWindow:
    """One sample of `LatentClipDataset`: target frames (F,), first frame of the reference window, tokens (F, S, D).

    has_speech: whether lips and audio can be compared by a SyncNet.
    """

    frames: np.ndarray
    reference: int
    tokens: Tensor
    has_speech: bool = True


# Draws a window of its own making of a clip, or None to leave the choice to the dataset.
DrawWindow = Callable[[EncodedClip, np.random.Generator], LatentWindow | None]


class LatentClipDataset(ClipDataset):
    """The same from clips encoded once: no frame is decoded and no network runs while training.

    Items: latents, masked_latents, ref_latents (F, C, h, h) and audio (F, S, D), float32; start_idx and has_speech
    (0 or 1) int; key, video_path, failed_paths. On demand mel (1, 80, columns) and gt_pixel_values (F, 3, R, R) in
    [-1, 1].

    Args:
        clips: from `ClipEncoder`; those shorter than two windows are left out with a warning.
        audio_feat_length: (l, r), frames of audio context before and after.
        num_frames: F.
        seed: of the whole run.
        fps: video frames per second.
        mels: gives the mel of a window; None leaves it out.
        with_pixels: read the frames of the window from the clip as well.
        draw_window: replaces some of the windows; None for none.

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
        fps: float = FPS,
        mels: MelReader | None = None,
        with_pixels: bool = False,
        draw_window: DrawWindow | None = None,
    ) -> None:
        super().__init__(drop_short_clips(clips, 2 * num_frames), seed)
        self.audio_feat_length, self.num_frames, self.fps = tuple(audio_feat_length), num_frames, fps
        self.mels, self.with_pixels, self.draw_window = mels, with_pixels, draw_window

    def make_item(self, clip: Clip, key: int, rng: np.random.Generator) -> dict:
        assert isinstance(clip, EncodedClip)
        window = self.draw_window(clip, rng) if self.draw_window is not None else None
        window = window or self._speech_window(clip, rng)
        frames, reference = window.frames, window.reference
        first, within = int(frames.min()), range(int(frames.min()), int(frames.max()) + 1)
        read = clip.read(latents=within, masked_latents=within)
        item = {name: rows[torch.from_numpy(frames - first)] for name, rows in read.items()}
        item["ref_latents"] = clip.read(latents=range(reference, reference + self.num_frames))["latents"]
        if self.mels is not None:
            item["mel"] = self.mels.open(clip).window(int(frames[0]), self.num_frames)
        if self.with_pixels:
            item["gt_pixel_values"] = clip.pixels(frames, self.fps)
        return {**item, "audio": window.tokens, "start_idx": int(frames[0]), "has_speech": int(window.has_speech)}

    def _speech_window(self, clip: EncodedClip, rng: np.random.Generator) -> LatentWindow:
        start, reference = draw_start_and_reference(clip.num_frames, self.num_frames, rng)
        window = range(start, start + self.num_frames)
        tokens = frame_tokens(
            lambda rows: clip.read(audio_states=rows)["audio_states"],
            clip.num_rows,
            window,
            self.fps,
            self.audio_feat_length,
        )
        return LatentWindow(np.array(window), reference, tokens)
