"""Places of windows: within the clip, apart from their reference, spread over a batch."""

import pytest

from latentsync.data.clip_dataset import draw_shifted, draw_start_and_reference, spread_start
from latentsync.data.sampler import item_rng


@pytest.mark.parametrize("total", [8, 9, 11, 12, 30])
def test_reference_never_overlaps_the_run(total):
    starts = set()
    for key in range(200):
        start, reference = draw_start_and_reference(total, 4, item_rng(1, key))
        assert 0 <= start <= total - 4 and 0 <= reference <= total - 4
        assert abs(start - reference) >= 4
        starts.add(start)
    assert len(starts) > 1
    with pytest.raises(ValueError, match="hold no two windows"):
        draw_start_and_reference(7, 4, item_rng(1, 1))


def test_neighboring_keys_start_at_different_places():
    for first in (0, 1000, 10**9):
        starts = [spread_start(120, 16, 1247, key) for key in range(first, first + 32)]
        assert len(set(starts)) == 32
        assert min(starts) >= 0 and max(starts) <= 104
    assert {spread_start(20, 16, 3, key) for key in range(100)} == {0, 1, 2, 3, 4}
    assert spread_start(16, 16, 3, 7) == 0
    assert spread_start(120, 16, 1, 0) != spread_start(120, 16, 2, 0)


def test_shifted_runs_keep_their_distance():
    for key in range(100):
        assert abs(draw_shifted(40, 16, 10, 6, item_rng(1, key)) - 10) >= 6
    with pytest.raises(ValueError, match="no window of 16"):
        draw_shifted(26, 16, 5, 6, item_rng(1, 1))
