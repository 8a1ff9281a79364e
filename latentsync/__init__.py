"""LatentSync: a video and a voice in, the same person speaking that voice out.

`load_pipeline` is the one way in for the command line, the page, the API and the evaluation.
"""

__all__ = ["UserError", "load_pipeline"]
__version__ = "0.1.0"

from typing import Any

from latentsync.utils.errors import UserError


def __getattr__(name: str) -> Any:
    """Import the pipeline when it is asked for: its libraries take seconds that a small tool need not wait."""
    if name == "load_pipeline":
        from latentsync.loading import load_pipeline

        return load_pipeline
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
