"""Progress reporting: progress bar and callback."""

from collections.abc import Callable
from types import TracebackType

from tqdm import tqdm

Progress = Callable[[str, int, int], None]
PREPARING, LIPSYNC, FINISHING = "preparing", "lip-sync", "finishing"


class ProgressReport:
    """Context manager that counts finished frames. Exceptions raised in the callback propagate.

    Args:
        total: number of frames.
        callback: called as callback(stage, done, total) on entry, after each frame and before the end.
        shown: show a progress bar on standard error.
    """

    def __init__(self, total: int, callback: Progress | None = None, *, shown: bool = False) -> None:
        self._total, self._done, self._callback = total, 0, callback
        self._bar = tqdm(total=total, unit="frame", desc=LIPSYNC, disable=not shown, leave=False)

    def __enter__(self) -> "ProgressReport":
        self._report(PREPARING)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.close()

    def frame(self) -> None:
        """Count one generated frame."""
        self._done += 1
        self._bar.update()
        self._report(LIPSYNC)

    def finishing(self) -> None:
        """Report that all frames are generated and the last ones are being written."""
        self._bar.set_description(FINISHING)
        self._report(FINISHING)

    def _report(self, stage: str) -> None:
        if self._callback is not None:
            self._callback(stage, self._done, self._total)
