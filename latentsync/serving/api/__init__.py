"""HTTP API over the job service: `create_app` builds it, `ApiServer` runs it."""

from latentsync.serving.api.app import create_app
from latentsync.serving.api.server import ApiServer

__all__ = ["ApiServer", "create_app"]
