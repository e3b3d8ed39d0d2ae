"""Jobs created at once share a call, and so do jobs that end at once; each has its own outcome."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import anyio
import pytest
from redis import Redis

from jobs.client import JobClient
from jobs.errors import IdempotencyConflict, QueueFull
from jobs.job import Job, ModelInfo, WorkerInfo, new_job_id
from jobs.scripts import NewJob
from jobs.worker_store import WorkerStore

if TYPE_CHECKING:
    from tests.integration.conftest import Service


@pytest.fixture
def worker(service: Service) -> Iterator[WorkerStore]:
    """A worker's store without the worker."""
    store = WorkerStore(service.settings, "by hand", lambda: False)
    yield store
    store.close()


def calls(service: Service, command: str) -> int:
    """How often Redis has run a command."""
    with Redis.from_url(service.settings.redis_url) as redis:
        return int(redis.info("commandstats").get(f"cmdstat_{command}", {}).get("calls", 0))


async def test_creates_that_come_together_are_one_call_and_each_has_its_own_outcome(
    service: Service,
) -> None:
    store = JobClient.open(service.settings.model_copy(update={"max_queued": 4, "caller_share": 1.0}))
    spec = await service.spec()
    first, _ = await store.create(spec, service.owner)  # connects, and loads the script
    before = calls(service, "evalsha")
    found = await asyncio.gather(
        store.create(spec, service.owner, "key", "request"),
        store.create(replace(spec, seed=8), service.owner, "key", "request"),
        store.create(spec, service.owner, "key", "another request"),
        store.create(replace(spec, seed=9), service.owner),
        store.create(replace(spec, seed=10, priority=9), service.owner),
        store.create(spec, service.owner),
        return_exceptions=True,
    )
    assert calls(service, "evalsha") == before + 1
    (one, new), (same, new_too), conflict, (two, _), (three, _), full = found  # type: ignore[misc]
    assert (new, new_too) == (True, False)
    assert same == one
    assert isinstance(conflict, IdempotencyConflict)
    assert isinstance(full, QueueFull)
    assert (one.spec.seed, two.spec.seed, three.spec.seed) == (7, 9, 10)
    for job in (first, one, two, three):
        assert await store.get(job.id, service.owner) == job
    assert [await store.position(job) for job in (three, first, one, two)] == [0, 1, 2, 3]
    await store.close()


async def test_a_create_sent_twice_makes_one_job(service: Service) -> None:
    """As redis-py sends it again when the answer is lost."""
    job_id, spec = new_job_id(), await service.spec()
    answers = [
        await service.store.create_and_wait(NewJob(job_id, service.owner, spec, "key"), 0.01)
        for _ in range(2)
    ]
    assert answers[0] == answers[1]
    assert await service.store.depth() == 1


async def test_jobs_that_end_together_are_told_in_one_message(service: Service, worker: WorkerStore) -> None:
    waits = await waiting(service, [1, 1, 2, 1])
    jobs = [job_id for job_id, _ in waits]
    before = calls(service, "publish")
    pngs = [b"\x89PNG\r\n\x1a\n%d\n" % k * 1000 for k in range(4)]
    images = [(jobs[0], 0, pngs[0]), (jobs[1], 0, pngs[1]), (jobs[2], 0, pngs[2]), (jobs[2], 1, pngs[3])]
    saved = worker.save(images)
    assert [one.goes_on for one in saved] == [False, False, True, False]
    assert all(0 <= waited <= took for waited, took in (one.ended for one in saved if one.ended))
    assert [one.ended is not None for one in saved] == [True, True, False, True]
    answers = [await wait for _, wait in waits[:3]]
    assert calls(service, "publish") == before + 1
    assert [png for _, png in answers] == [pngs[0], pngs[1], None]  # two images are not told
    for job, _ in answers:
        assert job.state == "succeeded"
        assert job == await service.store.get(job.id, service.owner)
    assert not waits[3][1].done()
    assert not worker.save([(jobs[3], 0, pngs[3])])[0].goes_on
    assert (await waits[3][1])[1] == pngs[3]


async def test_who_waits_hears_why_a_job_failed_and_of_a_cancellation(
    service: Service, worker: WorkerStore
) -> None:
    (failing, failed), (leaving, cancelled) = await waiting(service, [1, 64])
    reason = 'No "image":\n\\ Größe 3'
    worker.fail(failing, reason)
    await service.store.cancel(leaving, service.owner)
    ends = [await failed, await cancelled]
    assert [(job.state, job.error, png) for job, png in ends] == [
        ("failed", reason, None),
        ("cancelled", None, None),
    ]
    for job, _ in ends:
        assert job == await service.store.get(job.id, service.owner)


async def waiting(
    service: Service, counts: list[int]
) -> list[tuple[str, asyncio.Task[tuple[Job, bytes | None]]]]:
    """One job a count, of so many images, each with a client that waits for it."""
    waits, looks = [], calls(service, "hgetall")
    for count in counts:
        job_id = new_job_id()
        wait = service.store.create_and_wait(
            NewJob(job_id, service.owner, await service.spec(count=count)), seconds=20
        )
        waits.append((job_id, asyncio.create_task(wait)))

    async def heard() -> bool:
        # each looks at its job once more when the subscription stands
        return calls(service, "hgetall") == looks + len(counts)

    await service.until(heard)
    return waits


async def test_many_who_ask_for_the_models_at_once_read_them_once(
    service: Service, worker: WorkerStore
) -> None:
    now = datetime.now(UTC)
    model = ModelInfo("tiny", service.model_hash, "float32", 32, ("cat",))
    worker.beat(WorkerInfo("by hand", "cpu", now, now, (model,)))
    assert await service.store.models() == [model]
    await anyio.sleep(service.settings.heartbeat_period)
    before = calls(service, "mget")
    assert await asyncio.gather(*(service.store.models() for _ in range(8))) == [[model]] * 8
    assert calls(service, "mget") == before + 1


async def test_a_job_s_attempt_counts_though_nobody_waited_for_the_answer(
    service: Service, worker: WorkerStore
) -> None:
    """As when the forward kills the process, on a Redis that has seen none of our scripts."""
    job = await service.generate()
    worker.begin([job.id], 1, [])

    async def counted() -> bool:
        return (await service.store.get(job.id, service.owner)).attempts == 1

    await service.until(counted)
    begun = await service.store.get(job.id, service.owner)
    assert (begun.state, begun.attempts) == ("running", 1)


async def test_what_may_run_is_answered_though_the_connection_broke(
    service: Service, worker: WorkerStore
) -> None:
    job, cancelled = await service.generate(), await service.generate(seed=8)
    await service.store.cancel(cancelled.id, service.owner)
    assert worker.begin([job.id, cancelled.id], 2, [])() == {job.id}
    with Redis.from_url(service.settings.redis_url) as redis:
        redis.client_kill_filter(_type="normal", skipme=True)  # before the command is sent
        assert worker.begin([job.id, cancelled.id], 0, [])() == {job.id}
        answer = worker.begin([job.id, cancelled.id], 0, [])
        redis.client_kill_filter(_type="normal", skipme=True)  # and after
    assert answer() == {job.id}
