"""Counts for Prometheus: the requests of this process, or of all processes of this port."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.access import METHODS
from app.errors import answered_as
from app.streams import streaming
from app.work import resting
from jobs.exposition import SECONDS, exemplar_of


class Metrics:
    """One registry for each app: two apps in a process do not share counts.

    With `sagan api --workers` the counts are in files that its processes share, and outlive each of them (see
    app.exposition).
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
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
            buckets=SECONDS,
            registry=self.registry,
        )
        self.refusals = Counter(
            "sagan_http_refusals",
            "Requests answered with a problem, by its type",
            ["reason"],
            registry=self.registry,
        )
        self.connections_ended = Counter(
            "sagan_connections_ended",
            "Connections that the server ended: slow, evicted (for a newer one), refused",
            ["reason"],
            registry=self.registry,
        )
        for reason in ("slow", "evicted", "refused"):  # an increase from nothing is none to Prometheus
            self.connections_ended.labels(reason)
        self.requests_shed = Counter(
            "sagan_http_requests_shed",
            "Requests refused unread, because too many were in work; not among those answered",
            registry=self.registry,
        )
        self.streams = self._open("sagan_streams_open", "Event streams open")
        self.waiters = self._open("sagan_waiters_open", "Requests that wait for a worker, streams aside")

        # prometheus_client looks a series up by its labels: once is enough
        self.of = cache(self._series)
        self.refused = cache(self.refusals.labels)

    def _open(self, name: str, text: str) -> Gauge:
        # of several processes those that live count together
        return Gauge(name, text, registry=self.registry, multiprocess_mode="livesum")

    def _series(self, method: str, route: str, status: int) -> tuple[Counter, Histogram]:
        return self.requests.labels(method, route, str(status)), self.seconds.labels(method, route)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """A request waits for a worker meanwhile."""
        counted = not streaming.get()
        if counted:
            self.waiters.inc()
        try:
            with resting():
                yield
        finally:
            if counted:
                self.waiters.dec()


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
        answered_as.set("")

        async def observed(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._note(scope, message["status"], time.perf_counter() - started)
            await send(message)

        await self.app(scope, receive, observed)

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        method = scope["method"] if scope["method"] in METHODS else "other"
        requests, took = self.metrics.of(method, _route_of(scope, status), status)
        requests.inc()
        took.observe(seconds, exemplar_of(scope.get("sagan.traceparent", "")))
        if status >= 400:
            self.metrics.refused(answered_as.get() or "other").inc()


def _route_of(scope: Scope, status: int) -> str:
    """The route's pattern, not the path: each id would make a new series."""
    if (route := scope.get("route")) is not None:
        return getattr(route, "path", "unrouted")
    if isinstance(scope.get("endpoint"), StaticFiles):
        return "static"
    if status == 404:
        return "unrouted"
    return "refused" if status >= 400 else "other"  # before a route was looked for; other: a redirect, CORS
