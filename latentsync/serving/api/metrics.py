"""Prometheus metrics: requests are counted as they pass, the service is asked when somebody collects."""

import shutil
import time
from collections.abc import Iterator

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from latentsync.serving.api.uploads import UploadDesk
from latentsync.serving.service import JobService

QUANTILES = (0.5, 0.9, 1.0)
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class ServiceCollector(Collector):
    """The state of the job service and of the uploads, read anew for each collection."""

    def __init__(self, service: JobService, desk: UploadDesk) -> None:
        self.service, self.desk = service, desk

    def collect(self) -> Iterator[Metric]:
        stats = self.service.stats()
        jobs = GaugeMetricFamily("latentsync_jobs", "jobs kept, by state", labels=["state"])
        for state, count in stats.counts.items():
            jobs.add_metric([state.value], count)
        yield jobs
        if stats.durations:
            recent = GaugeMetricFamily(
                "latentsync_recent_job_seconds", "time that the last jobs took, quantiles", labels=["quantile"]
            )
            for share in QUANTILES:
                recent.add_metric([str(share)], float(np.quantile(stats.durations, share)))
            yield recent
        disk = shutil.disk_usage(self.service.settings.workspace)
        for name, text, value in (
            ("queue_length", "jobs that wait", stats.queue_length),
            ("workers_alive", "worker processes that run", stats.workers_alive),
            ("models_loaded", "different models that workers keep loaded", len(stats.models_loaded)),
            ("disk_used_bytes", "bytes of inputs, results and uploads in the workspace", stats.disk_used),
            ("disk_free_bytes", "bytes free on the workspace's disk", disk.free),
            ("uploads_active", "uploads under way", self.desk.active),
        ):
            yield GaugeMetricFamily(f"latentsync_{name}", text, value=value)


class Metrics:
    """All metrics of one application, in a registry of its own."""

    def __init__(self, service: JobService, desk: UploadDesk) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(ServiceCollector(service, desk))
        labels = ["method", "route", "status"]
        self.requests = Counter("latentsync_http_requests", "requests answered", labels, registry=self.registry)
        self.seconds = Histogram(
            "latentsync_http_request_seconds",
            "time until the first byte of the response",
            ["route"],
            buckets=(0.005, 0.025, 0.1, 0.5, 2, 10, 60),
            registry=self.registry,
        )

    def text(self) -> bytes:
        """In Prometheus' text format; blocks on the service."""
        return generate_latest(self.registry)


class CountRequests:
    """ASGI middleware that counts responses under the pattern of their route, never under a client's words."""

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
