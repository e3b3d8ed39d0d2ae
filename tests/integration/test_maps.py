"""Attention maps that many ask for at once: how many may wait, and what else goes on meanwhile."""

from __future__ import annotations

from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

import pytest
from redis import Redis

from jobs.errors import MapsFull
from jobs.job import Job
from jobs.settings import QueueSettings
from jobs.wire import attention_queue, message_list

if TYPE_CHECKING:
    from tests.integration.conftest import Service

ODD = Path(__file__).with_name("odd_worker.py")

LAYER = "16x16"


@pytest.fixture
def settings(settings: QueueSettings) -> QueueSettings:
    return settings.model_copy(update={"max_queued_maps": 20})


async def ask(service: Service, job: Job, images: range, caller: str, seconds: int = 30) -> None:
    for image in images:
        await service.store.ask_for_attention(job, image, LAYER, caller, seconds)


def claims(service: Service) -> list[bytes]:
    """Maps for which somebody waits."""
    with Redis.from_url(service.settings.redis_url) as redis:
        found: list[bytes] = redis.keys(f"{service.settings.namespace}:attention-claim:*")
    return found


async def one_image(service: Service) -> Job:
    """A job that is done, and no worker any more."""
    worker = service.start_worker()
    await service.ready()
    [job] = await service.finished([await service.generate()])
    worker.stop()
    return job


async def test_maps_that_wait_have_a_bound_and_a_caller_half_of_it(service: Service) -> None:
    job = await service.generate(count=64)
    await ask(service, job, range(10), "one")
    await ask(service, job, range(10), "one")  # the same ones again: they wait already
    with pytest.raises(MapsFull, match="10 attention maps of yours are waiting"):
        await ask(service, job, range(10, 11), "one")
    await ask(service, job, range(10, 20), "another")
    with pytest.raises(MapsFull, match="20 attention maps are waiting"):
        await ask(service, job, range(20, 21), "third")


async def test_a_map_that_is_made_makes_room(service: Service) -> None:
    service.start_worker()
    await service.ready()
    [job] = await service.finished([await service.generate(count=24)])
    for part in (range(8), range(8, 16), range(16, 24)):  # together more than one caller may have waiting
        await ask(service, job, part, "one")
        for image in part:
            assert await service.store.attention_made(job, image, LAYER, 20)


async def test_a_map_that_came_since_somebody_looked_is_not_waited_for(service: Service) -> None:
    service.start_worker()
    await service.ready()
    [job] = await service.finished([await service.generate(count=2)])
    await ask(service, job, range(1), "one")
    assert await service.store.attention_made(job, 0, LAYER, 20)
    await ask(service, job, range(1), "one")
    assert claims(service) == []


@pytest.mark.parametrize("how", ["purged", "gone"])
async def test_a_map_whose_job_is_gone_takes_no_room(service: Service, how: str) -> None:
    job = await one_image(service)
    await ask(service, job, range(1), "one")
    if how == "purged":
        await service.store.purge(job.id, service.owner)
    else:
        with Redis.from_url(service.settings.redis_url) as redis:
            redis.delete(f"{service.settings.namespace}:job:{job.id}")
    assert len(claims(service)) == 1
    service.start_worker()

    async def none_is_claimed() -> bool:
        return not claims(service)

    await service.until(none_is_claimed, seconds=20)
    assert not await service.store.has_attention(job, 0, LAYER)


async def test_a_map_for_which_nobody_waits_any_more_is_not_made(service: Service) -> None:
    worker = service.start_worker()
    await service.ready()
    [job] = await service.finished([await service.generate(count=4)])
    worker.stop()
    await ask(service, job, range(3), "one", seconds=1)

    async def none_is_claimed() -> bool:
        return not claims(service)

    await service.until(none_is_claimed)
    service.start_worker()
    await service.ready()
    await ask(service, job, range(3, 4), "one")
    assert await service.store.attention_made(job, 3, LAYER, 20)
    assert not await service.store.has_attention(job, 0, LAYER)
    [told] = await service.told()
    assert told.stats["tiny"].attention_maps == 1
    with Redis.from_url(service.settings.redis_url) as redis:
        queue = attention_queue((await service.spec()).version)
        assert redis.llen(message_list(service.settings.namespace, queue, 0)) == 0


async def test_a_flood_of_maps_holds_up_no_urgent_image(service: Service) -> None:
    service.start_worker(ODD, TEST_SLOW_MAPS="1", SAGAN_CONCURRENCY="16")
    await service.ready()
    job = (await service.finished([await service.generate(count=20)]))[0]
    await ask(service, job, range(10), "one")
    await ask(service, job, range(10, 20), "another")  # 20 s of maps
    began = monotonic()
    for _ in range(3):
        await service.finished([await service.generate(priority=9)])
    assert monotonic() - began < 10
    assert not await service.store.has_attention(job, 19, LAYER), "there was no flood"
