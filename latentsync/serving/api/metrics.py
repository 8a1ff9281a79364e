"""Prometheus metrics: requests are counted as they are handled, the service is queried at each scrape."""

import shutil
import time
from collections.abc import Iterator

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from latentsync.serving.api.uploads import UploadReceiver
from latentsync.serving.service import JobService

QUANTILES = (0.5, 0.9, 1.0)
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class ServiceCollector(Collector):
    """The state of the job service and of the uploads, read at each scrape."""

    def __init__(self, service: JobService, uploads: UploadReceiver) -> None:
        self.service, self.uploads = service, uploads

    def collect(self) -> Iterator[Metric]:
        stats = self.service.stats()
        jobs = GaugeMetricFamily("latentsync_jobs", "Jobs by state.", labels=["state"])
        for state, count in stats.counts.items():
            jobs.add_metric([state.value], count)
        yield jobs
        if stats.durations:
            recent = GaugeMetricFamily(
                "latentsync_recent_job_seconds", "Quantiles of the duration of recent jobs.", labels=["quantile"]
            )
            for share in QUANTILES:
                recent.add_metric([str(share)], float(np.quantile(stats.durations, share)))
            yield recent
        disk = shutil.disk_usage(self.service.settings.workspace)
        for name, text, value in (
            ("queue_length", "Queued jobs.", stats.queue_length),
            ("workers_alive", "Running worker processes.", stats.workers_alive),
            ("models_loaded", "Different models loaded by workers.", len(stats.models_loaded)),
            ("disk_used_bytes", "Bytes of inputs, results and uploads in the workspace.", stats.disk_used),
            ("disk_free_bytes", "Free bytes on the workspace's disk.", disk.free),
            ("uploads_active", "Uploads in progress.", self.uploads.active),
        ):
            yield GaugeMetricFamily(f"latentsync_{name}", text, value=value)


class Metrics:
    """All metrics of one application, in their own registry."""

    def __init__(self, service: JobService, uploads: UploadReceiver) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(ServiceCollector(service, uploads))
        labels = ["method", "route", "status"]
        self.requests = Counter(
            "latentsync_http_requests", "Requests by method, route and status.", labels, registry=self.registry
        )
        self.seconds = Histogram(
            "latentsync_http_request_seconds",
            "Seconds until the first byte of the response.",
            ["route"],
            buckets=(0.005, 0.025, 0.1, 0.5, 2, 10, 60),
            registry=self.registry,
        )

    def text(self) -> bytes:
        """The metrics in Prometheus' text format; blocks on the service."""
        return generate_latest(self.registry)


class CountRequests:
    """ASGI middleware that counts responses by the pattern of their route, never by text from the client."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun = time.perf_counter()

        async def counting_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = getattr(scope.get("route"), "path", "other")
                method = scope["method"] if scope["method"] in METHODS else "other"
                self.metrics.requests.labels(method, route, str(message["status"])).inc()
                self.metrics.seconds.labels(route).observe(time.perf_counter() - begun)
            await send(message)

        await self.app(scope, receive, counting_send)
