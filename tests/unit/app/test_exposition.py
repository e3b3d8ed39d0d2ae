"""Which API publishes the queue, and the processes of a port as one."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from app import exposition
from app.exposition import Exposition
from app.metrics import Metrics
from jobs.errors import BrokerUnavailable, Overloaded
from jobs.figures import Figures, Memory

if TYPE_CHECKING:
    from jobs.client import JobClient


class Redis:
    """The lock, and a queue of four jobs."""

    def __init__(self) -> None:
        self.holder: str | None = None
        self.asked: list[str] = []
        self.error: Exception | None = None

    async def may_publish(self, holder: str, seconds: float) -> bool:
        self.asked.append(holder)
        if self.error:
            raise self.error
        self.holder = self.holder or holder
        return self.holder == holder

    async def publish_no_more(self, holder: str) -> None:
        if self.holder == holder:
            self.holder = None

    async def figures(self) -> Figures:
        return Figures({"queued": 4, "running": 0}, 61.5, Memory(80, 100))

    async def workers(self) -> list[object]:
        return []


@pytest.fixture
def redis() -> Redis:
    return Redis()


async def shown(api: Exposition, redis: Redis) -> dict[str, float]:
    store: JobClient = redis  # type: ignore[assignment]
    text = (await api.render(store, "*/*"))[0].decode()
    lines = [line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in lines}


async def test_one_of_several_publishes_until_it_ends(redis: Redis) -> None:
    first, second = Exposition(Metrics()), Exposition(Metrics())
    depths = [(await shown(api, redis)).get("sagan_queue_depth") for api in (first, second, first, second)]
    assert depths == [4, None, 4, None]
    await second.leave(redis)  # type: ignore[arg-type]
    assert "sagan_queue_depth" not in await shown(second, redis)
    await first.leave(redis)  # type: ignore[arg-type]
    assert (await shown(second, redis))["sagan_queue_oldest_seconds"] == 61.5


async def test_it_goes_on_publishing_while_it_is_scraped(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exposition, "LEASE", 0.01)
    api = Exposition(Metrics())
    publishing = asyncio.create_task(api.publish(redis))  # type: ignore[arg-type]
    await asyncio.sleep(0.03)
    assert redis.asked == []  # nobody scrapes it: another one is to have the lock
    await shown(api, redis)
    async with asyncio.timeout(10):
        while len(redis.asked) < 4:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    redis.error = BrokerUnavailable()
    before = len(redis.asked)
    async with asyncio.timeout(10):
        while len(redis.asked) < before + 3:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    assert not publishing.done()
    monkeypatch.setattr(exposition, "FORGOTTEN", 0.0)
    await asyncio.sleep(0.02)
    before = len(redis.asked)
    await asyncio.sleep(0.03)
    assert len(redis.asked) == before
    publishing.cancel()


async def test_what_redis_says_is_told_beside_our_own(redis: Redis) -> None:
    api = Exposition(Metrics())
    redis.error = BrokerUnavailable()
    assert (await shown(api, redis))["sagan_broker_up"] == 0
    redis.error = Overloaded()
    values = await shown(api, redis)
    assert values["sagan_broker_up"] == 1  # it answers others
    assert "sagan_queue_depth" not in values
    assert values["sagan_http_requests_shed_total"] == 0


def test_processes_count_together() -> None:
    def read(family: str) -> float:
        return next(f.samples[0].value for f in exposition._processes(os.getpid()) if f.name == family)

    alone = read("process_resident_memory_bytes")
    child = subprocess.Popen([sys.executable, "-c", 'x = b"x" * 60_000_000; input()'], stdin=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 30
        while read("process_resident_memory_bytes") < alone + 50_000_000:
            assert child.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        before = read("process_cpu_seconds")
    finally:
        child.communicate(b"\n")
    assert read("process_cpu_seconds") >= before  # what a child took stays when it has ended
