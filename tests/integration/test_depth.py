"""A deep queue slows neither a submission, nor the sweeper, nor an urgent job."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from redis import Redis

from jobs.settings import QueueSettings
from jobs.worker_store import WorkerStore
from serve.private_redis import PrivateRedis
from worker.sweeper import FIRST, Sweeper

if TYPE_CHECKING:
    from tests.integration.conftest import Service

SLOW = Path(__file__).with_name("odd_worker.py")
DEEP = 3000


@pytest.fixture
def settings(redis: PrivateRedis) -> QueueSettings:
    return QueueSettings(
        redis_url=redis.url, namespace="deep", heartbeat_period=0.4, worker_ttl=2.0, max_queued=10 * DEEP
    )


@contextmanager
def asked(service: Service) -> Iterator[Any]:
    """A connection of our own."""
    with Redis.from_url(service.settings.redis_url) as redis:
        yield redis


async def fill(service: Service, jobs: int = DEEP) -> None:
    spec = await service.spec()
    left = iter(range(jobs))

    async def some() -> None:
        for _ in left:
            await service.store.create(spec, service.owner)

    await asyncio.gather(*(some() for _ in range(16)))


@asynccontextmanager
async def commands(service: Service) -> AsyncIterator[Counter[str]]:
    """Counts of the commands that Redis runs inside the block, those of scripts included."""
    found: Counter[str] = Counter()
    with asked(service) as redis:
        redis.config_resetstat()
        yield found
        stats = redis.info("commandstats")
        found.update({name.removeprefix("cmdstat_"): stat["calls"] for name, stat in stats.items()})


async def test_a_submission_asks_redis_for_no_more_when_many_jobs_wait(service: Service) -> None:
    await service.generate()  # connections and scripts are there
    async with commands(service) as shallow:
        await service.generate()
    await fill(service)
    async with commands(service) as deep:
        await service.generate()
    assert deep == shallow
    assert shallow["hset"] > 0


# With quick forwards a worker is always some messages ahead of what its heartbeat told; with slow ones the
# same jobs stay in front.
@pytest.mark.parametrize("forward", ["0.5", "0.02"])
async def test_the_sweeper_does_not_read_a_long_queue(
    service: Service, forward: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(service)
    service.start_worker(SLOW, TEST_SLOW=forward)
    await service.ready()
    store = WorkerStore(service.settings, "here", lambda: False)
    monkeypatch.setattr(store, "may_sweep", lambda *_: True)
    lrange, read = store._redis.lrange, []

    def watched(name: str, first: int, last: int) -> Any:
        read.append(first)
        return lrange(name, first, last)

    monkeypatch.setattr(store._redis, "lrange", watched)
    # as for heartbeats of a second: on a busy machine those of 0.4 s come late
    sweeper = Sweeper(service.settings.model_copy(update={"heartbeat_period": 1.0}), store)
    for _ in range(12):
        await asyncio.to_thread(sweeper.sweep)
        await asyncio.sleep(service.settings.heartbeat_period)
    store.close()
    assert len(read) >= 12
    assert min(read) >= -2 * FIRST


@pytest.mark.parametrize("cancelled", [0, 50])
async def test_jobs_without_a_message_are_made_before_the_rest(service: Service, cancelled: int) -> None:
    lost = []
    for _ in range(2):
        lost.append(await service.generate())
        service.lose_message(lost[-1])
    await fill(service)
    for job in [await service.generate() for _ in range(cancelled)]:  # their messages stay
        await service.store.cancel(job.id, job.owner)
    service.start_worker(SLOW, TEST_SLOW="0.2")
    with asked(service) as redis:
        await service.finished(lost, seconds=30)
        assert redis.zcard("deep:queued") > DEEP / 2, "they came last"


async def test_an_urgent_job_is_made_next_however_many_wait(service: Service) -> None:
    await fill(service)
    service.start_worker(SLOW, TEST_SLOW="0.05")
    await service.ready()
    with asked(service) as redis:

        def ended() -> int:
            return int(redis.hget("deep:ended", "succeeded") or 0)

        async def some_ended() -> bool:
            return ended() > 0

        await service.until(some_ended)
        before = ended()
        urgent = await service.generate(priority=9)
        await service.finished([urgent])
        # the forward that ran, and what was in hand, of 64 jobs at most
        assert ended() - before <= 64
        assert redis.zcard("deep:queued") > DEEP / 2
