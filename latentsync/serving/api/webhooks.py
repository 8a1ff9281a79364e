"""Webhooks: when a job has ended, its submitter's URL is called, as the Standard Webhooks specification describes.

The request carries the headers webhook-id, webhook-timestamp and webhook-signature, which is "v1," and the base64 HMAC
with SHA-256 of "ID.TIMESTAMP.BODY" under the server's secret. A failed delivery is repeated after growing pauses. Only
public addresses are called, see `latentsync.serving.api.fetch`; redirects are not followed.
"""

import base64
import hashlib
import hmac
import json
import logging
import os
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from urllib.parse import urlsplit

import httpx

from latentsync import __version__
from latentsync.serving.api.errors import ApiError
from latentsync.serving.api.fetch import Fetcher
from latentsync.serving.background import BackgroundTask
from latentsync.serving.jobs import Job
from latentsync.serving.service import JobService
from latentsync.utils.errors import UserError

logger = logging.getLogger(__name__)

SECRET_VARIABLE = "LATENTSYNC_WEBHOOK_SECRET"
MIN_SECRET = 16  # characters
PREFIX = "whsec_"  # of a secret in base64
DELAYS = (10.0, 60.0, 600.0, 3600.0, 6 * 3600.0, 24 * 3600.0)  # seconds until the next attempt
CHECK_SECONDS = 1.0
TIMEOUT = httpx.Timeout(15.0, connect=10.0)


def read_secret() -> bytes | None:
    """The secret of the environment; None if it is not set. Raises UserError for one that is not valid."""
    text = os.environ.get(SECRET_VARIABLE, "").strip()
    if not text:
        return None
    if len(text) < MIN_SECRET:
        raise UserError(f"{SECRET_VARIABLE} must have {MIN_SECRET} or more characters")
    try:
        return base64.b64decode(text.removeprefix(PREFIX), validate=True) if text.startswith(PREFIX) else text.encode()
    except ValueError as error:
        raise UserError(f"{SECRET_VARIABLE}: the text after {PREFIX} must be base64") from error


def sign(secret: bytes, message_id: str, timestamp: int, body: bytes) -> str:
    """The value of the webhook-signature header."""
    content = f"{message_id}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.new(secret, content, hashlib.sha256).digest()).decode()


def message_of(job: Job) -> bytes:
    """The body that is sent: the event and the job."""
    ended = datetime.fromtimestamp(job.finished or 0.0, UTC).isoformat(timespec="milliseconds")
    data = {
        "id": job.id,
        "kind": job.kind.value,
        "state": job.state.value,
        "tags": list(job.tags),
        "error": job.error,
        "result": f"/v1/jobs/{job.id}/result" if job.result is not None else None,
    }
    return json.dumps({"type": f"job.{job.state.value}", "timestamp": ended, "data": data}).encode()


class WebhookSender:
    """Calls the webhooks of finished jobs, from a thread between `start` and `stop`. Services may share a workspace.

    checker: decides which URLs are called.
    """

    def __init__(self, service: JobService, secret: bytes, checker: Fetcher) -> None:
        self.service, self.secret, self.checker = service, secret, checker
        self._task = BackgroundTask("webhooks", self.send_due, CHECK_SECONDS, service.store.close)

    def start(self) -> None:
        self._task.start()

    def stop(self) -> None:
        self._task.stop()

    def check(self, url: str) -> None:
        """Raises ApiError for a URL that would not be called; blocks on the resolver."""
        self.checker.check(url, "webhook")

    def send_due(self) -> None:
        """Call all webhooks that are due."""
        while not self._task.stopping.is_set() and (row := self.service.store.claim_webhook(DELAYS)) is not None:
            job = self.service.get(row.id)
            problem = self._deliver(job, row.webhook or "")
            if problem is None or row.webhook_attempts + 1 >= len(DELAYS):
                self.service.store.webhook_done(job.id)
            if problem is not None:
                logger.warning("job %s: webhook failed (attempt %d): %s", job.id, row.webhook_attempts + 1, problem)

    def _deliver(self, job: Job, url: str) -> str | None:
        """Call one webhook; returns what went wrong."""
        body, timestamp = message_of(job), int(time.time())
        message_id = f"{job.id}-{job.attempts}"
        headers: Mapping[str, str] = {
            "Content-Type": "application/json",
            "User-Agent": f"latentsync/{__version__}",
            "webhook-id": message_id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": sign(self.secret, message_id, timestamp, body),
        }
        try:
            target = self.checker.check(url, "webhook")
            with httpx.Client(trust_env=False, timeout=TIMEOUT, follow_redirects=False) as client:
                response = client.post(
                    target.pinned_url,
                    content=body,
                    headers={**headers, "Host": urlsplit(url).netloc},
                    extensions={"sni_hostname": target.host},
                )
        except ApiError as error:
            return error.message
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            return type(error).__name__
        return None if response.is_success else f"status {response.status_code}"
