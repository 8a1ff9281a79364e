"""Deep feature cache: between full steps, only the outermost layers of the UNet run.

Ma et al. 2023, "DeepCache: Accelerating Diffusion Models for Free": the deep features of neighboring sampling steps
are nearly equal. Every `interval`-th step runs completely and stores the feature map that enters the outermost layers
of the decoder; the steps after it reuse this map. Branch 0 (the published setting) recomputes the first convolution and
the last layer; branch b also the first b layers of the first down block and the b layers of the last up block that use
their output.
"""

from dataclasses import dataclass, field

from torch import Tensor

from latentsync.utils.errors import UserError


@dataclass
class DeepCache:
    """The schedule and the cached features of one sampling run. Call `reset` before every run."""

    interval: int = 3
    branch: int = 0
    _step: int = field(default=0, init=False)
    _key: tuple | None = field(default=None, init=False)
    _features: Tensor | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        if self.interval < 1:
            raise UserError(f"deepcache interval must be at least 1 (1 = off), got {self.interval}")
        if self.branch < 0:
            raise UserError(f"deepcache branch must be at least 0, got {self.branch}")

    def reset(self) -> None:
        """Clear the cache: the next step runs completely."""
        self._step, self._key, self._features = 0, None, None

    def lookup(self, sample: Tensor) -> Tensor | None:
        """Begin a step on `sample`: the cached features, or None when the step must run completely."""
        key = (tuple(sample.shape), sample.dtype, sample.device)
        if key != self._key:  # another shape, dtype or device: a new run
            self.reset()
            self._key = key
        due = self._step % self.interval == 0
        self._step += 1
        return None if due else self._features

    def store(self, features: Tensor) -> None:
        """Store the features of a complete step."""
        self._features = features
