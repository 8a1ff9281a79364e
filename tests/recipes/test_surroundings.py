"""Pixels around a face: what counts as outside."""

from dataclasses import replace

import numpy as np
import pytest

from latentsync.faces.video import AlignedFace, TrackedFrame
from latentsync.media.frame import VideoFrame
from recipes.embedded.surroundings import RESOLUTION, SIZE, surroundings

SHIFT = 20  # of the crop in the frame


def tracked(image: np.ndarray) -> TrackedFrame:
    angles = np.linspace(0, 2 * np.pi, 36, endpoint=False)
    contour = RESOLUTION / 2 + RESOLUTION / 4 * np.stack([np.cos(angles), np.sin(angles)], 1)
    matrix = np.array([[1.0, 0, -SHIFT], [0, 1, -SHIFT]])
    return TrackedFrame(0, VideoFrame.from_rgb(image), AlignedFace(image, matrix, True, contour))


@pytest.mark.parametrize(
    ("top", "left", "changes"),
    [(SHIFT + SIZE[1] // 2, SHIFT + SIZE[0] // 2, False), (SHIFT + 4, SHIFT + 4, True), (4, 4, False)],
    ids=["in the face", "in the crop", "outside the crop"],
)
def test_only_the_crop_around_the_face_counts(top: int, left: int, changes: bool):
    image = np.full((340, 260, 3), 100, np.uint8)
    changed = image.copy()
    changed[top : top + 8, left : left + 8] = 160
    found = surroundings(tracked(image), tracked(changed))
    assert found is not None
    assert len(found) < SIZE[0] * SIZE[1]
    assert bool(np.abs(found).max() > 40) == changes


def test_frames_without_a_contour_do_not_count():
    found = tracked(np.zeros((340, 260, 3), np.uint8))
    assert surroundings(found, replace(found, face=None)) is None
