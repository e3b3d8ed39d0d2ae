"""The API as a client meets it: uvicorn, a real Redis, a real worker process."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
import redis as redis_client
import uvicorn

from app.main import create_app
from app.settings import Settings
from forked import WorkerProcess
from jobs.client import JobClient
from jobs.job import AttentionSite, ModelInfo, WorkerInfo
from jobs.worker_store import WorkerStore
from networks import random_checkpoint
from serve.private_redis import PrivateRedis

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

BEAT = 0.4  # seconds
ClientFactory = Callable[..., AbstractAsyncContextManager[httpx.AsyncClient]]
Told = Callable[[], Awaitable[None]]
MapsMade = Callable[[], Awaitable[int]]


@pytest.fixture(scope="session")
def two_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model that attends at two sites, and one that does not."""
    folder = tmp_path_factory.mktemp("api") / "checkpoints"
    random_checkpoint(folder / "attentive.safetensors", CIFAR10, attention=(8, 16), seed=1)
    random_checkpoint(folder / "plain.safetensors", CIFAR10, attention=(), seed=2)
    return folder


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One server for all tests of this folder: none of them stops it."""
    server = PrivateRedis(tmp_path_factory.mktemp("api-redis"))
    server.start()
    yield server.url
    server.stop()


@pytest.fixture(scope="session")
def worker(redis_url: str, two_models: Path) -> Iterator[WorkerProcess]:
    """One worker for all tests that need one, in namespace "sagan"."""
    env = {
        "SAGAN_REDIS_URL": redis_url,
        "SAGAN_CHECKPOINTS": str(two_models),
        "SAGAN_HEARTBEAT_PERIOD": str(BEAT),
    }
    worker = WorkerProcess(env, two_models.parent / "worker.log")
    with redis_client.Redis.from_url(redis_url) as redis:
        deadline = time.monotonic() + 60
        while not redis.zcard("sagan:workers"):
            assert worker.returncode is None, worker.output
            assert time.monotonic() < deadline, worker.output
            time.sleep(0.05)
    yield worker
    worker.stop()


@pytest.fixture
def told(redis_url: str, worker: object) -> Told:
    """`await told()`: the API knows all that the worker did before."""

    async def told() -> None:
        now = datetime.now(UTC) + timedelta(seconds=0.1)  # a lane counts a call just after it has answered
        store = JobClient.open(Settings(redis_url=redis_url, heartbeat_period=BEAT))
        async with asyncio.timeout(20):
            while (await store.workers())[0].beat_at <= now:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        await store.close()
        # the API goes by what it has read for half a beat, and may have been reading when the beat came
        await asyncio.sleep(BEAT)

    return told


@pytest.fixture
def maps_made(redis_url: str, worker: object) -> MapsMade:
    """`await maps_made()`: attention maps of the worker so far, as it has told."""

    async def maps_made() -> int:
        store = JobClient.open(Settings(redis_url=redis_url, heartbeat_period=BEAT))
        workers = await store.workers()
        await store.close()
        return sum(stats.attention_maps for info in workers for stats in info.stats.values())

    return maps_made


@contextlib.contextmanager
def _running(settings: Settings) -> Iterator[str]:
    """The API in uvicorn, on a thread of its own; its URL."""
    server = uvicorn.Server(
        uvicorn.Config(create_app(settings), log_level="warning", lifespan="on", ws="none")
    )
    with socket.create_server(("127.0.0.1", 0)) as listening:
        serving = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        serving.start()
        while not server.started:
            assert serving.is_alive(), "the API did not start"
            time.sleep(0.01)
        host, port = listening.getsockname()
        try:
            yield f"http://{host}:{port}"
        finally:
            server.should_exit = True
            serving.join()


@pytest.fixture
def serve(redis_url: str) -> ClientFactory:
    """The one client factory: `async with serve(max_wait=5) as client`, settings of the API by name."""

    @contextlib.asynccontextmanager
    async def factory(**changes: object) -> AsyncIterator[httpx.AsyncClient]:
        settings = Settings(**{"redis_url": redis_url, "heartbeat_period": BEAT, **changes})  # type: ignore[arg-type]
        with _running(settings) as url:
            async with httpx.AsyncClient(base_url=url, timeout=60) as client:
                yield client

    return factory


@pytest.fixture(scope="session")
def usual_api(redis_url: str, worker: object) -> Iterator[str]:
    """The API with its defaults and a worker, for all tests that change neither."""
    with _running(Settings(redis_url=redis_url, heartbeat_period=BEAT)) as url:
        yield url


@pytest.fixture(scope="session")
def documented_api(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The API with one model called cifar10, as the scripts of docs/api.md ask for."""
    folder = tmp_path_factory.mktemp("documented") / "checkpoints"
    random_checkpoint(folder / "cifar10.safetensors", CIFAR10, attention=(16,), seed=3)
    settings = Settings(redis_url=redis_url, heartbeat_period=BEAT, namespace="documented")
    env = {
        "SAGAN_REDIS_URL": redis_url,
        "SAGAN_NAMESPACE": settings.namespace,
        "SAGAN_CHECKPOINTS": str(folder),
        "SAGAN_HEARTBEAT_PERIOD": str(BEAT),
    }
    worker = WorkerProcess(env, folder.parent / "worker.log")
    with _running(settings) as url:
        deadline = time.monotonic() + 60
        while httpx.get(f"{url}/health/ready").is_error:
            assert worker.returncode is None, worker.output
            assert time.monotonic() < deadline, worker.output
            time.sleep(0.1)
        yield url
    worker.stop()


@pytest.fixture
async def client(usual_api: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the API with a worker behind it."""
    async with httpx.AsyncClient(base_url=usual_api, timeout=60) as client:
        yield client


@pytest.fixture
async def idle(serve: ClientFactory) -> AsyncIterator[httpx.AsyncClient]:
    """The API without a worker, in a namespace of its own."""
    async with serve(namespace="idle") as client:
        yield client


@contextlib.asynccontextmanager
async def _sleeping(
    serve: ClientFactory, redis_url: str, **changes: object
) -> AsyncIterator[httpx.AsyncClient]:
    """The API with a worker that shows signs of life and takes nothing, in a namespace of its own."""
    settings = Settings(
        **{"redis_url": redis_url, "namespace": secrets.token_hex(4), "worker_ttl": 600, **changes}  # type: ignore[arg-type]
    )
    now = datetime.now(UTC)
    model = ModelInfo("attentive", "0" * 64, "float32", 32, CIFAR10, (AttentionSite("16x16", 16, 0.5),))
    sleeper = WorkerStore(settings, "sleeper", lambda: False)
    sleeper.beat(WorkerInfo("sleeper", "cpu", now, now, (model,)))
    sleeper.close()
    async with serve(namespace=settings.namespace, **changes) as client:
        yield client


@pytest.fixture
async def slow_queue(serve: ClientFactory, redis_url: str) -> AsyncIterator[httpx.AsyncClient]:
    """Jobs wait for ever; eight at most."""
    async with _sleeping(serve, redis_url, max_queued=8, caller_share=1.0) as client:
        yield client


@pytest.fixture
async def expiring(serve: ClientFactory, redis_url: str) -> AsyncIterator[httpx.AsyncClient]:
    """Images live for a second after their job's end."""
    async with _sleeping(serve, redis_url, result_ttl=1, record_ttl=60) as client:
        yield client
