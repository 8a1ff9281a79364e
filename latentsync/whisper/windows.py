"""Encoder states of a signal of any length, window by window, and the tokens of each video frame.

Letters: R rows (encoder states, 50 per second), L encoder blocks, D width, S tokens of one video frame.
"""

import math
from collections import OrderedDict
from collections.abc import Callable
from fractions import Fraction

import torch
from einops import rearrange

from latentsync.constants import SAMPLE_RATE, WHISPER_ROWS_PER_SECOND
from latentsync.whisper.mel import LogMel

MEL_PER_ROW = 2
FADE_SECONDS = 1.0
WINDOWS_IN_MEMORY = 2  # the two at a seam

Fps = int | float | Fraction


def count_frames(num_samples: int, fps: Fps) -> int:
    """Video frames that cover `num_samples` samples of 16 kHz audio: ceil(duration * fps), without rounding error."""
    return math.ceil(Fraction(num_samples, SAMPLE_RATE) * Fraction(fps))


def frame_rows(frame: int, fps: Fps, feat_length: tuple[int, int], num_rows: int) -> torch.Tensor:
    """Indices of the 2(l + r + 1) rows around the time of a video frame, clamped to the signal."""
    left, right = feat_length
    center = int(frame * WHISPER_ROWS_PER_SECOND / fps)
    return torch.arange(center - 2 * left, center + 2 * (right + 1)).clamp_(0, num_rows - 1)


class FeatureRows:
    """Rows of encoder states of one signal, with at most two windows in memory.

    Neighboring windows overlap by `overlap_rows` rows. The outer rows of each window, which have the least context, are
    dropped, and a linear cross-fade of one second in the middle of the overlap joins the two. Without overlap, windows
    are independent and adjacent.

    Args:
        mel: the signal.
        encode: (n_mels, 2 * window_rows) normalized log-mel -> (window_rows, L + 1, D) float32 on the CPU.
        window_rows: rows of one window (1500: 30 s).
        overlap_rows: even, at most half of `window_rows` (so that two fades never meet).
    """

    def __init__(
        self,
        mel: LogMel,
        encode: Callable[[torch.Tensor], torch.Tensor],
        window_rows: int,
        overlap_rows: int,
    ) -> None:
        if not 0 <= overlap_rows <= window_rows // 2 or overlap_rows % 2:
            raise ValueError(f"overlap_rows must be even and in [0, {window_rows // 2}], got {overlap_rows}")
        self.num_rows = mel.num_frames // MEL_PER_ROW
        self._mel = mel
        self._encode = encode
        self._window_rows = window_rows
        self._hop = window_rows - overlap_rows
        self._overlap = overlap_rows
        self._half_fade = min(round(FADE_SECONDS * WHISPER_ROWS_PER_SECOND), overlap_rows) // 2
        self._windows: OrderedDict[int, torch.Tensor] = OrderedDict()

    def read(self, start: int, stop: int) -> torch.Tensor:
        """Rows `start` to `stop - 1`, both within the signal: (R, L + 1, D) float32."""
        pieces = []
        index = self._window_of(start)
        while start < stop:
            pieces.append(self._owned(index, start, stop))
            start += len(pieces[-1])
            index += 1
        return torch.cat(pieces)

    @property
    def num_windows(self) -> int:
        """Windows needed to cover the signal, at least one."""
        return 1 + max(0, math.ceil((self.num_rows - self._window_rows) / self._hop))

    def _seam(self, index: int) -> int:
        """Row at the center of the overlap between windows `index - 1` and `index`."""
        return index * self._hop + self._overlap // 2

    def _window_of(self, row: int) -> int:
        """The window that `row` belongs to; windows are delimited by the starts of their cross-fades."""
        reached = (row + self._half_fade - self._overlap // 2) // self._hop
        return min(max(reached, 0), self.num_windows - 1)

    def _owned(self, index: int, start: int, stop: int) -> torch.Tensor:
        """Rows of `[start, stop)` that belong to window `index`, cross-faded with the window before it."""
        is_last = index == self.num_windows - 1
        stop = min(stop, self.num_rows if is_last else self._seam(index + 1) - self._half_fade)
        rows = self._window(index)[start - index * self._hop : stop - index * self._hop]
        fade_end = self._seam(index) + self._half_fade
        if index == 0 or start >= fade_end:
            return rows
        num_fading = min(stop, fade_end) - start
        begin = start - (index - 1) * self._hop
        leaving = self._window(index - 1)[begin : begin + num_fading]
        position = torch.arange(start, start + num_fading) - (fade_end - 2 * self._half_fade)
        weight = ((position + 0.5) / (2 * self._half_fade))[:, None, None]
        return torch.cat([torch.lerp(leaving, rows[:num_fading], weight), rows[num_fading:]])

    def _window(self, index: int) -> torch.Tensor:
        if index not in self._windows:
            start = index * self._hop * MEL_PER_ROW
            stop = min(start + self._window_rows * MEL_PER_ROW, self._mel.num_frames)
            mel = self._mel.frames(start, stop)
            padded = torch.nn.functional.pad(mel, (0, self._window_rows * MEL_PER_ROW - mel.shape[1]))
            self._windows[index] = self._encode(padded)
            if len(self._windows) > WINDOWS_IN_MEMORY:
                self._windows.popitem(last=False)
        self._windows.move_to_end(index)
        return self._windows[index]


class AudioFeatureStream:
    """Audio tokens of each video frame of one clip, computed on demand.

    Memory is bounded by two encoder windows (23 MB for Whisper tiny) for audio of any length. Reading frames out of
    order works, but may encode windows again.

    Args:
        rows: the encoder states of the whole signal.
        fps: video frame rate.
        feat_length: (l, r), video frames of context before and after.
        num_frames: length of the clip in video frames.
    """

    def __init__(self, rows: FeatureRows, fps: Fps, feat_length: tuple[int, int], num_frames: int) -> None:
        self.num_frames = num_frames
        self._rows = rows
        self._fps = fps
        self._feat_length = feat_length

    def __len__(self) -> int:
        return self.num_frames

    def chunk(self, frame: int) -> torch.Tensor:
        """Tokens of one video frame: (S, D) float32."""
        return self.chunks(frame, frame + 1)[0]

    def chunks(self, start: int, stop: int) -> torch.Tensor:
        """Tokens of video frames `start` to `stop - 1`: (stop - start, S, D) float32 on the CPU.

        Raises:
            IndexError: the range is empty or reaches outside the clip.
        """
        if not 0 <= start < stop <= self.num_frames:
            raise IndexError(f"frames {start}..{stop} are not within the clip's {self.num_frames}")
        frames = range(start, stop)
        indices = torch.stack([frame_rows(f, self._fps, self._feat_length, self._rows.num_rows) for f in frames])
        first, last = int(indices.min()), int(indices.max())
        return gather_tokens(self._rows.read(first, last + 1), indices - first)


def gather_tokens(rows: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Rows (R, L + 1, D) at indices (F, 2(l + r + 1)) -> tokens (F, S, D), time first, then layers."""
    return rearrange(rows[indices], "f t l d -> f (t l) d")
