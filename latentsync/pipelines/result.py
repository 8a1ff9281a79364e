"""The end of the stream: new faces pasted into their frames, frames in between where asked for, the file."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from latentsync.faces.sharpen import sharpen
from latentsync.media.frame import VideoFrame
from latentsync.media.frame_rate import FrameRateConverter
from latentsync.media.probe import VideoInfo
from latentsync.media.writer import VideoWriter
from latentsync.pipelines.face_stream import TrackedFrame
from latentsync.utils.affine_transform import AlignRestore
from latentsync.utils.files import staged_output
from latentsync.utils.threads import Sink

QUEUE_FRAMES = 16  # frames kept ready on either side of the networks
Deliver = Callable[[TrackedFrame, np.ndarray | None], None]


@dataclass(frozen=True)
class LipsyncResult:
    """What a run made: where it is, its frames, and how many of the frames before interpolation had a face to speak."""

    path: Path
    num_frames: int
    faces: int
    fps: Fraction


@dataclass(frozen=True)
class Paste:
    """How new faces get into their frames: `weight` (R, R) of the new pixels, sharpened by `sharpness_factor`."""

    aligner: AlignRestore
    weight: np.ndarray
    sharpness_factor: float = 1.0

    def __call__(self, item: TrackedFrame, pixels: np.ndarray) -> VideoFrame:
        """Put the regenerated part of a face (R, R, 3) back; every other sample stays as decoded."""
        pixels = sharpen(pixels, self.sharpness_factor)
        size = (item.frame.height, item.frame.width)
        box, rgb, alpha = self.aligner.paste_region(size, pixels, item.face.matrix, self.weight)
        return item.frame.blend_rgb(box[0], box[1], rgb, alpha)


@dataclass(frozen=True)
class ResultFile:
    """The file to write: rate before interpolation, its sound (as far as `max_seconds`), quality."""

    path: str | Path
    info: VideoInfo
    fps: Fraction
    audio: str | Path
    crf: int
    max_seconds: float | None = None
    temp_dir: str | Path | None = None

    @contextmanager
    def open(self, paste: Paste, converter: FrameRateConverter | None = None) -> Iterator[Deliver]:
        """Takes pairs of a frame and its new face (R, R, 3) in 0..255, None to pass the frame through.

        Pasting, interpolation and encoding run in a thread of their own. The file appears when the block is left
        normally; an exception leaves nothing behind.
        """
        with staged_output(self.path, self.temp_dir) as staged, self._writer(staged, converter) as writer:

            def consume(pair: tuple[TrackedFrame, np.ndarray | None]) -> None:
                item, pixels = pair
                frame = item.frame if pixels is None else paste(item, pixels)
                for shown in [frame] if converter is None else converter.push(frame):
                    writer.write(shown)

            with Sink(consume, QUEUE_FRAMES) as sink:
                yield lambda item, pixels: sink.put((item, pixels))
            if converter is not None:
                for frame in converter.flush():
                    writer.write(frame)

    def _writer(self, path: Path, converter: FrameRateConverter | None) -> VideoWriter:
        return VideoWriter(
            path,
            self.info.width,
            self.info.height,
            self.fps if converter is None else converter.target_fps,
            color=self.info.color,
            sample_aspect_ratio=self.info.sample_aspect_ratio,
            crf=self.crf,
            audio=self.audio,
            max_audio_seconds=self.max_seconds,
        )
