"""The end of the stream: generated faces pasted into their frames, frame interpolation, the output file."""

import base64
import html
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np

from latentsync.faces.contour import ContourFinder, contour_weight
from latentsync.faces.sharpen import sharpen
from latentsync.faces.video import AlignedFace, TrackedFrame
from latentsync.media.audio_stream import AudioSource
from latentsync.media.frame import VideoFrame
from latentsync.media.frame_rate import FrameRateConverter
from latentsync.media.probe import VideoInfo
from latentsync.media.writer import VideoWriter
from latentsync.options import GenerationOptions
from latentsync.utils.affine_transform import AlignRestore
from latentsync.utils.files import staged_output
from latentsync.utils.threads import Sink

QUEUE_FRAMES = 16  # frames kept ready on either side of the networks
MAX_EMBEDDED_BYTES = 32 * 2**20  # of a video inside a notebook
Deliver = Callable[[TrackedFrame, np.ndarray | None], None]


@dataclass(frozen=True)
class LipsyncResult:
    """The written file, its number of frames and frame rate, and how many generated frames have a face."""

    path: Path
    num_frames: int
    faces: int
    fps: Fraction

    def _repr_html_(self) -> str:
        """A player for notebooks; the video is embedded, or only named where it is too large for that."""
        summary = html.escape(f"{self.path}: {self.num_frames} frames at {float(self.fps):g} frames/s")
        if not self.path.is_file() or self.path.stat().st_size > MAX_EMBEDDED_BYTES:
            return f"<p>{summary}</p>"
        video = base64.b64encode(self.path.read_bytes()).decode("ascii")
        return f'<video controls src="data:video/mp4;base64,{video}"></video><p>{summary}</p>'


@dataclass(frozen=True)
class Paste:
    """Pastes generated faces into frames.

    Args:
        aligner: maps aligned faces to frames.
        box_weight: (R, R) share of the generated face, by the mask alone.
        inner_weight: the same for a paste that also ends at the face's contour; None for `box_weight` everywhere.
        sharpness_factor: of the generated face, 1 leaves it unchanged.
        contours: finds the contours of generated faces; None together with `inner_weight`.
    """

    aligner: AlignRestore
    box_weight: np.ndarray
    inner_weight: np.ndarray | None = None
    sharpness_factor: float = 1.0
    contours: ContourFinder | None = None

    def __call__(self, item: TrackedFrame, pixels: np.ndarray) -> VideoFrame:
        """Paste the regenerated part of a face (R, R, 3); every other sample stays as decoded."""
        pixels = sharpen(pixels, self.sharpness_factor)
        size = (item.frame.height, item.frame.width)
        box, rgb, alpha = self.aligner.paste_region(size, pixels, item.face.matrix, self.weight(item.face, pixels))
        return item.frame.blend_rgb(box[0], box[1], rgb, alpha, luma_only=item.frame.is_gray)

    def weight(self, face: AlignedFace, pixels: np.ndarray) -> np.ndarray:
        """Share of the generated face (R', R', 3) to paste, (R, R) float32 in [0, 1]."""
        if self.inner_weight is None or self.contours is None or face.contour is None:
            return self.box_weight
        side = len(self.inner_weight)
        seen = np.clip(pixels, 0, 255).astype(np.uint8)
        if len(seen) != side:  # an enhancer enlarged it
            seen = cv2.resize(seen, (side, side), interpolation=cv2.INTER_AREA)
        return self.inner_weight * contour_weight(side, face.contour, self.contours.find(seen, face.contour))

    def close(self) -> None:
        """Release the network that finds contours."""
        if self.contours is not None:
            self.contours.close()


class Finisher:
    """From generated faces to finished frames.

    Args:
        paste: pastes a face into its frame.
        fps: of the generated frames.
        converter: interpolates to another frame rate.
    """

    def __init__(self, paste: Paste, fps: Fraction, converter: FrameRateConverter | None = None) -> None:
        self.paste, self.converter = paste, converter
        self.fps = fps if converter is None else converter.target_fps

    def push(self, item: TrackedFrame, pixels: np.ndarray | None) -> Iterable[VideoFrame]:
        """Finished frames that follow from a frame and its face (R, R, 3) in 0..255; None keeps the frame as it is."""
        frame = item.frame if pixels is None else self.paste(item, pixels)
        return [frame] if self.converter is None else self.converter.push(frame)

    def flush(self) -> Iterable[VideoFrame]:
        """The frames that are left at the end."""
        return [] if self.converter is None else self.converter.flush()

    def close(self) -> None:
        self.paste.close()

    def count(self, num_frames: int) -> int:
        """Finished frames that `num_frames` generated ones give."""
        return num_frames if self.converter is None else self.converter.written


@dataclass(frozen=True)
class ResultFile:
    """The file to write: size and color of `info`, frame rate, audio track, quality."""

    path: str | Path
    info: VideoInfo
    fps: Fraction
    audio: AudioSource
    options: GenerationOptions
    temp_dir: str | Path | None = None

    @contextmanager
    def open(self, finisher: Finisher) -> Iterator[Deliver]:
        """Accepts frames and their generated faces, as `Finisher.push`.

        Pasting, interpolation and encoding run in a thread of their own. The file appears when the block is left
        normally; an exception leaves nothing behind.
        """
        with staged_output(self.path, self.temp_dir) as staged, self._writer(staged) as writer:

            def consume(pair: tuple[TrackedFrame, np.ndarray | None]) -> None:
                for frame in finisher.push(*pair):
                    writer.write(frame)

            with Sink(consume, QUEUE_FRAMES) as sink:
                yield lambda item, pixels: sink.put((item, pixels))
            for frame in finisher.flush():
                writer.write(frame)

    def _writer(self, path: Path) -> VideoWriter:
        return VideoWriter(
            path,
            self.info.width,
            self.info.height,
            self.fps,
            color=self.info.color,
            sample_aspect_ratio=self.info.sample_aspect_ratio,
            crf=self.options.crf,
            audio=self.audio,
            max_audio_seconds=self.options.max_seconds,
        )
