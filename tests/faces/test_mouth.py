"""Mouth openings of made-up meshes and of the demo's portrait."""

import numpy as np
import pytest

from latentsync.faces.mouth import (
    CHIN,
    FOREHEAD,
    INNER_LIPS,
    MESH_POINTS,
    OpeningEstimator,
    closed_opening,
    mean_opening,
    mouth_opening,
)
from tests.metrics.faces import aligned_portrait


def mesh(gap: float, turn: float = 0.0) -> np.ndarray:
    """A face 200 high whose lips are `gap` apart, turned by `turn` radians."""
    points = np.zeros((len(MESH_POINTS), 2))
    place = {index: len(MESH_POINTS) - 1 - MESH_POINTS[::-1].index(index) for index in MESH_POINTS}
    points[place[FOREHEAD]], points[place[CHIN]] = (0, 0), (0, 200)
    for column, (upper, lower) in enumerate(INNER_LIPS):
        points[place[upper]], points[place[lower]] = (10 * column, 150), (10 * column, 150 + gap)
    cos, sin = np.cos(turn), np.sin(turn)
    return points @ np.array([[cos, sin], [-sin, cos]])


@pytest.mark.parametrize("turn", [0.0, 0.4])
def test_opening_is_the_gap_over_the_face(turn):
    assert mouth_opening(mesh(20, turn)) == pytest.approx(0.1)
    assert mouth_opening(mesh(-2, turn)) == pytest.approx(-0.01)


def test_openings_are_taken_above_the_closed_mouth():
    openings = np.array([0.01] * 5 + [0.05, 0.07, np.nan])
    closed = closed_opening(openings)
    assert closed == pytest.approx(0.01)
    speech = np.array([False] * 5 + [True] * 3)
    assert mean_opening(openings, speech, closed) == pytest.approx(0.05)
    assert mean_opening(openings, ~speech, closed + 0.01) == 0
    assert np.isnan(mean_opening(openings, np.zeros(8, bool), closed))
    nothing = closed_opening(np.full(3, np.nan))
    assert np.isnan(nothing) and np.isnan(mean_opening(openings, speech, nothing))


def test_openings_of_a_portrait_and_on_no_face():
    face = aligned_portrait(128)
    meter = OpeningEstimator()
    found = meter.openings(np.stack([face, np.zeros_like(face), face]))
    meter.close()
    assert np.isnan(found).tolist() == [False, True, False]
    assert found[0] == found[2]
    assert 0 < found[0] < 0.2
    with pytest.raises(ValueError, match="uint8"):
        OpeningEstimator.openings(meter, face[None].astype(np.float32))
