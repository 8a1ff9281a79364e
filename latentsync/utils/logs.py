"""Log lines as text or JSON, with the id of the request that they belong to."""

import json
import logging
import os
import time
from contextvars import ContextVar

FORMAT_VARIABLE = "LATENTSYNC_LOG_FORMAT"  # inherited by workers
FORMATS = ("text", "json")
TEXT_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
request_id: ContextVar[str | None] = ContextVar("request_id", default=None)


class JsonFormatter(logging.Formatter):
    """One JSON object per line: time (ISO 8601, UTC), level, logger, message, and request_id within a request."""

    def format(self, record: logging.LogRecord) -> str:
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {
            "time": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "process": record.process,
            "message": record.getMessage(),
        }
        if (current := request_id.get()) is not None:
            line["request_id"] = current
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def configure_server_logging(log_format: str | None = None, text_format: str = TEXT_FORMAT) -> None:
    """Log to standard error as text or JSON; by default in the format of the parent process."""
    chosen = log_format or os.environ.get(FORMAT_VARIABLE, FORMATS[0])
    os.environ[FORMAT_VARIABLE] = chosen
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if chosen == "json" else logging.Formatter(text_format))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
