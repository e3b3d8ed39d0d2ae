"""Whose an image's file is when its job ends otherwise than its worker thought: by a worker's store alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import anyio
import numpy as np
import pytest
from redis import Redis

from jobs.client import JobClient
from jobs.errors import ExpiredJob, PurgedJob, StoreUnavailable
from jobs.job import USUAL, AttentionMap, Job, Terms
from jobs.keys import Keys
from jobs.settings import QueueSettings
from jobs.worker_store import WorkerStore
from serve.private_redis import PrivateRedis
from tests.integration.conftest import Service

PNG = b"\x89PNG and so on"
MAP = AttentionMap("4x3", (4, 3), (2, 3), 0.25, 0.125, np.ones((12, 6), np.float16))


@pytest.fixture
def settings(redis: PrivateRedis, tmp_path: Path) -> QueueSettings:
    return QueueSettings(redis_url=redis.url, namespace="test", result_store=f"file://{tmp_path}/kept")


@pytest.fixture
def worker(service: Service) -> Iterator[WorkerStore]:
    """A worker's store without a worker."""
    store = WorkerStore(service.settings, "by hand", lambda: False)
    yield store
    store.close()


def files(tmp_path: Path) -> set[str]:
    return {str(path.relative_to(tmp_path / "kept")) for path in (tmp_path / "kept").rglob("*.*")}


async def begun(service: Service, worker: WorkerStore, count: int = 2, terms: Terms = USUAL) -> Job:
    job, _ = await service.store.create(await service.spec(count=count), service.owner, terms=terms)
    assert worker.begin([job.id], 1, [])() == {job.id}
    return job


@pytest.mark.parametrize("where", ["file", "redis"])
async def test_what_is_stored_after_a_purge_is_nobodys(
    service: Service, worker: WorkerStore, tmp_path: Path, where: str
) -> None:
    store, in_hand = service.store, worker
    if where == "redis":
        settings = service.settings.model_copy(update={"result_store": "redis"})
        in_hand = WorkerStore(settings, "by hand", lambda: False)
    job = await begun(service, in_hand)
    assert [saved.goes_on for saved in in_hand.save([(job.id, 0, PNG)])] == [True]
    in_hand.save_attention(job.id, 0, "4x3", MAP)
    assert await store.image(job, 0) == PNG
    found = await store.attention(job, 0, "4x3")
    assert found is not None
    assert found.gamma == MAP.gamma
    assert files(tmp_path) == ({f"{job.id}/0.png", f"{job.id}/0.4x3.map"} if where == "file" else set())
    purged, all_gone = await store.purge(job.id, service.owner)
    assert (purged.state, purged.purged, all_gone) == ("cancelled", True, True)
    [late] = in_hand.save([(job.id, 1, PNG)])
    in_hand.save_attention(job.id, 1, "4x3", MAP)
    assert (late.goes_on, late.refused) == (False, where == "file")
    assert files(tmp_path) == set()
    with Redis.from_url(service.settings.redis_url) as redis:
        assert not list(redis.scan_iter("test:attention:*"))
        assert not list(redis.scan_iter("test:images:*"))
        assert not list(redis.scan_iter("test:maps:*"))
    with pytest.raises(PurgedJob):
        await store.get(job.id, service.owner)
    again, _ = await store.purge(job.id, service.owner)
    assert again.state == "cancelled"
    if in_hand is not worker:
        in_hand.close()


async def test_a_second_delivery_and_a_cancelled_job_keep_the_files_that_are_theirs(
    service: Service, worker: WorkerStore, tmp_path: Path
) -> None:
    done, cancelled = await begun(service, worker, count=1), await begun(service, worker)
    for _ in range(2):
        assert not worker.save([(done.id, 0, PNG)])[0].refused
    worker.save([(cancelled.id, 0, PNG)])
    await service.store.cancel(cancelled.id, service.owner)
    again, late = worker.save([(cancelled.id, 0, PNG), (cancelled.id, 1, PNG)])
    assert (again.refused, late.refused) == (False, True)
    assert await service.store.images(cancelled) == [PNG, None]
    assert await service.store.image(done, 0) == PNG


async def test_files_go_when_their_job_expires_though_its_record_is_forgotten(
    service: Service, worker: WorkerStore, tmp_path: Path
) -> None:
    short, long = await begun(service, worker, 1, Terms(retention=1)), await begun(service, worker, 1)
    worker.save([(short.id, 0, PNG), (long.id, 0, PNG)])
    worker.save_attention(short.id, 0, "4x3", MAP)
    assert worker.delete_expired() == 0
    with Redis.from_url(service.settings.redis_url) as redis:
        redis.delete(Keys("test").job(short.id))
        await anyio.sleep(2.1)  # a map's end is a whole second
        assert worker.delete_expired() == 2
        assert files(tmp_path) == {f"{long.id}/0.png"}
        assert redis.zcard(Keys("test").expiring) == 1
    assert (await service.store.get(long.id, service.owner)).state == "succeeded"


async def test_an_image_is_found_whatever_the_setting_was_when_it_was_made(
    service: Service, worker: WorkerStore, tmp_path: Path
) -> None:
    old = JobClient.open(service.settings.model_copy(update={"result_store": "redis"}))
    kept = service.settings.result_store
    both = JobClient.open(service.settings.model_copy(update={"result_store": f"redis,{kept}"}))
    # the API that took it writes to Redis, its worker into the folder
    job, _ = await old.create(await service.spec(), service.owner)
    worker.begin([job.id], 1, [])()
    worker.save([(job.id, 0, PNG)])
    assert await both.image(job, 0) == await service.store.image(job, 0) == PNG
    with pytest.raises(StoreUnavailable, match="does not read"):
        await old.image(job, 0)
    _, all_gone = await old.purge(job.id, service.owner)
    assert not all_gone
    with pytest.raises(ExpiredJob):
        await both.get(job.id, service.owner)
    with Redis.from_url(service.settings.redis_url) as redis:  # a worker deletes it
        [member] = redis.zrange(Keys("test").expiring, 0, -1)
        redis.zadd(Keys("test").expiring, {member: 0})
    assert worker.delete_expired() == 1
    assert files(tmp_path) == set()
    await old.close()
    await both.close()
