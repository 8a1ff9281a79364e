"""The replaceable part of a face: profiles, and other people in front of it."""

from functools import partial

import numpy as np
import pytest

from latentsync.faces.align import frame_to_square
from latentsync.faces.detector import Face
from latentsync.faces.visibility import (
    HIDDEN,
    THUMBNAIL_SIDE,
    VISIBLE,
    OcclusionCheck,
    keep_out_weight,
    profile_opacity,
)

SIDE = 64  # of the aligned face, which is the frame's left upper corner here
PLACE = partial(frame_to_square, matrix=np.eye(2, 3), size=(SIDE, SIDE), resolution=THUMBNAIL_SIDE)


def face(x: float, size: float = 40.0, y: float = 12.0) -> Face:
    """A square face of `size` pixels with its left edge at `x`."""
    anchors = np.array([[0.25, 0.3], [0.75, 0.3], [0.5, 0.6]]) * size + (x, y)
    return Face(np.array([x, y, x + size, y + size]), anchors, 0.9)


def view(covered_from: int = SIDE) -> np.ndarray:
    """The aligned face: bright, with a dark head over the columns from `covered_from`."""
    image = np.full((SIDE, SIDE, 3), 180, np.uint8)
    image[:, covered_from:] = 60
    return image


@pytest.mark.parametrize(("nose", "opacity"), [(0.5, 1), (0.3, 1), (0.84, 1), (0.925, 0.5), (1.05, 0), (-0.1, 0)])
def test_a_face_fades_as_it_turns_to_the_side(nose, opacity):
    anchors = np.array([[100.0, 50.0], [200.0, 50.0], [100 + 100 * nose, 110.0]])
    assert profile_opacity(anchors) == pytest.approx(opacity)
    turn = np.array([[0.0, -1.0], [1.0, 0.0]])  # at any roll
    assert profile_opacity(anchors @ turn) == pytest.approx(opacity)


def test_alone_or_far_from_others_everything_is_visible():
    check = OcclusionCheck()
    assert check.update(view(), face(12), (), PLACE) is VISIBLE
    assert check.update(view(), face(12), [face(200)], PLACE) is VISIBLE


def test_a_head_that_crosses_hides_the_face_once_it_reaches_the_mouth():
    check = OcclusionCheck()
    speaker = face(12)
    check.update(view(), speaker, [face(120)], PLACE)
    beside = check.update(view(), speaker, [face(70)], PLACE)  # its hair begins at 46: only the cheek is near
    assert beside.opacity == 1 and len(beside.keep_out) == 2
    hidden = check.update(view(36), speaker, [face(50)], PLACE)
    assert hidden.opacity == 0 and hidden.reason == HIDDEN
    again = check.update(view(), speaker, [face(70)], PLACE)
    assert again.opacity == 1


def test_two_people_cheek_to_cheek_keep_speaking():
    check = OcclusionCheck()
    speaker, neighbor = face(12), face(54)
    for _ in range(5):
        seen = check.update(view(), speaker, [neighbor], PLACE)
        assert seen.opacity == 1 and seen.reason is None
        low = min(polygon[:, 0].min() for polygon in seen.keep_out)
        assert low >= speaker.box[2] - 0.35 * speaker.size[0]  # the mouth stays free


def test_another_person_starts_without_a_reference():
    check = OcclusionCheck()
    check.update(view(), face(12), (), PLACE)
    assert check.update(view(36), face(12), [face(50)], PLACE).opacity == 0
    check.reset()
    assert check.update(view(36), face(12), [face(50)], PLACE).opacity == 1


def test_a_false_detection_inside_the_face_changes_nothing_and_a_small_face_is_only_left_alone():
    check = OcclusionCheck()
    assert check.update(view(), face(12), [face(30, 8, 30)], PLACE) is VISIBLE
    behind = check.update(view(), face(12), [face(51, 10, 30)], PLACE)
    assert behind.opacity == 1 and len(behind.keep_out) == 1  # its oval, without the head around it


def test_no_weight_inside_the_polygons():
    polygon = np.array([(40.0, 10.0), (80, 10), (80, 60), (40, 60)])
    weight = keep_out_weight((20, 0, 100, 80), [polygon])
    assert weight.shape == (80, 80) and weight.min() == 0 and weight.max() == 1
    assert not weight[9:62, 19:62].any()  # and not beside them, for the chroma samples
    assert (weight[70:] == 1).all() and (weight[:, :10] == 1).all()
    assert (keep_out_weight((0, 0, 8, 8), [polygon + 500]) == 1).all()
