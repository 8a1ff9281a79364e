"""Where generated faces change their frames."""

from fractions import Fraction

import numpy as np
import pytest

from latentsync.faces.mask import blend_weight, load_mask
from latentsync.faces.mediapipe_detector import FACE_OVAL
from latentsync.faces.mediapipe_graphs import NUM_POINTS
from latentsync.faces.video import AlignedFace
from latentsync.pipelines.result import Finisher, Paste
from latentsync.utils.affine_transform import AlignRestore

SIDE = 64


class Finder:
    """In place of `MeshFinder`: finds the contour that it is given."""

    def __init__(self, contour: np.ndarray) -> None:
        self.points, self.seen, self.closed = np.zeros((NUM_POINTS, 2)), [], False
        self.points[FACE_OVAL] = np.repeat(contour, len(FACE_OVAL) // len(contour), axis=0)

    def find(self, face: np.ndarray, near: np.ndarray) -> np.ndarray:
        self.seen.append(face.shape)
        return self.points

    def close(self) -> None:
        self.closed = True


def square(low: float, high: float) -> np.ndarray:
    return np.array([(low, low), (high, low), (high, high), (low, high)])


def paste(finder: Finder | None) -> Paste:
    return Paste(AlignRestore(resolution=SIDE), blend_weight(load_mask(SIDE)), 1.0, finder)


def face(contour: np.ndarray | None) -> AlignedFace:
    return AlignedFace(np.zeros((SIDE, SIDE, 3), np.uint8), np.eye(2, 3), False, contour)


@pytest.mark.parametrize("scale", [1, 2])
def test_the_paste_ends_at_the_contour_of_frame_and_generated_face(scale):
    finder = Finder(square(20, 55))
    given = paste(finder)
    weight = given.weight(face(square(20, 45)), np.zeros((scale * SIDE, scale * SIDE, 3), np.float32))
    assert finder.seen == [(SIDE, SIDE, 3)]  # an enlarged face is looked at in the size of the contour
    assert weight[50, 30] > 0.9 and weight[58:].max() == 0 and weight[:, 58:].max() == 0
    whole = blend_weight(load_mask(SIDE))
    assert (weight <= whole + 1e-6).all() and whole[58:].max() > 0.9  # the mask alone would reach further
    Finisher(given, Fraction(25), mesh=finder).close()
    assert finder.closed


def test_points_that_are_known_are_not_looked_for():
    finder, other = Finder(square(20, 55)), Finder(square(0, 9))
    pixels = np.zeros((SIDE, SIDE, 3), np.float32)
    weight = paste(finder).weight(face(square(20, 45)), pixels)
    assert np.array_equal(paste(other).weight(face(square(20, 45)), pixels, finder.points), weight)
    assert not other.seen


def test_without_a_contour_the_mask_alone_decides():
    pixels = np.zeros((SIDE, SIDE, 3), np.float32)
    for given, contour in ((paste(None), square(20, 45)), (paste(Finder(square(0, 9))), None)):
        assert np.array_equal(given.weight(face(contour), pixels), blend_weight(load_mask(SIDE)))
