"""LatentSync: audio-conditioned lip sync of videos.

`load_pipeline` is the entry point for the command line, the web page, the API and the evaluation.
"""

__all__ = ["GenerationOptions", "LipsyncPipeline", "UserError", "load_pipeline"]
__version__ = "0.1.0"

from typing import Any

from latentsync.utils.cores import set_thread_budget
from latentsync.utils.errors import UserError
from latentsync.utils.memory import collection_paused, keep_freed_memory

set_thread_budget()
keep_freed_memory()


def __getattr__(name: str) -> Any:
    """Import these on first use, since their libraries take a second or two."""
    if name in ("LipsyncPipeline", "load_pipeline"):
        with collection_paused():
            from latentsync import loading

        return getattr(loading, name)
    if name == "GenerationOptions":
        from latentsync.options import GenerationOptions

        return GenerationOptions
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
