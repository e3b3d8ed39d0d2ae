"""A private Redis with workers that sleep instead of making images."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from signal import SIGCONT
from time import sleep
from typing import Any, Final, NoReturn, cast

import numpy as np
import psutil
import uvloop
from numpy.typing import NDArray
from redis import Redis

from imaging.spec import ImageSpec
from jobs.client import JobClient
from jobs.job import JobSpec, ModelInfo
from jobs.keys import Keys
from jobs.settings import QueueSettings
from serve.private_redis import PrivateRedis, end

ROOT: Final = Path(__file__).parents[2]
ROWS: Final = 8  # images a forward
MODEL: Final = ModelInfo("sleeper", "0" * 64, "float32", 64, ("cat",))
FLIGHT: Final = 32  # calls at once


class Sleeper:
    """An engine whose forward lasts as many seconds as the truncation of its first image, and makes noise."""

    max_batch = ROWS
    lanes = 1
    device = "cpu"
    info = MODEL
    verifies_alone = False

    def __init__(self) -> None:
        self._pixels = np.random.default_rng(0).integers(0, 256, (ROWS, 64, 64, 3), np.uint8)

    def verify_batch_sizes(self) -> None:
        """Every size makes the same images."""

    def sample(self, specs: Sequence[ImageSpec]) -> NDArray[np.uint8]:
        sleep(specs[0].truncation)
        return self._pixels[: len(specs)]

    def attention(self, spec: ImageSpec, layer: str) -> NoReturn:
        raise NotImplementedError("no job of this bed asks for maps")


def run_sleeper() -> int:
    """Run one worker that sleeps; its exit code."""
    from worker.engine import Engine
    from worker.main import run_worker
    from worker.pending import BatchEngine
    from worker.settings import WorkerSettings

    engine: BatchEngine = Sleeper()  # type-checked: a stale Sleeper kills its worker's device thread
    return run_worker(WorkerSettings(), lambda _: lambda path: cast(Engine, engine))


class Bed:
    """A private Redis, and the sleeping workers on it."""

    def __init__(self, folder: Path, appendfsync: str = "always") -> None:
        self.folder = folder
        self.server = PrivateRedis(folder / "redis", appendfsync=appendfsync)
        self.server.start()
        models = folder / "models"
        models.mkdir(parents=True)
        (models / "sleeper.safetensors").touch()
        many: dict[str, Any] = {"max_queued": 10**9, "max_queued_images": 10**9, "caller_share": 1.0}
        self.settings = QueueSettings(redis_url=self.server.url, **many)
        self.redis: Any = Redis.from_url(self.server.url)
        self.redis_process = _child("redis", "valkey")
        self.workers: list[subprocess.Popen[bytes]] = []
        self.env = {
            **os.environ,
            "SAGAN_REDIS_URL": self.server.url,
            "SAGAN_CHECKPOINTS": str(models),
            **{f"SAGAN_{name.upper()}": str(value) for name, value in many.items()},
            "OMP_NUM_THREADS": "1",
        }

    def start_workers(self, workers: int) -> None:
        """Start workers up to the number `workers`."""
        while len(self.workers) < workers:
            self.start_worker([sys.executable, "-m", "benchmarks.scale_out", "sleeper"])

    def start_worker(self, command: Sequence[str], **env: str) -> subprocess.Popen[bytes]:
        """Start one more. env: beside the bed's."""
        with (self.folder / "workers.log").open("ab") as log:
            worker = subprocess.Popen(command, env=self.env | env, cwd=ROOT, stdout=log, stderr=log)
        self.workers.append(worker)
        return worker

    def grow(self, workers: int) -> None:
        """Start workers up to the number `workers`, and wait for the first heartbeat of each."""
        self.start_workers(workers)
        for worker in self.workers:
            self.wait_for(worker)

    def wait_for(self, worker: subprocess.Popen[bytes]) -> None:
        """Wait for the first heartbeat of a worker."""
        names = Keys(self.settings.namespace).workers
        while not any(f":{worker.pid}:".encode() in name for name in self.redis.zrange(names, 0, -1)):
            assert worker.poll() is None, "a worker died"
            sleep(0.1)

    def ended(self) -> int:
        """Jobs that have succeeded so far."""
        return int(self.redis.hget(Keys(self.settings.namespace).ended, "succeeded") or 0)

    def close(self) -> None:
        for worker in self.workers:
            worker.send_signal(SIGCONT)  # one that a benchmark stopped
            worker.terminate()
        for worker in self.workers:
            end(worker, 20)
        self.server.stop()


@contextmanager
def started(appendfsync: str = "always") -> Iterator[Bed]:
    with tempfile.TemporaryDirectory() as folder:
        bed = Bed(Path(folder), appendfsync)
        try:
            yield bed
        finally:
            bed.close()


def _child(*names: str) -> psutil.Process:
    return next(p for p in psutil.Process().children() if any(name in p.name() for name in names))


def cpu_seconds(processes: Sequence[psutil.Process]) -> float:
    """Seconds of CPU of the processes so far, user and system."""
    times = [process.cpu_times() for process in processes]
    return float(sum(one.user + one.system for one in times))


def sleeping_job(seconds: float, seed: int = 0, priority: int = 5) -> JobSpec:
    return JobSpec("sleeper", "0" * 64, "float32", 0, "cat", 1, seed, seconds, priority)


def fill(settings: QueueSettings, jobs: int, seconds: float) -> None:
    """Queue jobs of one image as the API does; a forward of them lasts `seconds`."""

    async def fill_all() -> None:
        store = JobClient.open(settings)
        seeds = iter(range(jobs))

        async def some() -> None:
            for seed in seeds:
                await store.create(sleeping_job(seconds, seed), "somebody")

        await asyncio.gather(*(some() for _ in range(FLIGHT)))
        await store.close()

    uvloop.run(fill_all())
