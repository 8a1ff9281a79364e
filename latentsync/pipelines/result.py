"""Output stages: paste-back of generated faces, frame interpolation and encoding."""

import base64
import html
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np

from latentsync.faces.contour import MeshFinder, contour_of, contour_weight
from latentsync.faces.lips import LipCloser
from latentsync.faces.sharpen import sharpen
from latentsync.faces.texture import DetailRestorer
from latentsync.faces.video import AlignedFace, TrackedFrame
from latentsync.faces.visibility import keep_out_weight
from latentsync.media.audio_stream import AudioSource
from latentsync.media.codecs import EIGHT_BIT, TEN_BIT
from latentsync.media.frame import VideoFrame
from latentsync.media.frame_rate import FrameRateConverter
from latentsync.media.probe import VideoInfo
from latentsync.media.writer import VideoWriter
from latentsync.options import GenerationOptions
from latentsync.pipelines.report import PassedRange
from latentsync.utils.affine_transform import AlignRestore
from latentsync.utils.files import staged_output
from latentsync.utils.threads import Sink

QUEUE_FRAMES = 16  # frames buffered before and after the networks
MAX_EMBEDDED_BYTES = 32 * 2**20  # of a video in a notebook
GeneratedFace = tuple[TrackedFrame, np.ndarray | None]  # a frame, and a face (R, R, 3) in 0..255 to paste into it
Deliver = Callable[[Sequence[GeneratedFace]], None]


