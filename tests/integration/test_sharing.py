"""Many waiters, foreign news and other clocks: what the API's store makes of them."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

import pytest
from redis import Redis

from jobs.errors import Overloaded
from jobs.job import Job, new_job_id
from jobs.pubsub import RECHECK
from jobs.scripts import NewJob

if TYPE_CHECKING:
    from tests.integration.conftest import Service

READ = """\
import asyncio, sys
from jobs.client import JobClient
from jobs.errors import JobError
from jobs.settings import QueueSettings

async def main():
    store = JobClient.open(QueueSettings())
    try:
        print((await store.get(sys.argv[1], sys.argv[2])).state)
    except JobError as error:
        print(type(error).__name__)
    recent, _ = await store.recent(sys.argv[2])
    print(sys.argv[1] in [job.id for job in recent])
    await store.close()

asyncio.run(main())
"""


async def test_three_thousand_waiters_for_one_key_are_all_answered(service: Service) -> None:
    spec, key = await service.spec(), "shared"

    async def wait(_: int) -> Job:
        while True:
            try:
                new = NewJob(new_job_id(), service.owner, spec, key)
                return (await service.store.create_and_wait(new, 60))[0]
            except Overloaded:  # as it says: "try again in a few seconds"
                await asyncio.sleep(1)

    waiting = [asyncio.create_task(wait(number)) for number in range(3000)]
    await asyncio.sleep(1)
    await asyncio.to_thread(service.start_worker)  # the first one loads torch, for seconds
    found = await asyncio.gather(*waiting)
    assert len({job.id for job in found}) == 1
    assert {job.state for job in found} == {"succeeded"}


@pytest.mark.parametrize("junk", [b"\xff\xfe", b"a -5\nhello", b"\n\n\n", b"", b"{job} 3\n{[}", b"{job} 0\n"])
async def test_junk_on_the_channel_of_the_news_does_no_harm(service: Service, junk: bytes) -> None:
    job_id = new_job_id()
    spec = await service.spec()
    waiting = asyncio.create_task(service.store.create_and_wait(NewJob(job_id, service.owner, spec), 30))
    redis: Any = Redis.from_url(service.settings.redis_url)
    with redis:

        async def listens() -> bool:
            return bool(redis.pubsub_channels("test:news:*"))

        await service.until(listens)
        [channel] = redis.pubsub_channels("test:news:*")
        for _ in range(3):
            assert redis.publish(channel, junk.replace(b"{job}", job_id.encode())) == 1
    service.start_worker()
    job, png = await waiting
    assert job.state == "succeeded"
    # the listener still hears: the next answer comes with its image, and sooner than anybody looks again
    began = monotonic()
    job, png = await service.store.create_and_wait(NewJob(new_job_id(), service.owner, spec), 30)
    assert png is not None
    assert monotonic() - began < RECHECK


@pytest.mark.skipif(shutil.which("faketime") is None, reason="there is no faketime on PATH")
@pytest.mark.parametrize("skew", ["-3h", "+0", "+3h"])
async def test_the_clock_of_the_api_s_machine_does_not_matter(service: Service, skew: str) -> None:
    service.settings = service.settings.model_copy(update={"result_ttl": 3600})
    service.start_worker()
    [job] = await service.finished([await service.generate()])
    assert await read_with_clock(service, job, skew) == ["succeeded", "True"]
    with Redis.from_url(service.settings.redis_url) as redis:
        redis.hset(f"test:job:{job.id}", "expires_at", str(job.created_at.timestamp()))
    assert await read_with_clock(service, job, skew) == ["ExpiredJob", "False"]


async def read_with_clock(service: Service, job: Job, skew: str) -> list[str]:
    """What a process whose clock is wrong by `skew` says of a job: its state, and whether it is listed."""
    env = {**os.environ, "SAGAN_REDIS_URL": service.settings.redis_url, "SAGAN_NAMESPACE": "test"}
    env["PYTHONPATH"] = str(Path(__file__).parents[2])
    command = ["faketime", "-f", skew, sys.executable, "-c", READ, job.id, service.owner]
    found = await asyncio.to_thread(
        subprocess.run, command, env=env, capture_output=True, text=True, timeout=60, check=True
    )
    return str(found.stdout).split()


async def test_a_worker_whose_clock_is_ahead_forgets_no_other(service: Service) -> None:
    if shutil.which("faketime") is None:
        pytest.skip("there is no faketime on PATH")
    beat = """\
import time
from datetime import UTC, datetime
from jobs.job import WorkerInfo
from jobs.settings import QueueSettings
from jobs.worker_store import WorkerStore
now = datetime.now(UTC)
store = WorkerStore(QueueSettings(), "ahead", lambda: False)
store.beat(WorkerInfo("ahead", "cpu", now, now, ()))
"""
    service.start_worker()
    await service.ready()
    env = {**os.environ, "SAGAN_REDIS_URL": service.settings.redis_url, "SAGAN_NAMESPACE": "test"}
    env |= {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = ["faketime", "-f", "+3h", sys.executable, "-c", beat]
    await asyncio.to_thread(subprocess.run, command, env=env, timeout=60, check=True)
    with Redis.from_url(service.settings.redis_url) as redis:
        assert redis.zcard("test:workers") == 2
