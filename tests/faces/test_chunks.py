"""Chunks of frames with a face, their overlap and their batches."""

from collections.abc import Iterator

import numpy as np
import pytest

from latentsync.faces.chunks import Chunk, batch_chunks, face_chunks, split_chunks
from latentsync.faces.video import AlignedFace, TrackedFrame
from latentsync.media.frame import VideoFrame


def stream(pattern: str) -> Iterator[TrackedFrame]:
    """One frame a character: `f` face, `c` face after a cut, `.` none."""
    image = VideoFrame.from_rgb(np.full((16, 16, 3), 90, np.uint8))
    for index, kind in enumerate(pattern):
        face = None if kind == "." else AlignedFace(np.zeros((8, 8, 3), np.uint8), np.eye(2, 3), kind == "c")
        yield TrackedFrame(index, image, face)


def numbers(frames) -> list[int]:
    return [item if isinstance(item, int) else item.index for item in frames]


def described(chunk: Chunk) -> tuple[list[int], int, int]:
    return numbers(chunk.frames), chunk.shared, chunk.left


@pytest.mark.parametrize(
    ("pattern", "chunks"),
    [
        ("", []),
        ("...", [[0], [1], [2]]),
        ("cfff", [[0, 1, 2, 3]]),
        ("cffffffff", [[0, 1, 2, 3], [4, 5, 6, 7], [8]]),
        ("cf.cf", [[0, 1], [2], [3, 4]]),
        ("cfcf", [[0, 1], [2, 3]]),
        (".c..c.", [[0], [1], [2], [3], [4], [5]]),
    ],
)
def test_chunks_end_at_gaps_cuts_and_their_full_length(pattern, chunks):
    assert [described(chunk) for chunk in face_chunks(stream(pattern), 4)] == [(found, 0, 0) for found in chunks]


@pytest.mark.parametrize(
    ("pattern", "chunks"),
    [
        ("cfff", [([0, 1, 2, 3], 0, 0)]),
        ("cffff", [([0, 1, 2, 3], 0, 1), ([3, 4], 1, 0)]),
        ("cffffff", [([0, 1, 2, 3], 0, 1), ([3, 4, 5, 6], 1, 0)]),
        ("cfff.cfffff", [([0, 1, 2, 3], 0, 0), ([4], 0, 0), ([5, 6, 7, 8], 0, 1), ([8, 9, 10], 1, 0)]),
        ("cfffcf", [([0, 1, 2, 3], 0, 0), ([4, 5], 0, 0)]),
    ],
)
def test_chunks_overlap_except_at_gaps_and_cuts(pattern, chunks):
    assert [described(chunk) for chunk in face_chunks(stream(pattern), 4, 1)] == chunks


@pytest.mark.parametrize("overlap", [0, 1, 2])
@pytest.mark.parametrize("total", [1, 3, 4, 5, 6, 7, 18])
def test_every_frame_is_delivered_once_from_full_chunks(total, overlap):
    made = list(split_chunks(total, 4, overlap))
    assert [frame for chunk in made for frame in chunk.delivered] == list(range(total))
    assert all(len(chunk.frames) == 4 for chunk in made[:-1])
    assert [described(chunk) for chunk in face_chunks(stream("c" + "f" * (total - 1)), 4, overlap)] == [
        described(chunk) for chunk in made
    ]


def test_chunks_are_made_as_the_stream_comes():
    seen = []
    source = stream("c" + "f" * 7)
    chunks = face_chunks((seen.append(item) or item for item in source), 4)
    next(chunks)
    assert len(seen) == 5  # the first of the next chunk tells that this one is full


@pytest.mark.parametrize(
    ("pattern", "overlap", "size", "batches"),
    [
        ("cfffffff", 0, 1, [1, 1]),
        ("c" + "f" * 15, 0, 3, [3, 1]),
        ("cfffff", 0, 3, [1, 1]),  # chunks of 4 and 2 frames do not go together
        ("....", 0, 3, [1, 1, 1, 1]),  # frames without a face come alone
        ("cfff.cfff", 0, 3, [1, 1, 1]),
        ("cfffcfff", 0, 3, [2]),
        ("", 0, 3, []),
        ("c" + "f" * 9, 1, 2, [2, 1]),  # the last chunk delivers all its frames
        ("cffffffcfff", 1, 3, [1, 2]),
    ],
)
def test_batches_hold_chunks_of_one_shape(pattern, overlap, size, batches):
    made = list(batch_chunks(face_chunks(stream(pattern), 4, overlap), size))
    assert [len(batch) for batch in made] == batches
    flat = [item.index for batch in made for chunk in batch for item in chunk.delivered]
    assert flat == list(range(len(pattern)))
