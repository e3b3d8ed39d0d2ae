"""Deadlines: a job whose time is up enters no forward, whoever notices first."""

from __future__ import annotations

from collections.abc import Iterator

import anyio
import pytest
from redis import Redis

from jobs.job import Context, Job, Terms
from jobs.keys import Keys
from jobs.worker_store import WorkerStore
from tests.integration.conftest import Service

CONTEXT = Context("a-request", "a-key", "00-" + 32 * "a" + "-" + 16 * "b" + "-01")


@pytest.fixture
def worker(service: Service) -> Iterator[WorkerStore]:
    """A worker's store without a worker."""
    store = WorkerStore(service.settings, "by hand", lambda: False)
    yield store
    store.close()


async def ordered(service: Service, expires_in: float | None, seed: int = 7, count: int = 1) -> Job:
    spec = await service.spec(seed=seed, count=count)
    job, _ = await service.store.create(spec, service.owner, terms=Terms(CONTEXT, expires_in))
    return job


async def test_a_late_job_enters_no_forward(service: Service, worker: WorkerStore) -> None:
    late, early = await ordered(service, 0.05), await ordered(service, 60, seed=8)
    await anyio.sleep(0.06)
    # a worker of its own mind: nobody has swept, and nobody has looked at the job
    assert worker.begin([late.id, early.id], 2, [])() == {early.id}
    ended = await service.store.get(late.id, service.owner)
    assert (ended.state, ended.done, ended.started_at) == ("cancelled", 0, None)
    assert ended.error == "It was not made in the 0.05 s that were given to it."
    assert (await service.store.get(early.id, service.owner)).state == "running"
    assert await service.ends(late) == 1


async def test_a_late_job_ends_though_nobody_takes_it_and_leaves_nothing(service: Service) -> None:
    jobs = [await ordered(service, 0.05, seed) for seed in range(3)]
    waits = await ordered(service, None, seed=9)
    await anyio.sleep(0.06)
    # no worker is there to do it: whoever looks does
    assert (await service.store.get(jobs[0].id, service.owner)).state == "cancelled"
    assert [await service.has_ended(job) for job in (*jobs, waits)] == [True, True, True, False]
    assert await service.store.depth() == 1
    with Redis.from_url(service.settings.redis_url) as redis:
        assert not redis.exists(f"{Keys(service.settings.namespace).prefix}deadlines")


async def test_a_job_that_is_made_in_time_is_made(service: Service) -> None:
    dead = await ordered(service, 0.05)
    await anyio.sleep(0.06)
    service.start_worker()
    await service.ready()
    jobs = [await ordered(service, 60, seed, count=3) for seed in range(3)]
    assert {(job.state, job.done) for job in await service.finished(jobs)} == {("succeeded", 3)}
    [ended] = await service.finished([dead])
    assert (ended.state, ended.done) == ("cancelled", 0)
    # and the sweeper ends one that waits for a version that nobody has
    spec = await service.spec(model_hash="0" * 64)
    job, _ = await service.store.create(spec, service.owner, terms=Terms(expires_in=0.2))

    async def is_swept() -> bool:
        with Redis.from_url(service.settings.redis_url) as redis:
            return bool(redis.hget(Keys(service.settings.namespace).job(job.id), "state") == b"cancelled")

    await service.until(is_swept)
    assert await is_swept()


async def test_the_context_comes_with_the_message_and_the_record(
    service: Service, worker: WorkerStore
) -> None:
    job = await ordered(service, None)
    assert (await service.store.get(job.id, service.owner)).context == CONTEXT
    taken = worker.take(job.id)
    assert taken is not None
    assert taken.context == CONTEXT
    assert f'"sagan": {{"request_id":"{CONTEXT.request_id}"' in service.message(job)
