"""What a worker counts for Prometheus, and where it is read: at a port, or by the API of the same service."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from functools import cache
from pathlib import Path
from socketserver import StreamRequestHandler, ThreadingUnixStreamServer
from threading import Thread
from typing import Any, Final, NamedTuple

import torch
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.exposition import start_http_server
from prometheus_client.registry import Collector
from redis.exceptions import RedisError

from jobs.exposition import SECONDS, build_info, exemplar_of, tell
from jobs.job import ModelInfo
from jobs.settings import METRICS_SOCKET
from jobs.worker_results import StoreFailed
from worker.engine import EngineError, NotAnImage, recording
from worker.settings import WorkerSettings

IMAGES: Final = (1, 2, 4, 8, 16, 32, 64)  # of a forward

NOT_FINITE: Final = "not_finite"  # the network made values that are no numbers
OUT_OF_MEMORY: Final = "out_of_memory"  # of the device
STORE: Final = "store"  # Redis or the store of results refused the images
WORKER_DIED: Final = "worker_died"  # as often as SAGAN_MAX_ATTEMPTS allows
NO_WORKER: Final = "no_worker"  # had its model for as long as SAGAN_MODEL_PATIENCE
ERROR: Final = "error"  # any other; the worker's log has it
REASONS: Final = (NOT_FINITE, OUT_OF_MEMORY, STORE, WORKER_DIED, NO_WORKER, ERROR)


class CannotExport(EngineError):
    """The port for metrics cannot be had."""


def reason_of(error: BaseException) -> str:
    """Which of REASONS an error is that failed a job."""
    match error:
        case NotAnImage():
            return NOT_FINITE
        case torch.OutOfMemoryError():
            return OUT_OF_MEMORY
        case RedisError() | StoreFailed():
            return STORE
        case _:
            return ERROR


class _OfModel(NamedTuple):
    """The series of one model."""

    waited: Histogram
    took: Histogram
    forward: Histogram
    size: Histogram
    images: Counter
    busy: Counter
    maps: Counter


class WorkerMetrics:
    """Every series of one worker. Its methods may be called from any thread; each takes microseconds."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        # a model's series are looked up by its name: once is enough
        self._of = cache(self._series)
        self._waited = self._histogram("sagan_job_queue_seconds", "From a job's order to its first forward")
        self._took = self._histogram("sagan_job_seconds", "From a job's order to its last image stored")
        self._forward = self._histogram("sagan_forward_seconds", "A forward of the network")
        self._size = self._histogram("sagan_forward_images", "Images in a forward", IMAGES)
        self.storing = Histogram(
            "sagan_store_seconds",
            "From a forward's end to its images in the store, encoding included",
            buckets=SECONDS,
            registry=self.registry,
        )
        self._images = self._counter("sagan_images", "Images made")
        self._busy = self._counter("sagan_device_busy_seconds", "Seconds in forwards and attention maps")
        self._maps = self._counter("sagan_attention_maps", "Attention maps made")
        self._failures = self._counter("sagan_job_failures", "Jobs that failed", ["model", "reason"])
        self.brought_back = self._counter("sagan_jobs_brought_back", "Lost jobs that were queued again", [])

    def know(self, models: Iterable[str]) -> None:
        """Show the series of these models from now on: an increase from nothing is none to Prometheus."""
        for model in models:
            self._of(model)
            for reason in REASONS:
                self._failures.labels(model, reason)

    def forward(self, model: str, images: int, seconds: float, traceparent: str = "") -> None:
        """A forward has made so many images."""
        series = self._of(model)
        series.forward.observe(seconds, exemplar_of(traceparent))
        series.size.observe(images)
        series.images.inc(images)
        series.busy.inc(seconds)

    def called(self, model: str, seconds: float, of_map: bool) -> None:
        """The device was used beside forwards, for an attention map or another call."""
        series = self._of(model)
        series.busy.inc(seconds)
        if of_map:
            series.maps.inc()

    def made(self, model: str, waited: float, took: float, traceparent: str = "") -> None:
        """A job has all its images. Seconds, by Redis' clock."""
        series, exemplar = self._of(model), exemplar_of(traceparent)
        series.waited.observe(waited, exemplar)
        series.took.observe(took, exemplar)

    def failed(self, model: str, reason: str, jobs: int = 1) -> None:
        """Jobs have failed. model: "" where it is not known. reason: one of REASONS."""
        self._failures.labels(model, reason).inc(jobs)

    def watch(
        self,
        models: Callable[[], Collection[ModelInfo]],
        device: str,
        in_hand: Callable[[], float],
        running: Callable[[], float],
        backlog: Callable[[], float],
        consuming: Callable[[], bool],
    ) -> None:
        """Export the state of this worker as well, read at each scrape."""
        for name, text, read in (
            ("sagan_jobs_in_hand", "Jobs that this worker works on", in_hand),
            (
                "sagan_forward_running_seconds",
                "Since the oldest running forward began; 0: none runs",
                running,
            ),
            ("sagan_backlog_seconds", "Seconds of work in hand, at the pace of the last forwards", backlog),
            ("sagan_worker_consuming", "1 if this worker is connected to its queues", consuming),
        ):
            Gauge(name, text, registry=self.registry).set_function(read)
        self.registry.register(_State(models, torch.device(device)))

    def _series(self, model: str) -> _OfModel:
        return _OfModel(
            waited=self._waited.labels(model),
            took=self._took.labels(model),
            forward=self._forward.labels(model),
            size=self._size.labels(model),
            images=self._images.labels(model),
            busy=self._busy.labels(model),
            maps=self._maps.labels(model),
        )

    def _histogram(self, name: str, text: str, buckets: Iterable[float] = SECONDS) -> Histogram:
        return Histogram(name, text, ["model"], buckets=tuple(buckets), registry=self.registry)

    def _counter(self, name: str, text: str, labels: Iterable[str] = ("model",)) -> Counter:
        return Counter(name, text, tuple(labels), registry=self.registry)


