"""Counts for Prometheus: this process' requests, and the jobs and workers in Redis."""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.access import METHODS
from jobs.client import JobClient
from jobs.errors import BrokerUnavailable
from jobs.job import State, WorkerInfo

_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_BATCHES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """One registry for each app: two apps in a process do not share counts."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter(
            "sagan_http_requests",
            "Requests answered",
            ["method", "route", "status"],
            registry=self.registry,
        )
        self.seconds = Histogram(
            "sagan_http_request_seconds",
            "From the request to the start of its response",
            ["method", "route"],
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self.connections_ended = Counter(
            "sagan_connections_ended",
            "Connections that the server ended: slow, evicted (for a newer one), refused",
            ["reason"],
            registry=self.registry,
        )
        self.requests_shed = Counter(
            "sagan_http_requests_shed",
            "Requests refused unread, because too many were in work; not among those answered",
            registry=self.registry,
        )

        # prometheus_client looks a series up by its labels: once is enough
        self.of = cache(self._series)

    def _series(self, method: str, route: str, status: int) -> tuple[Counter, Histogram]:
        return self.requests.labels(method, route, str(status)), self.seconds.labels(method, route)

    async def render(self, store: JobClient) -> bytes:
        """All counts in Prometheus' text format. Without a broker: this process, and sagan_broker_up 0."""
        try:
            reading = _Reading(True, await store.counts(), await store.workers())
        except BrokerUnavailable:
            reading = _Reading(False, {}, ())
        outside = CollectorRegistry()
        outside.register(reading)
        return generate_latest(self.registry) + generate_latest(outside)


@dataclass(frozen=True, eq=False)  # a registry asks for a hash
class _Reading(Collector):
    """Jobs and workers at one moment."""

    broker_up: bool
    jobs: Mapping[State, int]  # by state; an ended state counts all jobs that ever ended in it
    workers: Sequence[WorkerInfo]

    def collect(self) -> Iterable[Metric]:
        yield GaugeMetricFamily("sagan_broker_up", "1 if Redis answers", value=float(self.broker_up))
        if not self.broker_up:
            return
        yield GaugeMetricFamily("sagan_queue_depth", "Jobs that wait", value=self.jobs["queued"])
        yield GaugeMetricFamily("sagan_workers", "Workers alive", value=len(self.workers))
        state_now = GaugeMetricFamily("sagan_jobs", "Jobs that have not ended", labels=["state"])
        ended = CounterMetricFamily("sagan_jobs_ended", "Jobs that have ended", labels=["state"])
        for state, count in self.jobs.items():
            (state_now if state in ("queued", "running") else ended).add_metric([state], count)
        yield from (state_now, ended)
        yield from self._of_workers()

    def _of_workers(self) -> Iterable[Metric]:
        labels = ["worker", "model"]
        images = CounterMetricFamily("sagan_images", "Images made", labels=labels)
        forwards = CounterMetricFamily("sagan_forwards", "Forwards of the network", labels=labels)
        busy = CounterMetricFamily("sagan_device_busy_seconds", "Seconds in forwards", labels=labels)
        maps = CounterMetricFamily("sagan_attention_maps", "Attention maps made", labels=labels)
        batches = HistogramMetricFamily("sagan_batch_images", "Images in a forward", labels=labels)
        in_hand = GaugeMetricFamily(
            "sagan_jobs_in_hand", "Jobs a worker works on", labels=["worker", "device"]
        )
        for worker in self.workers:
            in_hand.add_metric([worker.id, worker.device], len(worker.in_hand))
            for model, stats in worker.stats.items():
                at = [worker.id, model]
                images.add_metric(at, stats.images)
                forwards.add_metric(at, stats.forwards)
                busy.add_metric(at, stats.busy_seconds)
                maps.add_metric(at, stats.attention_maps)
                sizes = stats.batch_sizes
                buckets = [(str(top), sum(n for size, n in sizes.items() if size <= top)) for top in _BATCHES]
                buckets.append(("+Inf", sum(sizes.values())))
                batches.add_metric(at, buckets, sum_value=sum(size * n for size, n in sizes.items()))
        yield from (images, forwards, busy, maps, batches, in_hand)


class Observe:
    """Counts and times every request."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()

        async def observed(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._note(scope, message["status"], time.perf_counter() - started)
            await send(message)

        await self.app(scope, receive, observed)

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        # the route's pattern, not the path: each id would make a new series
        route = getattr(scope.get("route"), "path", "unrouted")
        method = scope["method"] if scope["method"] in METHODS else "other"
        requests, took = self.metrics.of(method, route, status)
        requests.inc()
        took.observe(seconds)
