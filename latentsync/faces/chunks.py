"""Chunks: consecutive frames that are denoised together, and how they overlap.

A chunk begins with the last frames of the one before, unless a cut or a frame without a face lies between them. Such
frames are generated twice and cross-faded, see `latentsync.pipelines.crossfade`.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from latentsync.faces.video import TrackedFrame

Item = TypeVar("Item")


@dataclass(frozen=True)
class Chunk(Generic[Item]):
    """Consecutive frames.

    Args:
        frames: all of them.
        shared: how many of the first frames are also the last ones of the previous chunk.
        left: how many of the last frames the next chunk delivers.
        has_face: whether there is anything to denoise.
    """

    frames: Sequence[Item]
    shared: int = 0
    left: int = 0
    has_face: bool = True

    @property
    def delivered(self) -> Sequence[Item]:
        """The frames that come out of this chunk."""
        return self.frames[: len(self.frames) - self.left]

    @property
    def shape(self) -> tuple[int, int, bool]:
        """Equal for chunks that can be denoised as one batch."""
        return len(self.frames), self.left, self.has_face


def face_chunks(frames: Iterable[TrackedFrame], size: int, overlap: int = 0) -> Iterator[Chunk[TrackedFrame]]:
    """Group consecutive frames into chunks.

    A chunk has at most `size` frames, all with a face and without a cut in between. A frame without a face forms a
    chunk of its own, which is not denoised.
    """
    chunk: list[TrackedFrame] = []
    shared = 0
    for item in frames:
        ends = item.face is None or item.face.starts
        if chunk and (ends or len(chunk) == size):
            left = 0 if ends else overlap
            yield Chunk(chunk, shared, left)
            chunk, shared = chunk[len(chunk) - left :], left
        if item.face is None:
            yield Chunk([item], has_face=False)
        else:
            chunk.append(item)
    if chunk:
        yield Chunk(chunk, shared)


def split_chunks(total: int, size: int, overlap: int = 0) -> Iterator[Chunk[int]]:
    """Split the frames 0 .. `total` - 1 into chunks; the last one may be shorter."""
    for start in range(0, max(total - overlap, 1), size - overlap):
        stop = min(start + size, total)
        yield Chunk(range(start, stop), overlap if start else 0, overlap if stop < total else 0)


def batch_chunks(chunks: Iterable[Chunk[Item]], size: int) -> Iterator[list[Chunk[Item]]]:
    """Group up to `size` consecutive chunks of one shape; a frame without a face forms its own group."""
    batch: list[Chunk[Item]] = []
    for chunk in chunks:
        if batch and (len(batch) == size or not chunk.has_face or chunk.shape != batch[0].shape):
            yield batch
            batch = []
        batch.append(chunk)
    if batch:
        yield batch
