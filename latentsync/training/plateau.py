"""A SyncNet that learns nothing looks busy: its loss stays at the value of a guess. Says so early, and why."""

import math
from collections import deque

GUESS = math.log(2)  # binary cross-entropy of the answer 0.5 for every pair
NEAR = 0.015
WINDOW = 20  # logged rows
GOOD_BATCH, BEST_BATCH = 256, 1024

CAUSES = (
    "Check the data first: faces aligned (the mouth in the same place in every clip), the sound's offset measured and "
    "corrected, sound and video of the same recording. "
    f"Then the batch: {BEST_BATCH} works best, {GOOD_BATCH} oscillates, 128 stays at the plateau (run.contrastive with "
    "run.gradient_cache_chunk brings 1024 onto one GPU). Networks on 25 frames stall where 16 do not. "
    "Some hundred to a few thousand steps on the plateau are usual; far more are not."
)


def explain_small_batch(batch: int) -> str | None:
    """A warning before the start, for a batch (over all processes and accumulated) that is known to be too small."""
    if batch >= GOOD_BATCH:
        return None
    return (
        f"a batch of {batch} pairs is small for a SyncNet: below {GOOD_BATCH} the loss tends to stay at 0.69, the value"
        f" of a guess; {GOOD_BATCH} to {BEST_BATCH} is better (more GPUs, gradient accumulation, or run.contrastive)"
    )


class PlateauWatch:
    """Notices a loss that stays at the value of a guess.

    Args:
        guess: ln 2 for pairs judged 0 or 1; ln B for a contrastive batch of B.
        from_step: earlier steps say nothing.
    """

    def __init__(self, guess: float = GUESS, from_step: int = 500) -> None:
        self.guess, self.from_step = guess, from_step
        self.losses: deque[float] = deque(maxlen=WINDOW)
        self.next_word = from_step

    def look(self, step: int, loss: float) -> str | None:
        """Give it each logged loss; an explanation when it is stuck, again each time the step has doubled."""
        self.losses.append(loss)
        stuck = len(self.losses) == WINDOW and abs(sum(self.losses) / WINDOW - self.guess) < NEAR * self.guess / GUESS
        if not stuck or step < self.next_word:
            return None
        self.next_word = 2 * step
        return (
            f"the loss has stayed at {sum(self.losses) / WINDOW:.2f} up to step {step}: {self._meaning()},"
            f" nothing is learned yet. {CAUSES}"
        )

    def _meaning(self) -> str:
        if math.isclose(self.guess, GUESS):
            return "0.69 = ln 2 is what answering 0.5 to every pair costs"
        return f"ln B = {self.guess:.2f} is what a guess among the B samples of the batch costs"