class _State(Collector):
    """The models, and the device where it is a GPU."""

    def __init__(self, models: Callable[[], Collection[ModelInfo]], device: torch.device) -> None:
        self._models = models
        self._device = device

    def describe(self) -> Iterable[Metric]:
        return ()  # else registering collects

    def collect(self) -> Iterable[Metric]:
        yield build_info("worker")
        served = InfoMetricFamily("sagan_model", "A model that a worker serves", labels=["model"])
        for info in self._models():
            if not info.draining:
                version = {"hash": info.hash[:16], "precision": info.precision}
                size = {"resolution": str(info.resolution), "classes": str(len(info.classes))}
                served.add_metric([info.name], version | size | {"device": str(self._device)})
        yield served
        if self._device.type == "cuda":
            yield from _of_gpu(self._device)


def _of_gpu(device: torch.device) -> Iterable[Metric]:
    """Memory, and utilisation where NVML's package is there; nothing of a device that does not answer."""
    if not recording.acquire(blocking=False):
        return  # a forward is being recorded, which a question from another thread would break
    try:
        with suppress(RuntimeError):
            free, total = torch.cuda.mem_get_info(device)
            for name, text, value in (
                ("used", "In use, by whomever", total - free),
                ("total", "Of the device", total),
            ):
                family = GaugeMetricFamily(f"sagan_device_memory_{name}_bytes", text, labels=["device"])
                family.add_metric([str(device)], value)
                yield family
        with suppress(RuntimeError, ModuleNotFoundError):
            share = torch.cuda.utilization(device) / 100
            used = GaugeMetricFamily(
                "sagan_device_utilisation_ratio", "Of the time of NVML's last sample", labels=["device"]
            )
            used.add_metric([str(device)], share)
            yield used
    finally:
        recording.release()


def export(metrics: WorkerMetrics, settings: WorkerSettings) -> None:
    """Let the metrics be read from now on, as the settings and `sagan serve` say. Raises CannotExport."""
    if settings.metrics_port is not None:
        ProcessCollector(registry=metrics.registry)
        try:
            start_http_server(settings.metrics_port, settings.metrics_address, metrics.registry)
        except (OSError, OverflowError) as error:
            where = f"{settings.metrics_address}:{settings.metrics_port}"
            raise CannotExport(
                f"{where} cannot be listened on for metrics ({error}). Choose another SAGAN_METRICS_PORT or "
                "SAGAN_METRICS_ADDRESS: each worker of a machine needs a port of its own."
            ) from error
    elif path := os.environ.get(METRICS_SOCKET):
        Path(path).unlink(missing_ok=True)  # of the worker before
        with suppress(OSError):  # the service does without
            server = _Teller(path, metrics.registry)
            Thread(target=server.serve_forever, name="metrics", daemon=True).start()


class _Teller(ThreadingUnixStreamServer):
    """Writes the series to whoever connects. The socket's folder is the service's own."""

    daemon_threads = True

    def __init__(self, path: str, registry: CollectorRegistry) -> None:
        class Tell(StreamRequestHandler):
            timeout = 10  # seconds

            def handle(self) -> None:
                with suppress(OSError):
                    self.wfile.write(tell(registry.collect()))

        super().__init__(path, Tell)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Whoever asked has gone."""
