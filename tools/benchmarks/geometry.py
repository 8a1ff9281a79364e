"""Time per frame of alignment and paste-back, as in the pipeline."""

import time
from collections.abc import Callable, Sequence

import numpy as np

from latentsync.faces.mask import blend_weight, load_mask
from latentsync.faces.video import AlignedFace, TrackedFrame, align_face
from latentsync.media.frame import VideoFrame
from latentsync.pipelines.result import Paste
from latentsync.utils.affine_transform import AlignRestore
from tools.benchmarks import CROP_WIDTHS, SIZES
from tools.benchmarks.inputs import moving_frames
from tools.benchmarks.report import Figure

ALIGN_LIMIT_MS = 8.0
PASTE_LIMIT_MS = {"720p": 20.0, "1080p": 25.0}
RESOLUTIONS = (128, 256)
FRAMES = 10  # distinct frames, more than fit into a cache
REPEATS = 60


def measure(
    sizes: Sequence[str] = tuple(SIZES), resolutions: Sequence[int] = RESOLUTIONS, repeats: int = REPEATS
) -> list[Figure]:
    """Measure alignment and paste-back at each frame size and face resolution."""
    figures = []
    for name in sizes:
        frames = list(moving_frames(SIZES[name], CROP_WIDTHS[name], min(FRAMES, repeats)))
        for resolution in resolutions:
            figures += _measure(name, resolution, frames, repeats)
    return figures


def _measure(name: str, resolution: int, frames: list[tuple[VideoFrame, np.ndarray]], repeats: int) -> list[Figure]:
    aligner = AlignRestore(resolution=resolution)
    paste = Paste(aligner, blend_weight(load_mask(resolution)))
    faces = [(frame, align_face(frame, anchors, aligner)) for frame, anchors in frames]

    def align(index: int) -> AlignedFace | None:
        return align_face(*frames[index % len(frames)], aligner)

    def paste_back(index: int) -> VideoFrame:
        frame, face = faces[index % len(faces)]
        assert face is not None
        pixels = 255.0 - face.pixels.astype(np.float32)
        return paste(TrackedFrame(index, frame, face), pixels)

    place = f"{name}, {resolution} px"
    return [
        _figure(f"align, {place}", align, repeats, ALIGN_LIMIT_MS, name),
        _figure(f"paste-back, {place}", paste_back, repeats, PASTE_LIMIT_MS[name], name),
    ]


def _figure(name: str, call: Callable[[int], object], repeats: int, limit: float, size: str) -> Figure:
    """Median wall-clock time of `repeats` calls; the note holds the CPU time of all threads."""
    for index in range(3):
        call(index)
    walls = []
    cpu = time.process_time()
    for index in range(repeats):
        start = time.perf_counter()
        call(index)
        walls.append(time.perf_counter() - start)
    cpu = (time.process_time() - cpu) / repeats
    note = f"median of {repeats}, crop {CROP_WIDTHS[size]} px wide in the frame; CPU time {1000 * cpu:.1f} ms"
    return Figure("geometry", name, 1000 * float(np.median(walls)), "ms", limit, note)
