"""Options of augmentation, for the config files of both trainers."""

from dataclasses import dataclass

from latentsync.utils.schema import require


@dataclass(frozen=True)
class AugmentConfig:
    """How training clips are varied; all off by default.

    flip: probability of a mirrored clip. colour: strength in [0, 1] of a shift of brightness, contrast and tint.
    affine: strength in [0, 1] of a turn, zoom and shift; 1 means up to 5 degrees, 5 % and 3 % of the side.
    """

    flip: float = 0.0
    colour: float = 0.0
    affine: float = 0.0

    def __post_init__(self) -> None:
        for name in ("flip", "colour", "affine"):
            value = getattr(self, name)
            require(0 <= value <= 1, f"{name} must be between 0 (off) and 1, got {value:g}")
