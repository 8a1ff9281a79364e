"""Seams: the change where a chunk begins against the change inside."""

import math

import numpy as np
import pytest

from latentsync.metrics.landmarks import LIPS, NUM_POINTS
from latentsync.metrics.seams import Speed, seam_ratio


def starts(count: int, *at: int) -> np.ndarray:
    return np.isin(np.arange(count), (0, *at))


def test_a_jump_at_every_chunk():
    changes = np.ones(40)
    changes[[16, 32]] = 3
    assert seam_ratio(changes, starts(40), 16) == pytest.approx(3)
    assert seam_ratio(np.roll(changes, 1), starts(40), 16) == pytest.approx(1 / ((35 + 2 * 3) / 37))


def test_chunks_are_counted_from_each_cut():
    changes = np.ones(40)
    changes[[8, 28]] = 5  # the cut itself, and sixteen frames after the cut at 12
    assert seam_ratio(changes, starts(40, 12), 16) == pytest.approx(5 / ((36 + 5) / 37))
    changes[12] = 100  # a cut does not count
    assert seam_ratio(changes, starts(40, 12), 16) == pytest.approx(5 / ((36 + 5) / 37))


def test_the_seam_of_overlapping_chunks_includes_the_shared_frames_and_the_next_step():
    changes = np.ones(40)
    changes[[14, 15, 16, 28, 29, 30]] = 3  # chunks of 16 frames begin at 14 and 28
    assert seam_ratio(changes, starts(40), 16, 2) == pytest.approx(3)
    changes[[2, 17, 27]] = 2
    assert seam_ratio(changes, starts(40), 16, 2) == pytest.approx(3 / (36 / 33))


def test_frames_that_cannot_be_compared_are_left_out():
    changes = np.ones(40)
    changes[[5, 16]] = math.nan
    changes[32] = 2
    assert seam_ratio(changes, starts(40), 16) == pytest.approx(2)


@pytest.mark.parametrize("changes", [np.ones(16), np.zeros(40), np.zeros(0)])
def test_no_seam_or_no_change(changes):
    assert math.isnan(seam_ratio(changes, starts(len(changes)), 16))


def test_speed_of_landmarks_over_parts():
    points = np.zeros((5, NUM_POINTS, 2))
    points[:, LIPS, 0] = np.array([0, 1, 3, 3, 7])[:, None]
    speed = Speed(LIPS)
    found = np.concatenate([speed.update(points[:2]), speed.update(points[2:])])
    assert math.isnan(found[0]) and found[1:].tolist() == [1, 2, 0, 4]
