"""A private Redis, real worker processes, and tiny networks of random weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic

import anyio
import pytest
from redis import Redis

from forked import WorkerProcess
from jobs.client import JobClient
from jobs.job import Job, JobSpec, ModelInfo, WorkerInfo
from jobs.settings import QueueSettings
from jobs.wire import broker_priority, generate_lists, generate_message, generate_queue, message_list
from networks import random_checkpoint
from serve.private_redis import PrivateRedis

OWNER = "somebody"
CLASSES = ("cat", "dog", "ship")
ODD = Path(__file__).with_name("odd_worker.py")


def environment(settings: QueueSettings, checkpoints: Path) -> dict[str, str]:
    """These settings as the environment of a worker."""
    told = {f"SAGAN_{name.upper()}": str(value) for name, value in settings if value is not None}
    return {**told, "SAGAN_CHECKPOINTS": str(checkpoints)}


class Service:
    """Redis, its workers, and the store as the API holds it."""

    owner = OWNER

    def __init__(self, redis: PrivateRedis, settings: QueueSettings, checkpoints: Path) -> None:
        self.redis = redis
        self.settings = settings
        self.checkpoints = checkpoints
        self.store = JobClient.open(settings)
        self.workers: list[WorkerProcess] = []

    def start_worker(self, script: Path | None = None, **env: str) -> WorkerProcess:
        """One more worker: `python -m worker`, or the script in its place."""
        log = self.checkpoints.parent / f"worker-{monotonic()}.log"
        worker = WorkerProcess(environment(self.settings, self.checkpoints) | env, log, script)
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
            [name] = [name for name in self.lists(job.spec) if redis.exists(name)]
            message = redis.lpop(name)
        assert job.id.encode() in message

    def lists(self, spec: JobSpec) -> list[str]:
        """The Redis lists that have the messages of such jobs, the first to be taken first."""
        return generate_lists(self.settings.namespace, generate_queue(spec.version))

    def messages(self, spec: JobSpec) -> list[str]:
        """Ids of the jobs whose messages wait, the first to be taken first."""
        with Redis.from_url(self.settings.redis_url) as redis:
            found: list[bytes] = []
            for name in self.lists(spec):
                found += reversed(redis.lrange(name, 0, -1))
        return [json.loads(message)["headers"]["id"] for message in found]

    def message(self, job: Job) -> str:
        """The message that was queued last, which is this job's."""
        with Redis.from_url(self.settings.redis_url) as redis:
            [name] = [name for name in self.lists(job.spec) if redis.exists(name)]
            found = redis.lindex(name, 0)
        assert job.id.encode() in found
        return str(found.decode())

    def queue_again(self, job: Job) -> None:
        """A second message for a job."""
        priority, queue = job.spec.priority, generate_queue(job.spec.version)
        with Redis.from_url(self.settings.redis_url) as redis:
            name = message_list(self.settings.namespace, queue, broker_priority(priority))
            redis.lpush(name, generate_message(job.id, None, priority, queue))

    async def finished(self, jobs: list[Job], seconds: float = 60.0) -> list[Job]:
        """The jobs when all have ended."""
        deadline = monotonic() + seconds
        ended = [await self.store.finished(job.id, OWNER, max(0.0, deadline - monotonic())) for job in jobs]
        late = [job for job in ended if not job.ended]
        said = "\n".join(worker.output for worker in self.workers)
        assert not late, f"{len(late)} of {len(jobs)} jobs are not done\n{said}"
        return ended

    async def until(self, condition: Callable[[], Awaitable[bool]], seconds: float = 60.0) -> None:
        """Poll until the condition holds. Raises TimeoutError."""
        with anyio.fail_after(seconds):
            while not await condition():  # noqa: ASYNC110
                await anyio.sleep(0.02)

    async def told(self) -> list[WorkerInfo]:
        """The workers, once each has told of all that it did before."""
        now = datetime.now(UTC)

        async def all_have() -> bool:
            return all(worker.beat_at > now for worker in await self.store.workers())

        await self.until(all_have)
        return await self.store.workers()

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
    """Short heartbeats: a dead worker is noticed within two seconds."""
    return QueueSettings(redis_url=redis.url, namespace="test", heartbeat_period=0.4, worker_ttl=2.0)


@pytest.fixture(scope="session")
def shared(
    checkpoints: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[PrivateRedis, QueueSettings]]:
    """One server and one slow worker for all tests that break neither."""
    redis = PrivateRedis(tmp_path_factory.mktemp("shared"))
    redis.start()
    settings = QueueSettings(redis_url=redis.url, namespace="shared", heartbeat_period=0.4, worker_ttl=2.0)
    env = environment(settings, checkpoints) | {"TEST_SLOW": "0.05"}
    worker = WorkerProcess(env, checkpoints.parent / "shared-worker.log", ODD)
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
