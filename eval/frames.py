"""Frames of a result beside those of its source, both cut to the source's face, in step and without holding a clip.

Legend: F frames of a chunk, R pixels. 25 frames a second, whatever the files' own rates are.
"""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path

import av
import numpy as np

from latentsync.faces.align import resize_to_square, shift_source, source_box, warp_to_crop
from latentsync.faces.factory import create_detector
from latentsync.faces.tracking import FaceTracker
from latentsync.media.frame import VideoFrame
from latentsync.media.paths import file_url, open_input
from latentsync.media.probe import VideoInfo, first_video_stream, probe_video
from latentsync.media.timeline import available_frames, open_timeline
from latentsync.pipelines.face_stream import AlignedFace, FaceAligner, TrackedFrame, tracked_frames
from latentsync.utils.affine_transform import AlignRestore
from latentsync.utils.errors import UserError

FPS = 25
SAMPLE_RATE = 16000
CHUNK = 16
SAME_SHAPE = 0.02  # proportions of result and source may differ by this much: rounding to even sides


@dataclass(frozen=True)
class FaceChunk:
    """Frames `indices` (F,) of the result that show a face in the source: both faces (F, R, R, 3) uint8.

    starts (F,): True where a face does not continue the one before: at first, after a cut, after frames without any.
    """

    indices: np.ndarray
    starts: np.ndarray
    result: np.ndarray
    source: np.ndarray


class PairedFaces:
    """Iterates over chunks; `num_frames` is the result's length at 25 frames/s.

    Where the result is longer, the source is played backward and forward, as inference does. Both are cut by one
    transform, that of the source's largest face, so that a face that moved or changed its size is seen to have done so.
    """

    def __init__(self, source: Path, result: Path, resolution: int, face: str = "largest") -> None:
        """Raises UserError when a file is no video, or the two differ in their proportions."""
        self.source, self.result = probe_video(source), probe_video(result)
        self._same = source.resolve() == result.resolve()
        if self.result.is_still:
            raise UserError(f"{result}: is a picture, which has no lips that move; give a video")
        proportions = [info.width / info.height for info in (self.source, self.result)]
        if abs(proportions[0] / proportions[1] - 1) > SAME_SHAPE:
            raise UserError(
                f"{result}: is {self.result.width}x{self.result.height}, its source {self.source.width}x"
                f"{self.source.height}; give results of the whole frame"
            )
        self.resolution, self._face = resolution, face
        self.num_frames = available_frames(self.result, Fraction(FPS))

    def __iter__(self) -> Iterator[FaceChunk]:
        last = -2
        with closing(self._faces()) as faces:
            while chunk := list(islice(faces, CHUNK)):
                items, results = zip(*chunk, strict=True)
                indices = np.array([item.index for item in items])
                starts = np.array([item.face.starts for item in items]) | (np.diff(indices, prepend=last) != 1)
                last = indices[-1]
                yield FaceChunk(indices, starts, np.stack(results), np.stack([item.face.pixels for item in items]))

    def _faces(self) -> Iterator[tuple[TrackedFrame, np.ndarray]]:
        """Each frame with a face, and the result's face."""
        with closing(self._tracked_source()) as tracked:
            if self._same:
                yield from ((item, item.face.pixels) for item in tracked if item.face)
                return
            with closing(_frames(self.result, self.num_frames)) as frames:
                for item, frame in zip(tracked, frames, strict=True):
                    if item.face is not None:
                        yield item, self._cut(frame, item.face)

    def _tracked_source(self) -> Iterator[TrackedFrame]:
        with (
            closing(_frames(self.source, self.num_frames)) as frames,
            closing(create_detector("auto", static=self.source.is_still)) as detector,
        ):
            aligner = AlignRestore(resolution=self.resolution)
            yield from tracked_frames(frames, FaceAligner(FaceTracker(detector, self._face, fps=FPS), aligner))

    def _cut(self, frame: VideoFrame, face: AlignedFace) -> np.ndarray:
        """The same part of the result, whose frames may be larger or smaller than the source's."""
        size = AlignRestore(resolution=self.resolution).face_size
        matrix = rescaled(face.matrix, self.source.width / frame.width, self.source.height / frame.height)
        x0, y0, x1, y1 = source_box(matrix, size, (frame.height, frame.width))
        if x0 == x1:
            raise UserError(f"{self.result.path}: the face of {self.source.path} lies outside its frames")
        crop = warp_to_crop(frame.crop_rgb(x0, y0, x1, y1), shift_source(matrix, x0, y0), size)
        return resize_to_square(crop, self.resolution)


def rescaled(matrix: np.ndarray, scale_x: float, scale_y: float) -> np.ndarray:
    """A transform (2, 3) from source pixels, for pixels of a frame that is 1 / scale as large."""
    scales = np.array([scale_x, scale_y])
    moved = np.array(matrix, dtype=np.float64)
    moved[:, 2] += moved[:, :2] @ ((scales - 1) / 2)  # centres of pixels stay centres
    moved[:, :2] *= scales
    return moved


@contextmanager
def with_voice(video: Path, wave: np.ndarray, folder: Path) -> Iterator[Path]:
    """A file of the pictures of `video`, copied, with `wave` (N,) mono at 16 kHz as its sound, uncompressed.

    A result is thus scored with the very samples that drove it, whatever its own sound has been through.
    """
    target = folder / "voiced.mkv"
    try:
        with open_input(video) as source, av.open(file_url(target), "w") as container:
            stream = first_video_stream(source, video)
            pictures = container.add_stream_from_template(stream)
            sound = container.add_stream("pcm_f32le", rate=SAMPLE_RATE, layout="mono")
            for packet in source.demux(stream):
                if packet.size:  # the last one only flushes; Matroska's first ones may lack a decoding time
                    packet.stream = pictures
                    container.mux(packet)
            for start in range(0, len(wave), SAMPLE_RATE):
                frame = av.AudioFrame.from_ndarray(wave[None, start : start + SAMPLE_RATE].copy(), "flt", "mono")
                frame.sample_rate, frame.pts, frame.time_base = SAMPLE_RATE, start, Fraction(1, SAMPLE_RATE)
                container.mux(sound.encode(frame))
            container.mux(sound.encode(None))
    except av.error.FFmpegError as error:
        target.unlink(missing_ok=True)
        raise UserError(f"{video}: cannot be given the voice to score its sync ({error.strerror})") from error
    try:
        yield target
    finally:
        target.unlink(missing_ok=True)


def _frames(info: VideoInfo, count: int) -> Iterator[VideoFrame]:
    return open_timeline(info, Fraction(count, FPS), Fraction(FPS))