@dataclass(frozen=True)
class LipsyncResult:
    """The output file, its number of frames and frame rate, the number of generated frames with a face, and the ranges
    of generated frames that were passed through."""

    path: Path
    num_frames: int
    faces: int
    fps: Fraction
    passed: tuple[PassedRange, ...] = ()

    def _repr_html_(self) -> str:
        """Video player for notebooks; a video that is too large to embed is only named."""
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
        mask_weight: (R, R) blending weight of the mask.
        sharpness_factor: see `latentsync.faces.sharpen.sharpen`.
        mesh: finds the contours of generated faces, to limit the paste to them; None to use the mask alone.
    """

    aligner: AlignRestore
    mask_weight: np.ndarray
    sharpness_factor: float = 1.0
    mesh: MeshFinder | None = None

    def __call__(self, item: TrackedFrame, pixels: np.ndarray, points: np.ndarray | None = None) -> VideoFrame:
        """Paste the regenerated part of a face (R, R, 3) into its frame; all other samples stay as decoded.

        points: of the mesh of the face, (468, 2), if they are known.
        """
        if item.face is None:
            raise ValueError(f"frame {item.index} has no face to replace")
        pixels = sharpen(pixels, self.sharpness_factor)
        size = (item.frame.height, item.frame.width)
        box, rgb, alpha = self.aligner.paste_region(
            size, pixels, item.face.matrix, self.weight(item.face, pixels, points)
        )
        if item.face.keep_out and alpha.size:
            alpha = alpha * keep_out_weight(box, item.face.keep_out)
        if item.face.opacity < 1:
            alpha = alpha * item.face.opacity
        return item.frame.blend_rgb(box[0], box[1], rgb, alpha, luma_only=item.frame.is_gray)

    def weight(self, face: AlignedFace, pixels: np.ndarray, points: np.ndarray | None = None) -> np.ndarray:
        """Blending weight (R, R) float32 in [0, 1] of a generated face (R', R', 3)."""
        if self.mesh is None or face.contour is None:
            return self.mask_weight
        side = len(self.mask_weight)
        if points is None:
            generated = np.clip(pixels, 0, 255).astype(np.uint8)
            if len(generated) != side:  # upscaled by an enhancer
                generated = cv2.resize(generated, (side, side), interpolation=cv2.INTER_AREA)
            points = self.mesh.find(generated, face.contour)
        return self.mask_weight * contour_weight(side, face.contour, contour_of(points))


class Finisher:
    """Turns generated faces into output frames.

    Args:
        paste: pastes a face into its frame.
        fps: frame rate of the generated frames.
        converter: converts to another frame rate by interpolation.
        details: restore the detail of the generated faces of each person; none to leave it.
        closed: how far the lips of each person are closed, see `Speaker`; none to leave them.
        mesh: that paste and details use, closed with this.
    """

    def __init__(
        self,
        paste: Paste,
        fps: Fraction,
        converter: FrameRateConverter | None = None,
        details: Sequence[DetailRestorer] = (),
        closed: Sequence[np.ndarray] = (),
        mesh: MeshFinder | None = None,
    ) -> None:
        self.mesh = mesh
        self.paste, self.converter, self.details, self.closed = paste, converter, details, closed
        self.fps = fps if converter is None else converter.target_fps

    def push(self, faces: Sequence[GeneratedFace]) -> Iterable[VideoFrame]:
        """Add a frame with the generated faces of several people; returns finished frames."""
        frame = faces[0][0].frame
        for person, (item, pixels) in enumerate(faces):
            if pixels is not None:
                # Detail first: the mesh takes soft closed lips for open ones.
                pixels, points = self._restore_detail(person, item, pixels)
                frame = self.paste(replace(item, frame=frame), self._close_lips(person, item, pixels), points)
        return [frame] if self.converter is None else self.converter.push(frame)

    @cached_property
    def _closer(self) -> LipCloser:
        """Made on first use: many videos have no pause."""
        return LipCloser()

    def _close_lips(self, person: int, item: TrackedFrame, pixels: np.ndarray) -> np.ndarray:
        amount = float(self.closed[person][item.index]) if self.closed else 0.0
        return self._closer(pixels, amount) if amount else pixels

    def _restore_detail(
        self, person: int, item: TrackedFrame, pixels: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """The face, and the points of its mesh if they were looked for."""
        if not self.details or item.face is None or pixels.shape != item.face.pixels.shape:  # upscaled
            return pixels, None
        return self.details[person](pixels, item.face)

    def flush(self) -> Iterable[VideoFrame]:
        """Return the remaining frames at the end of the stream."""
        return [] if self.converter is None else self.converter.flush()

    def close(self) -> None:
        if self.mesh is not None:
            self.mesh.close()
        if "_closer" in self.__dict__:
            self._closer.close()

    def count(self, num_frames: int) -> int:
        """Number of output frames for `num_frames` generated frames."""
        return num_frames if self.converter is None else self.converter.written


@dataclass(frozen=True)
class ResultFile:
    """Settings of the output file. Frame size and color properties are those of `info`."""

    path: str | Path
    info: VideoInfo
    fps: Fraction
    audio: AudioSource
    options: GenerationOptions
    temp_dir: str | Path | None = None

    @contextmanager
    def open(self, finisher: Finisher, on_written: Callable[[float], None] = lambda seconds: None) -> Iterator[Deliver]:
        """Yields a function that accepts frames with their generated faces, like `Finisher.push`.

        Pasting, interpolation and encoding run in a separate thread. The file is moved into place on normal exit; on an
        exception nothing is left behind. `on_written` is called in that thread after each frame, with the seconds
        that it took.
        """
        with staged_output(self.path, self.temp_dir) as staged, self._writer(staged) as writer:

            def consume(faces: Sequence[GeneratedFace]) -> None:
                begun = time.monotonic()
                for frame in finisher.push(faces):
                    writer.write(frame)
                on_written(time.monotonic() - begun)

            with Sink(consume, QUEUE_FRAMES) as sink:
                yield sink.put
            for frame in finisher.flush():
                writer.write(frame)

    def _writer(self, path: Path) -> VideoWriter:
        return VideoWriter(
            path,
            self.info.width,
            self.info.height,
            self.fps,
            color=self.info.output_color,
            sample_aspect_ratio=self.info.sample_aspect_ratio,
            codec=self.options.codec,
            pixel_format=self.options.pix_fmt or (TEN_BIT if self.options.is_ten_bit else EIGHT_BIT),
            crf=self.options.crf,
            audio=self.audio,
            max_audio_seconds=self.options.max_seconds,
        )
