"""A worker takes messages from Redis, acknowledges them, or hands them back."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from redis import Redis

from jobs.wire import broker_priority, generate_message, generate_queue, message_list

if TYPE_CHECKING:
    from tests.integration.conftest import Service

ODD = Path(__file__).with_name("odd_worker.py")


@pytest.fixture
def asked(service: Service) -> Iterator[Any]:
    """A connection of our own."""
    with Redis.from_url(service.settings.redis_url) as redis:
        yield redis


def calls(asked: Any) -> dict[str, int]:
    """How often Redis ran each command."""
    stats = asked.info("commandstats")
    return {name.removeprefix("cmdstat_"): stat["calls"] for name, stat in stats.items()}


async def nothing_is_in_hand(service: Service) -> None:
    now = datetime.now(UTC)

    async def so_it_says() -> bool:
        [worker] = await service.store.workers()
        return worker.beat_at > now and worker.in_hand == ()

    await service.until(so_it_says)


async def test_jobs_that_wait_together_are_taken_together(service: Service, asked: Any) -> None:
    jobs = [await service.generate(seed=seed) for seed in range(60)]
    asked.config_resetstat()
    service.start_worker()
    await service.finished(jobs)
    looks = calls(asked)
    assert 0 < looks["blmpop"] < len(jobs) / 2
    assert "brpop" not in looks


async def test_a_redis_that_gives_one_message_a_look_is_enough(service: Service, asked: Any) -> None:
    asked.execute_command("ACL", "SETUSER", "default", "-blmpop")  # as before Redis 7.0
    jobs = [await service.generate(seed=seed) for seed in range(20)]
    service.start_worker()
    await service.finished(jobs)
    assert calls(asked)["brpop"] >= len(jobs)


async def test_of_several_priorities_the_most_urgent_are_taken_first(service: Service) -> None:
    wanted = [priority for priority in range(10) for _ in range(4)]
    random.Random(3).shuffle(wanted)
    jobs = [await service.generate(priority=priority, seed=seed) for seed, priority in enumerate(wanted)]
    service.start_worker(ODD, TEST_SLOW="0.02", SAGAN_CONCURRENCY="1")  # two in one forward end together
    ended = await service.finished(jobs)
    order = sorted(ended, key=lambda job: job.finished_at)  # type: ignore[arg-type, return-value]
    assert [job.spec.priority for job in order] == sorted(wanted, reverse=True)


async def test_no_more_jobs_are_in_hand_than_the_worker_was_told(service: Service, asked: Any) -> None:
    jobs = [await service.generate(seed=seed) for seed in range(30)]
    service.start_worker(ODD, TEST_SLOW="0.2", SAGAN_CONCURRENCY="5")
    await service.ready()
    seen = []
    while not await service.has_ended(jobs[-6]):
        waiting = len(service.messages(jobs[0].spec))
        [worker] = await service.store.workers()
        seen.append((len(worker.in_hand), waiting))
        await anyio.sleep(0.05)
    assert max(in_hand for in_hand, _ in seen) == 5
    assert len({waiting for _, waiting in seen}) > 2, "they were not taken bit by bit"


async def test_a_worker_that_is_full_takes_the_next_job_as_soon_as_one_ends(service: Service) -> None:
    service.start_worker(SAGAN_CONCURRENCY="1")
    await service.ready()
    jobs = [await service.generate(seed=seed) for seed in range(60)]
    began = monotonic()
    await service.finished(jobs)
    assert monotonic() - began < 15  # 60 times half a second if nothing woke it


async def test_a_job_that_fails_is_let_go(service: Service, asked: Any) -> None:
    worker = service.start_worker(ODD, TEST_BROKEN="13")
    await service.ready()
    jobs = [await service.generate(seed=seed, count=2) for seed in range(10, 16)]
    ended = await service.finished(jobs)
    assert [job.state for job in ended] == ["failed" if job.spec.seed == 13 else "succeeded" for job in jobs]
    assert ended[3].error == "The model could not make this image: it is broken"
    await nothing_is_in_hand(service)
    worker.stop()
    assert service.messages(await service.spec()) == []


async def test_a_job_that_fails_while_redis_is_away_is_failed_when_it_is_back(service: Service) -> None:
    service.start_worker(ODD, TEST_SLOW="0.5", TEST_BROKEN="13")
    await service.ready()
    broken = await service.generate(seed=13)
    jobs = [await service.generate(seed=seed) for seed in range(3)]

    async def has_begun() -> bool:
        return (await service.store.get(broken.id, service.owner)).state == "running"

    await service.until(has_begun)
    service.redis.kill()
    await anyio.sleep(1)
    service.redis.start()
    [failed, *others] = await service.finished([broken, *jobs])
    assert failed.state == "failed"
    assert {job.state for job in others} == {"succeeded"}
    assert await service.ends(broken) == 1
    await nothing_is_in_hand(service)


async def test_what_cannot_be_read_takes_nobody_along(service: Service, asked: Any) -> None:
    queue = generate_queue((await service.spec()).version)
    name = message_list("test", queue, broker_priority(5))
    bodies = ["", "bm8ganNvbg==", "W10=", "eyJub3QiOiAiYSBsaXN0In0=", "W1sxLCAyXSwge30sIHt9XQ=="]
    messages = ["", "no json", "[]", "{}", '{"properties": {}}']
    messages += [
        json.dumps({**json.loads(generate_message("some-job", None, 5, queue)), "body": body})
        for body in bodies
    ]
    messages += [generate_message("some-job", spec, 5, queue) for spec in ("{}", "no json", None)]
    messages += [generate_message("some-job", None, 5, queue).replace("sagan.generate", "sagan.unknown")]
    jobs = []
    for seed, message in enumerate(messages):
        asked.lpush(name, message)
        jobs.append(await service.generate(seed=seed))
    worker = service.start_worker()
    ended = await service.finished(jobs)
    assert {job.state for job in ended} == {"succeeded"}
    await nothing_is_in_hand(service)
    assert worker.stop() < 5
    assert worker.returncode == 0
    assert asked.llen(name) == 0


async def test_a_job_that_is_done_soon_is_in_no_list_of_redis(service: Service, asked: Any) -> None:
    service.start_worker(ODD, TEST_SLOW="0.1")
    await service.ready()
    name = "test:celery:unacked"
    for seed in range(12):  # each as long as a fifth of the time between two writings
        await service.finished([await service.generate(seed=seed)])
        assert asked.hlen(name) == 0
    long = [await service.generate(seed=seed, count=64) for seed in range(8)]

    async def are_written() -> bool:
        return bool(asked.hlen(name) == asked.zcard("test:celery:unacked_index") > 0)

    async def are_struck_out() -> bool:
        return bool(asked.hlen(name) == asked.zcard("test:celery:unacked_index") == 0)

    await service.until(are_written)
    await service.finished(long)
    await service.until(are_struck_out, seconds=5)


async def test_what_was_in_hand_when_the_worker_stopped_comes_next_in_the_old_order(
    service: Service, asked: Any
) -> None:
    worker = service.start_worker(ODD, TEST_SLOW="0.5", SAGAN_CONCURRENCY="4")
    await service.ready()
    long = [await service.generate(seed=seed, count=64) for seed in range(4)]
    later = [await service.generate(seed=seed) for seed in range(4, 8)]

    async def all_are_taken() -> bool:
        [worker] = await service.store.workers()
        return set(worker.in_hand) == {job.id for job in long}

    await service.until(all_are_taken)
    worker.stop()
    assert service.messages(later[0].spec) == [job.id for job in long + later]
    assert asked.hlen("test:celery:unacked") == 0


async def test_what_ends_while_the_worker_stops_is_not_handed_back(service: Service, asked: Any) -> None:
    worker = service.start_worker(ODD, TEST_SLOW="3")
    await service.ready()
    job = await service.generate()

    async def has_begun() -> bool:
        return (await service.store.get(job.id, service.owner)).state == "running"

    await service.until(has_begun)
    worker.stop()
    assert await service.has_ended(job)
    assert service.messages(await service.spec()) == []


async def test_short_jobs_behind_a_long_one_are_taken_by_a_worker_that_has_made_single_images_so_far(
    service: Service,
) -> None:
    service.start_worker(ODD, TEST_SLOW="0.15")
    await service.finished([await service.generate()])  # at that pace 64 images are 10 seconds of work
    long = await service.generate(count=64)
    short = [await service.generate(seed=seed) for seed in range(5)]
    await service.finished(short)
    assert not await service.has_ended(long)
    await service.finished([long])
