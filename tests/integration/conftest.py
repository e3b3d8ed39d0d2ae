"""A private Redis, real worker processes, and tiny networks of random weights."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from time import monotonic

import anyio
import pytest
from redis import Redis

from jobs.client import JobClient
from jobs.job import Job, JobSpec, ModelInfo
from jobs.settings import QueueSettings
from jobs.wire import generate_list, generate_message
from serve.private_redis import PrivateRedis
from support import random_checkpoint

OWNER = "somebody"
CLASSES = ("cat", "dog", "ship")


class WorkerProcess:
    """A worker as `sagan worker` runs it, in a process of its own."""

    def __init__(self, settings: QueueSettings, checkpoints: Path, script: list[str], **env: str) -> None:
        self._log = checkpoints.parent / f"worker-{monotonic()}.log"
        self._env = {
            **os.environ,
            "SAGAN_REDIS_URL": settings.redis_url,
            "SAGAN_NAMESPACE": settings.namespace,
            "SAGAN_RESULT_TTL": str(settings.result_ttl),
            "SAGAN_RECORD_TTL": str(settings.record_ttl),
            "SAGAN_HEARTBEAT_PERIOD": str(settings.heartbeat_period),
            "SAGAN_WORKER_TTL": str(settings.worker_ttl),
            "SAGAN_CHECKPOINTS": str(checkpoints),
            "SAGAN_DEVICE": "cpu",
            "SAGAN_PRECISION": "float32",  # the same on any machine
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "SAGAN_THREADS": "1",
            **env,
        }
        self._command = [sys.executable, *script]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command, env=self._env, stdout=log, stderr=log, start_new_session=True
            )

    @property
    def output(self) -> str:
        return self._log.read_text()

    @property
    def returncode(self) -> int | None:
        return self._process.poll()

    def kill(self) -> None:
        """kill -9."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def stop(self, how: signal.Signals = signal.SIGTERM, seconds: float = 20.0) -> float:
        """End it in order; returns how many seconds that took."""
        began = monotonic()
        self._process.send_signal(how)
        self._process.wait(seconds)
        return monotonic() - began

    def wait(self, seconds: float) -> int:
        return self._process.wait(seconds)

    def close(self) -> None:
        if self._process.poll() is None:
            self.kill()


