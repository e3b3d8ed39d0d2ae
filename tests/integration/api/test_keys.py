"""Keys as records: made and revoked on the command line while the service runs, with what each may spend.

A worker shows signs of life and takes nothing: jobs wait. Two APIs stand for two processes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from redis import Redis
from typer.testing import CliRunner

from app.settings import Settings
from cli import app as command
from jobs.job import ModelInfo, WorkerInfo
from jobs.keys import Keys
from jobs.worker_store import WorkerStore

if TYPE_CHECKING:
    from tests.integration.api.conftest import ClientFactory

ENOUGH = 20  # seconds, in which whatever is waited for has come
JOB = {"count": 1, "model": "plain"}


@dataclass
class Keyed:
    """Two APIs of one service, and its command line."""

    first: httpx.AsyncClient
    second: httpx.AsyncClient
    redis_url: str
    namespace: str
    made: list[str] = field(default_factory=list)

    async def sagan(self, *arguments: str) -> str:
        """What `sagan keys` prints on standard output."""
        env = {"SAGAN_REDIS_URL": self.redis_url, "SAGAN_NAMESPACE": self.namespace}
        done = await asyncio.to_thread(CliRunner().invoke, command, ["keys", *arguments], env=env)
        assert done.exit_code == 0, done.output
        return done.stdout.strip()

    async def key(self, *options: str, owner: str = "alice") -> str:
        return await self.sagan("create", "--owner", owner, *options)

    async def order(self, key: str, **more: Any) -> httpx.Response:
        headers = {"X-API-Key": key, **more.pop("headers", {})}
        return await self.first.post("/generate/cat", json=JOB | more, headers=headers)

    async def refused(self, key: str) -> None:
        """Wait until both refuse the key."""
        async with asyncio.timeout(ENOUGH):
            for client in (self.first, self.second):
                while (await client.get("/jobs", headers={"X-API-Key": key})).status_code != 401:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)


@pytest.fixture
async def keyed(serve: ClientFactory, redis_url: str) -> AsyncIterator[Keyed]:
    settings = Settings(redis_url=redis_url, namespace=secrets.token_hex(4), worker_ttl=600)
    now = datetime.now(UTC)
    sleeper = WorkerStore(settings, "sleeper", lambda: False)
    model = ModelInfo("plain", "0" * 64, "float32", 32, ("cat", "dog"))
    sleeper.beat(WorkerInfo("sleeper", "cpu", now, now, (model,)))
    sleeper.close()
    terms: dict[str, Any] = {"namespace": settings.namespace, "worker_ttl": 600, "rate_limit": 10**6}
    terms |= {"max_queued": 10**5, "caller_share": 1.0, "max_priority": 7}
    async with serve(**terms) as first, serve(**terms) as second:
        yield Keyed(first, second, redis_url, settings.namespace)


def left(reply: httpx.Response, name: str) -> int:
    """What the answer says that is left until the minute's or the day's end."""
    assert re.search(rf'"{name}";q=\d+;w=\d+', reply.headers["ratelimit-policy"])
    found = re.search(rf'"{name}";r=(\d+);t=(\d+)', reply.headers["ratelimit"])
    assert found is not None
    assert 1 <= int(found[2]) <= 86400
    return int(found[1])


async def test_a_key_is_changed_for_another_under_load_and_none_that_is_valid_is_refused(
    keyed: Keyed,
) -> None:
    assert (await keyed.first.get("/jobs")).status_code == 200  # open: no key was ever made
    old = await keyed.key()
    using, going, answers = [old], True, list[int]()
    ordered: dict[str, set[str]] = {}

    async def load(client: httpx.AsyncClient) -> None:
        while going:
            key = using[-1]
            headers = {"X-API-Key": key}
            reply = await client.post("/generate/cat", json=JOB, headers=headers)
            answers.append(reply.status_code)
            ordered.setdefault(key, set()).add(reply.json().get("id", ""))
            answers.append((await client.get("/jobs", headers=headers)).status_code)

    async def so_many_more(jobs: int) -> None:
        target = len(ordered.get(using[-1], ())) + jobs
        while len(ordered.get(using[-1], ())) < target:
            await asyncio.sleep(0.01)
            assert not any(task.done() for task in loads)

    loads = [asyncio.create_task(load(client)) for client in (keyed.first, keyed.second) * 2]
    async with asyncio.timeout(60):
        await so_many_more(20)
        using.append(await keyed.key("--label", "the next one"))
        await so_many_more(20)  # every loop has the new key by now
        await keyed.sagan("revoke", old.split("_")[1])
        await keyed.refused(old)
        await so_many_more(20)
    going = False
    await asyncio.gather(*loads)
    assert set(answers) == {200, 202}
    new = {"X-API-Key": using[-1]}
    listed = (await keyed.second.get("/jobs", params={"limit": 100}, headers=new)).json()["jobs"]
    assert len(listed) >= 60
    for job in list(ordered[old])[:3]:  # ordered with the old key, read and cancelled with the new one
        assert (await keyed.first.get(f"/jobs/{job}", headers=new)).status_code == 200
        assert (await keyed.second.delete(f"/jobs/{job}", headers=new)).json()["state"] == "cancelled"
    assert (await keyed.second.get("/jobs")).status_code == 401
    states = {row["id"]: row["state"] for row in json.loads(await keyed.sagan("list", "--json"))}
    assert states == {old.split("_")[1]: "revoked", using[-1].split("_")[1]: "active"}


async def test_redis_has_no_secret_and_no_other_owner_a_look(keyed: Keyed) -> None:
    alice, bob = await keyed.key(), await keyed.key(owner="bob@example.com")
    admin = await keyed.key("--scopes", "generate,read,admin", owner="carol")
    job = (await keyed.order(alice)).json()["links"]["self"]
    assert (await keyed.first.get(job, headers={"X-API-Key": bob})).status_code == 404
    assert (await keyed.first.delete(job, headers={"X-API-Key": bob})).status_code == 404
    assert (await keyed.first.get(job, headers={"X-API-Key": admin})).json()["state"] == "queued"
    assert (await keyed.first.delete(job, headers={"X-API-Key": admin})).json()["state"] == "cancelled"
    assert (await keyed.first.get("/jobs", headers={"X-API-Key": admin})).json()["jobs"] == []
    with Redis.from_url(keyed.redis_url) as redis:
        kept = redis.hgetall(f"{keyed.namespace}:keys")
        dumped = repr(kept) + repr(list(redis.scan_iter(f"{keyed.namespace}:*")))
        assert len(kept) == 4  # three records, and how often they changed
    for key in (alice, bob, admin):
        assert key.rsplit("_", 1)[1] not in dumped


async def test_a_key_has_a_rate_and_a_ceiling_of_its_own(keyed: Keyed) -> None:
    slow, usual = await keyed.key("--rate", "2", "--priority", "3"), await keyed.key()
    if time.time() % 60 > 50:
        await asyncio.sleep(11)  # not across the turn of a minute
    first = await keyed.order(slow)
    assert (left(first, "minute"), first.json()["spec"]["priority"]) == (1, 3)
    assert '"minute";q=2;w=60' in first.headers["ratelimit-policy"]
    above = await keyed.order(slow, priority=4)
    assert (above.status_code, above.json()["type"]) == (403, "urn:sagan:problem:priority-too-high")
    assert (await keyed.order(slow)).status_code == 429
    assert left(await keyed.order(usual), "minute") == 10**6 - 1  # another count
    assert (await keyed.order(usual, priority=7)).status_code == 202


async def test_a_quota_of_images_holds_for_requests_at_once(keyed: Keyed) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(30):
            while time.time() % 86400 > 86400 - 20:  # noqa: ASYNC110  not across the turn of a day
                await asyncio.sleep(1)
    key = await keyed.key("--quota", "5")
    replies = await asyncio.gather(*(keyed.order(key) for _ in range(12)))
    taken = [reply for reply in replies if reply.status_code == 202]
    spent = [reply for reply in replies if reply.status_code == 429]
    assert (len(taken), len(spent)) == (5, 7)
    assert sorted(left(reply, "day") for reply in taken) == [0, 1, 2, 3, 4]
    for reply in spent:
        assert reply.json()["type"] == "urn:sagan:problem:quota-spent"
        assert left(reply, "day") == 0
        assert 1 <= int(reply.headers["retry-after"]) <= 86400
    key = await keyed.key("--quota", "3")
    same = {"Idempotency-Key": "same"}
    again = await asyncio.gather(*(keyed.order(key, headers=same, seed=1) for _ in range(6)))
    assert len({reply.json()["id"] for reply in again}) == 1  # charged once
    assert left(await keyed.order(key, headers={"Prefer": "wait=0"}), "day") == 1
    assert (await keyed.order(key, count=2)).status_code == 429
    never = await keyed.order(key, count=4)
    assert (never.status_code, never.json()["type"]) == (403, "urn:sagan:problem:quota-too-small")
    prompt = {"prompt": "cat, dog", "n": 2}  # two jobs, of which the first alone would fit
    headers = {"X-API-Key": key}
    beyond = await keyed.first.post("/v1/images/generations", json=prompt, headers=headers)
    assert (beyond.json()["error"]["code"], left(beyond, "day")) == ("quota_spent", 1)
    assert (await keyed.order(key, headers={"Prefer": "wait=1"})).status_code == 202
    assert (await keyed.order(key, headers=same, seed=1)).json()["id"] == again[0].json()["id"]
    with Redis.from_url(keyed.redis_url, decode_responses=True) as redis:
        counters = list(redis.scan_iter(Keys(keyed.namespace).quota(key.split("_")[1]) + "*"))
        assert [redis.get(counter) for counter in counters] == ["3"]
        assert 0 < redis.ttl(counters[0]) <= 2 * 86400
