"""Whatever dies, no job is lost, and a client sees each end once."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import numpy as np
import pytest
from redis import Redis

from jobs.worker_store import WorkerStore
from worker.pending import Made, PendingJob
from worker.result_writer import ResultWriter

if TYPE_CHECKING:
    from forked import WorkerProcess
    from jobs.job import Job
    from tests.integration.conftest import Service

ODD = Path(__file__).with_name("odd_worker.py")


def slow_worker(service: Service, seconds: float = 0.05, **env: str) -> WorkerProcess:
    return service.start_worker(ODD, TEST_SLOW=str(seconds), **env)


async def queue_200(service: Service) -> list[Job]:
    return [await service.generate(seed=seed, count=1 + seed % 3) for seed in range(200)]


async def some_are_done(service: Service, jobs: list[Job], many: int = 20) -> list[Job]:
    """Wait until so many of the jobs have ended, while others still wait."""
    ended = []
    for job in jobs[:many]:
        ended += await service.finished([job])
    assert await service.store.depth() > 0, "all jobs were done before the fault"
    return ended


async def some_images_of(service: Service, job: Job) -> None:
    async def are_there() -> bool:
        return await service.made(job) > 0

    await service.until(are_there)


async def all_are_done_once(service: Service, jobs: list[Job], seconds: float) -> None:
    for job in await service.finished(jobs, seconds):
        assert job.state == "succeeded", job.error
        assert job.done == job.spec.count
        assert await service.ends(job) == 1


async def test_200_jobs_survive_the_death_of_their_worker(service: Service) -> None:
    worker = slow_worker(service)
    await service.ready()
    jobs = await queue_200(service)
    early = await some_are_done(service, jobs)
    before = [await service.store.images(job) for job in early]
    worker.kill()
    another = slow_worker(service, 0.0)
    await all_are_done_once(service, jobs, seconds=60)
    told = [json.loads(line) for line in another.output.splitlines()]
    back = {line["job_id"]: line.get("lost_by") for line in told if line["event"] == "job brought back"}
    assert back.keys() <= {job.id for job in jobs}
    assert len(set(back.values()) - {None}) == 1  # the worker that died; None: it had not begun that one
    assert back.keys() <= {line["job_id"] for line in told if line["event"] == "job ended"}
    assert [await service.store.images(job) for job in early] == before


async def test_200_jobs_survive_the_death_of_redis(service: Service) -> None:
    slow_worker(service)
    await service.ready()
    jobs = await queue_200(service)
    early = await some_are_done(service, jobs)
    before = [await service.store.images(job) for job in early]
    service.redis.kill()
    await anyio.sleep(1)
    service.redis.start()
    await all_are_done_once(service, jobs, seconds=60)
    assert [await service.store.images(job) for job in early] == before


async def test_a_poison_job_fails_alone(service: Service) -> None:
    poison, neighbours = 666, []
    for seed in range(12):  # all in hand before the first forward: they share it with the poison
        neighbours.append(await service.generate(seed=seed, count=2))
        if seed == 5:
            job = await service.generate(seed=poison, count=3)
    deaths = 0
    while not await service.has_ended(job):
        worker = service.start_worker(ODD, TEST_POISON=str(poison))

        async def is_decided(worker: WorkerProcess = worker) -> bool:
            return worker.returncode is not None or await service.has_ended(job)

        await service.until(is_decided)
        deaths += worker.returncode == 9
    [failed] = await service.finished([job])
    assert failed.state == "failed"
    assert failed.error is not None
    assert "died 3 times" in failed.error
    assert deaths == 3
    await all_are_done_once(service, neighbours, seconds=30)


async def test_a_job_whose_message_was_lost_is_made(service: Service) -> None:
    lost = await service.generate()
    service.lose_message(lost)
    crowd = [await service.generate(count=8, seed=seed) for seed in range(20)]  # it is missed all the same
    slow_worker(service)
    [job] = await service.finished([lost], seconds=20)
    assert job.state == "succeeded"
    await service.finished(crowd)


async def test_a_second_message_for_a_job_does_no_harm(service: Service) -> None:
    job = await service.generate(count=8)
    for _ in range(5):
        service.queue_again(job)
    service.start_worker()
    await all_are_done_once(service, [job], seconds=30)
    await service.finished([await service.generate(seed=8)])  # the other messages came before this one
    assert await service.ends(job) == 1


async def test_a_worker_lets_go_of_a_job_whose_rest_is_another_s(service: Service) -> None:
    job = await service.generate(count=2)
    store = WorkerStore(service.settings, "here", lambda: False)
    writer = ResultWriter(store)
    mine = PendingJob(job.id, job.spec, [0])
    writer.take([Made(mine, 0, np.zeros((32, 32, 3), np.uint8))])
    await anyio.to_thread.run_sync(mine.done.result, 10)
    assert await service.made(job) == 1
    assert not await service.has_ended(job)
    writer.close(10)
    store.close()


async def test_a_worker_that_is_told_to_stop_hands_its_jobs_back(service: Service) -> None:
    worker = slow_worker(service, 0.3)
    await service.ready()
    jobs = [await service.generate(seed=seed, count=20) for seed in range(10)]
    await some_images_of(service, jobs[0])
    took = worker.stop()
    assert took < 5
    assert worker.returncode == 0, worker.output
    assert await service.store.workers() == []
    states = [await service.store.get(job.id, service.owner) for job in jobs]
    assert {job.state for job in states} == {"queued"}
    assert {job.attempts for job in states} == {0}
    with Redis.from_url(service.settings.redis_url) as redis:
        waiting = sum(redis.llen(key) for key in redis.scan_iter("test:celery:generate*"))
    assert waiting >= len(jobs)
    service.start_worker()
    await all_are_done_once(service, jobs, seconds=60)


async def test_a_worker_stops_while_redis_is_away(service: Service) -> None:
    worker = slow_worker(service, 0.1)
    await service.ready()
    jobs = [await service.generate(seed=seed, count=20) for seed in range(10)]
    await some_images_of(service, jobs[0])
    service.redis.kill()
    await anyio.sleep(0.5)
    took = worker.stop()
    assert took < 10
    service.redis.start()
    service.start_worker()
    await all_are_done_once(service, jobs, seconds=60)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
async def test_no_variable_is_added_to_the_environment_while_threads_may_read_it(service: Service) -> None:
    worker = service.start_worker(Path(__file__).with_name("telling_worker.py"))
    await service.ready()
    await service.finished([await service.generate()])
    assert "written b'_MP_FORK_LOGLEVEL_'" in worker.output  # Celery does
    assert "ADDED" not in worker.output
