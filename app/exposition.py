"""What /metrics shows: each series has one owner, so that sums over all targets are right.

requests, processes    this process, or with `sagan api --workers` all processes of the port together
queue, Redis, workers  one of all API services on a Redis: the first to be scraped, until it ends
of a worker            the worker; under `sagan serve` the service, which asks its worker
"""

import asyncio
import os
import secrets
from collections.abc import Iterable, Sequence
from contextlib import suppress
from math import inf
from pathlib import Path
from time import monotonic
from typing import Final

from prometheus_client import ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from app.metrics import Metrics
from jobs.client import JobClient
from jobs.errors import BrokerUnavailable, JobError, Overloaded
from jobs.exposition import Families, build_info, read_worker
from jobs.figures import Figures
from jobs.job import WorkerInfo
from jobs.settings import METRICS_SOCKET

LEASE: Final = 10.0  # seconds that nobody publishes the queue after whoever did was killed
FORGOTTEN: Final = 300.0  # seconds without a scrape, after which another one may publish it
FILES: Final = "PROMETHEUS_MULTIPROC_DIR"  # prometheus_client's: where the processes of a port share counts


class Exposition:
    """/metrics of one app."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._files = os.environ.get(FILES)
        # the processes of a port publish the queue as one
        self._name = self._files or secrets.token_hex(8)
        self._asked_at = -inf  # monotonic()

    async def render(self, store: JobClient, accept: str) -> tuple[bytes, str]:
        """All series, in OpenMetrics or Prometheus' text format as `accept` prefers, and the content type.

        Without a broker: this process, and sagan_broker_up 0.
        """
        self._asked_at = monotonic()
        socket = os.environ.get(METRICS_SOCKET)
        queue, worker = await asyncio.gather(
            _queue(store, self._name), read_worker(socket) if socket else _none()
        )
        encode, content_type = choose_encoder(accept)
        return encode(Families(self._own(), queue, worker)), content_type

    async def publish(self, store: JobClient) -> None:
        """Go on publishing the queue while somebody scrapes us, until cancelled."""
        while True:
            await asyncio.sleep(LEASE / 4)
            if monotonic() - self._asked_at < FORGOTTEN:
                with suppress(JobError):
                    await store.may_publish(self._name, LEASE)

    async def leave(self, store: JobClient) -> None:
        """Let another service publish the queue at once."""
        if self._files is None and self._asked_at > -inf:
            with suppress(JobError, TimeoutError):
                async with asyncio.timeout(1):
                    await store.publish_no_more(self._name)

    def _own(self) -> Iterable[Metric]:
        yield build_info("api")
        if self._files is None:
            yield from _processes(os.getpid())
            yield from self._metrics.registry.collect()
            return
        _bury(self._files)
        yield from _processes(os.getppid())
        yield from MultiProcessCollector(None, self._files).collect()  # type: ignore[no-untyped-call]


async def _none() -> Sequence[Metric]:
    return ()


async def _queue(store: JobClient, name: str) -> Sequence[Metric]:
    """The queue's families where we publish them, and whether Redis answers us."""
    up = 1.0
    found: Sequence[Metric] = ()
    try:
        if await store.may_publish(name, LEASE):
            found = tuple(_of_queue(await store.figures(), await store.workers()))
    except Overloaded:
        pass  # it answers others; the counts of this process tell why
    except BrokerUnavailable:
        up = 0.0
    return (GaugeMetricFamily("sagan_broker_up", "1 if Redis answers", value=up), *found)


def _of_queue(figures: Figures, workers: Sequence[WorkerInfo]) -> Iterable[Metric]:
    yield GaugeMetricFamily("sagan_queue_depth", "Jobs that wait", value=figures.jobs["queued"])
    yield GaugeMetricFamily(
        "sagan_queue_oldest_seconds", "Wait of the oldest job that waits; 0: none does", value=figures.oldest
    )
    yield GaugeMetricFamily("sagan_workers", "Workers alive", value=len(workers))
    able = sum(worker.consuming and worker.stuck is None for worker in workers)
    yield GaugeMetricFamily("sagan_workers_able", "Workers that take jobs and make images", value=able)
    state_now = GaugeMetricFamily("sagan_jobs", "Jobs that have not ended", labels=["state"])
    ended = CounterMetricFamily("sagan_jobs_ended", "Jobs that have ended", labels=["state"])
    for state, count in figures.jobs.items():
        (state_now if state in ("queued", "running") else ended).add_metric([state], count)
    yield from (state_now, ended)
    if memory := figures.memory:
        yield GaugeMetricFamily("sagan_redis_memory_used_bytes", "Memory of Redis", value=memory.used)
        yield GaugeMetricFamily(
            "sagan_redis_memory_allowed_bytes", "Redis' maxmemory, or its machine's", value=memory.allowed
        )


def _processes(root: int) -> Iterable[Metric]:
    """Prometheus' usual process_* families: of a process and its children together."""
    families: dict[str, Metric] = {}
    for pid in (root, *_children(root)):
        for family in ProcessCollector(pid=lambda pid=pid: pid, registry=None).collect():  # type: ignore[misc]
            first = families.setdefault(family.name, family)
            if first is not family and family.name != "process_start_time_seconds":
                first.samples[0] = first.samples[0]._replace(
                    value=first.samples[0].value + family.samples[0].value
                )
    cpu = families.get("process_cpu_seconds")
    if cpu is not None:  # of children that ended: the sum must not fall
        cpu.samples[0] = cpu.samples[0]._replace(value=cpu.samples[0].value + _cpu_of_the_dead(root))
    return families.values()


def _children(pid: int) -> list[int]:
    with suppress(OSError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def _cpu_of_the_dead(pid: int) -> float:
    """Seconds of CPU time of the children of a process that have ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return 0.0


def _bury(folder: str) -> None:
    """Forget what was open in processes of this port that have ended; what they counted stays."""
    for file in Path(folder).glob("gauge_livesum_*.db"):
        pid = file.stem.rpartition("_")[2]
        if not Path(f"/proc/{pid}").exists():
            mark_process_dead(int(pid), folder)  # type: ignore[no-untyped-call]
