"""A Redis that answers and takes no orders: after a failover, without replicas, without rights, full."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio
import pytest
from redis import Redis

from jobs.errors import BrokerUnavailable

if TYPE_CHECKING:
    from tests.integration.conftest import Service

# what makes Redis refuse, and what ends it
REFUSALS = {
    "READONLY": (("REPLICAOF", "127.0.0.1", "1"), ("REPLICAOF", "NO", "ONE")),
    "NOREPLICAS": (
        ("CONFIG", "SET", "min-replicas-to-write", "1"),
        ("CONFIG", "SET", "min-replicas-to-write", "0"),
    ),
    "OOM": (("CONFIG", "SET", "maxmemory", "1"), ("CONFIG", "SET", "maxmemory", "1gb")),
    "NOPERM": (
        ("ACL", "SETUSER", "default", "-@write", "-@scripting"),
        ("ACL", "SETUSER", "default", "+@all"),
    ),
}


@pytest.mark.parametrize("code", REFUSALS)
async def test_a_worker_and_the_api_wait_until_redis_takes_orders_again(service: Service, code: str) -> None:
    begin, end = REFUSALS[code]
    worker = service.start_worker()
    await service.ready()
    jobs = [await service.generate(seed=seed, count=8) for seed in range(30)]
    redis: Any = Redis.from_url(service.settings.redis_url)
    with redis:
        redis.execute_command(*begin)
        with pytest.raises(BrokerUnavailable, match="full" if code == "OOM" else code):
            await service.generate(seed=99)
        await anyio.sleep(3)  # heartbeats, acknowledgements and looks for jobs meet the refusal
        assert worker.returncode is None, worker.output
        redis.execute_command(*end)
        for job in await service.finished(jobs, seconds=30):
            assert job.state == "succeeded", job.error
            assert await service.ends(job) == 1
        [last] = await service.finished([await service.generate(seed=100)], seconds=30)
        assert last.state == "succeeded"
        assert code in worker.output  # the log says what it waited for
        assert "Traceback" not in worker.output, worker.output

        async def all_is_acknowledged() -> bool:
            return not any(redis.hlen(key) for key in redis.scan_iter("test:celery:unacked"))

        await service.until(all_is_acknowledged, seconds=20)
