"""What the API says of a Redis that hangs, of workers that make nothing, and of more than it can answer."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

import httpx
import pytest

from app.settings import Settings
from jobs.job import ModelInfo, WorkerInfo
from jobs.worker_store import WorkerStore
from serve.private_redis import PrivateRedis

if TYPE_CHECKING:
    from tests.integration.api.conftest import ClientFactory

NOW = datetime.now(UTC)
WORKER = WorkerInfo("sleeper", "cpu", NOW, NOW, (ModelInfo("tiny", "0" * 64, "float32", 32, ("cat", "dog")),))


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[PrivateRedis]:
    server = PrivateRedis(tmp_path)
    server.start()
    yield server
    with contextlib.suppress(ProcessLookupError):
        os.kill(server.pid, signal.SIGCONT)
    server.stop()


@contextlib.contextmanager
def beats(settings: Settings, *workers: WorkerInfo) -> Iterator[None]:
    """These workers show signs of life."""
    store = WorkerStore(settings, "sleeper", lambda: False)
    for worker in workers:
        store.beat(worker)
    yield
    store.close()


@contextlib.asynccontextmanager
async def many(client: httpx.AsyncClient) -> AsyncIterator[httpx.AsyncClient]:
    """The same service for as many connections as are asked for."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(base_url=client.base_url, timeout=30, limits=limits) as wide:
        yield wide


async def status_of(client: httpx.AsyncClient, path: str) -> int:
    """The status of a GET on a connection of its own. httpx's pool takes seconds for hundreds of them."""
    url = client.base_url
    reader, writer = await asyncio.open_connection(url.host, url.port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: {url.host}\r\nConnection: close\r\n\r\n".encode())
    answer = await reader.read()
    writer.close()
    return int(answer.split(b" ", 2)[1])


async def timed(reply: asyncio.Task[httpx.Response]) -> tuple[int, float]:
    began = monotonic()
    return (await reply).status_code, monotonic() - began


async def test_while_redis_hangs_everything_is_answered_in_time(
    own_redis: PrivateRedis, serve: ClientFactory
) -> None:
    settings = Settings(redis_url=own_redis.url, namespace="hangs", worker_ttl=600)
    with beats(settings, WORKER):
        async with serve(redis_url=own_redis.url, namespace="hangs") as client, many(client) as wide:
            job = (await wide.post("/generate/0")).json()["id"]
            assert (await wide.get("/health/ready")).status_code == 200
            os.kill(own_redis.pid, signal.SIGSTOP)
            asked = {
                path: asyncio.create_task(timed(asyncio.create_task(wide.request(method, path))))
                for method, path in (
                    ("GET", "/health/ready"),
                    ("GET", "/models"),
                    ("GET", "/jobs"),
                    ("GET", f"/jobs/{job}"),
                    ("GET", f"/jobs/{job}/images/0"),
                    ("GET", f"/jobs/{job}/events"),
                    ("DELETE", f"/jobs/{job}"),
                    ("POST", "/generate/1"),
                    ("GET", "/metrics"),
                )
            }
            while not all(task.done() for task in asked.values()):
                began = monotonic()
                assert (await wide.get("/health/live")).status_code == 200
                assert monotonic() - began < 1, "the event loop was blocked"
                await asyncio.sleep(0.1)
            took = {path: await task for path, task in asked.items()}
            assert took["/health/ready"][0] == 503
            assert took["/health/ready"][1] < 2
            assert took.pop("/metrics")[0] == 200  # it says that the broker is down
            # /models may be answered from the last look at the heartbeats
            assert {status for path, (status, _) in took.items() if path != "/models"} == {503}
            assert max(seconds for _, seconds in took.values()) < 8
            os.kill(own_redis.pid, signal.SIGCONT)
            async with asyncio.timeout(10):
                while (await wide.get("/health/ready")).status_code != 200:  # noqa: ASYNC110
                    await asyncio.sleep(0.1)
            assert (await wide.get(f"/jobs/{job}")).json()["state"] == "queued"


@pytest.mark.parametrize(
    ("ill", "why"),
    [({"consuming": False}, "not connected"), ({"stuck": "the device is lost"}, "device is lost")],
)
async def test_it_is_ready_while_a_worker_takes_jobs_and_makes_images(
    redis_url: str, serve: ClientFactory, ill: dict[str, object], why: str
) -> None:
    settings = Settings(redis_url=redis_url, namespace=secrets.token_hex(4), worker_ttl=600)
    sick = replace(WORKER, id="sick", **ill)  # type: ignore[arg-type]
    with beats(settings, sick):
        async with serve(namespace=settings.namespace) as client:
            reply = await client.get("/health/ready")
            assert reply.status_code == 503
            assert why in reply.json()["detail"]
            assert int(reply.headers["retry-after"]) >= 1
    with beats(settings, sick, WORKER):
        async with serve(namespace=settings.namespace) as client:
            ready = await client.get("/health/ready")
            assert (ready.status_code, ready.json()["workers"]) == (200, 1)


async def test_five_hundred_reads_at_once_are_all_answered(slow_queue: httpx.AsyncClient) -> None:
    job = (await slow_queue.post("/generate/3")).json()["id"]
    paths = ("/jobs", f"/jobs/{job}", f"/jobs/{job}/images/0", "/metrics")
    told = await asyncio.gather(*(status_of(slow_queue, paths[i % len(paths)]) for i in range(500)))
    assert set(told) == {200, 409}  # 409: the image is not made yet
