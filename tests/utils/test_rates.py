from fractions import Fraction

import pytest

from latentsync.utils.rates import exact_rate


@pytest.mark.parametrize(
    ("given", "exact"),
    [
        (23.976, "24000/1001"),
        ("23.98", "24000/1001"),
        (29.97, "30000/1001"),
        ("29.97", "30000/1001"),
        ("30000/1001", "30000/1001"),
        (30000 / 1001, "30000/1001"),
        (47.952, "48000/1001"),
        ("59.94", "60000/1001"),
        (59.9401, "60000/1001"),
        (119.88, "120000/1001"),
        (24, "24"),
        (25.0, "25"),
        (30, "30"),
        ("60", "60"),
        (12.5, "25/2"),
        (Fraction(1350, 61), "1350/61"),
    ],
)
def test_exact_rate(given, exact):
    assert exact_rate(given) == Fraction(exact)


@pytest.mark.parametrize("given", ["x", "", "1/0", "nan", "inf", float("nan"), float("inf"), "30000/1001/2"])
def test_not_a_rate(given):
    with pytest.raises(ValueError):
        exact_rate(given)