class Service:
    """Redis, its workers, and the store as the API holds it."""

    owner = OWNER

    def __init__(self, redis: PrivateRedis, settings: QueueSettings, checkpoints: Path) -> None:
        self.redis = redis
        self.settings = settings
        self.checkpoints = checkpoints
        self.store = JobClient.open(settings)
        self.workers: list[WorkerProcess] = []

    def start_worker(self, *script: str, **env: str) -> WorkerProcess:
        worker = WorkerProcess(self.settings, self.checkpoints, list(script or ("-m", "worker")), **env)
        self.workers.append(worker)
        return worker

    async def ready(self, workers: int = 1) -> ModelInfo:
        """Wait until so many workers are alive; their first model."""
        deadline = monotonic() + 60
        while len(found := await self.store.workers()) < workers:
            said = self.workers[-1].output if self.workers else ""
            assert not self.workers or self.workers[-1].returncode is None, said
            assert monotonic() < deadline, said
            await anyio.sleep(0.05)
        return found[-1].models[0]

    async def spec(self, **changes: object) -> JobSpec:
        """What to ask for: one image of a cat, by the model that is on disk."""
        values: dict[str, object] = {
            "model": "tiny",
            "model_hash": self.model_hash,
            "precision": "float32",
            "class_id": 0,
            "class_name": "cat",
            "count": 1,
            "seed": 7,
            "truncation": 1.0,
            "priority": 5,
        }
        return JobSpec(**{**values, **changes})  # type: ignore[arg-type]

    @property
    def model_hash(self) -> str:
        return hashlib.sha256((self.checkpoints / "tiny.safetensors").read_bytes()).hexdigest()

    async def generate(self, **changes: object) -> Job:
        """Record a job and queue it, as the API does."""
        job, new = await self.store.create(await self.spec(**changes), OWNER)
        assert new
        return job

    def lose_message(self, job: Job) -> None:
        """Take what was queued last off its list: the record stays."""
        with Redis.from_url(self.settings.redis_url) as redis:
            message = redis.lpop(generate_list(self.settings.namespace, job.spec.priority))
        assert job.id.encode() in message

    def queue_again(self, job: Job) -> None:
        """A second message for a job."""
        priority = job.spec.priority
        with Redis.from_url(self.settings.redis_url) as redis:
            redis.lpush(
                generate_list(self.settings.namespace, priority), generate_message(job.id, None, priority)
            )

    async def finished(self, jobs: list[Job], seconds: float = 60.0) -> list[Job]:
        """The jobs when all have ended."""
        deadline = monotonic() + seconds
        ended = [await self.store.finished(job.id, OWNER, max(0.0, deadline - monotonic())) for job in jobs]
        late = [job for job in ended if not job.ended]
        said = "\n".join(worker.output for worker in self.workers)
        assert not late, f"{len(late)} of {len(jobs)} jobs are not done\n{said}"
        return ended

    async def until(self, condition: Callable[[], Awaitable[bool]], seconds: float = 60.0) -> None:
        """Wait until something is so that nobody tells about."""
        with anyio.fail_after(seconds):
            while not await condition():  # noqa: ASYNC110
                await anyio.sleep(0.02)

    async def made(self, job: Job) -> int:
        """How many of a job's images are there."""
        return (await self.store.get(job.id, OWNER)).done

    async def has_ended(self, job: Job) -> bool:
        return (await self.store.get(job.id, OWNER)).ended

    async def ends(self, job: Job) -> int:
        """How many times a client was told that the job ended."""
        events = await self.store.events(job.id)
        return sum(event["state"] in ("succeeded", "failed", "cancelled") for _, event in events)

    async def close(self) -> None:
        for worker in self.workers:
            worker.close()
        await self.store.close()


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one tiny model."""
    folder = tmp_path_factory.mktemp("models") / "checkpoints"
    random_checkpoint(folder / "tiny.safetensors", CLASSES)
    return folder


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[PrivateRedis]:
    """A server of its own for each test: some tests kill it."""
    server = PrivateRedis(tmp_path / "redis")
    server.start()
    yield server
    server.stop()


@pytest.fixture
def settings(redis: PrivateRedis) -> QueueSettings:
    """Settings that lose patience sooner than those of a service."""
    return QueueSettings(redis_url=redis.url, namespace="test", heartbeat_period=0.4, worker_ttl=2.0)


@pytest.fixture(scope="session")
def shared(
    checkpoints: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[PrivateRedis, QueueSettings]]:
    """A server and a slow worker that the tests share which break neither."""
    redis = PrivateRedis(tmp_path_factory.mktemp("shared"))
    redis.start()
    settings = QueueSettings(redis_url=redis.url, namespace="shared", heartbeat_period=0.4, worker_ttl=2.0)
    script = str(Path(__file__).with_name("odd_worker.py"))
    worker = WorkerProcess(settings, checkpoints, [script], TEST_SLOW="0.05")
    yield redis, settings
    worker.close()
    redis.stop()


@pytest.fixture
async def running(shared: tuple[PrivateRedis, QueueSettings], checkpoints: Path) -> AsyncIterator[Service]:
    """Redis, a store and a worker that is ready; its forwards take 50 ms more than they need."""
    service = Service(*shared, checkpoints)
    await service.ready()
    yield service
    await service.close()


@pytest.fixture
async def service(redis: PrivateRedis, settings: QueueSettings, checkpoints: Path) -> AsyncIterator[Service]:
    """Redis and a store, without a worker yet."""
    service = Service(redis, settings, checkpoints)
    yield service
    await service.close()
