"""Frame rates as exact fractions: 29.97 means 30000/1001."""

from fractions import Fraction

NTSC_RATES = tuple(Fraction(whole * 1000, 1001) for whole in (24, 30, 48, 60, 120, 240))
NTSC_TOLERANCE = Fraction(1, 5000)  # 23.98 counts as 24000/1001
MAX_DENOMINATOR = 1001


def exact_rate(rate: float | str | Fraction) -> Fraction:
    """The rate that a number or a text (`25`, `29.97`, `30000/1001`) stands for.

    Rounded NTSC rates (23.976, 29.97, 47.952, 59.94, ...) become the multiples of 1000/1001 that they are rounded from.

    Raises:
        ValueError: not a finite number, or a division by 0.
    """
    try:
        exact = Fraction(rate)
    except (OverflowError, ZeroDivisionError) as error:
        raise ValueError(f"{rate} is not a rate") from error
    for standard in NTSC_RATES:
        if abs(exact / standard - 1) <= NTSC_TOLERANCE:
            return standard
    return exact.limit_denominator(MAX_DENOMINATOR)
