"""What a job takes of Redis' memory and of a worker's time, by the store of its results.

    python -m benchmarks.results_memory --jobs 5000

A Redis of its own; the scripts that API and worker run, one after the other, without a network in between.
Each job has one image of 9,000 random bytes and is created, taken, begun and saved. "Kept" is the growth of
Redis' used_memory once all have ended, "then" what is left of it when the images have expired.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from time import perf_counter
from typing import Any

from redis import Redis

from jobs.job import JobSpec, new_job_id
from jobs.keys import Keys
from jobs.scripts import NewJob, Scripts
from jobs.settings import QueueSettings
from jobs.worker_store import WorkerStore
from serve.private_redis import PrivateRedis

SPEC = JobSpec("tiny", "0" * 64, "float32", 3, "cat", 1, 0, 1.0)
AT_ONCE = 100  # jobs in one call of a script
BATCH = 16  # images of a forward


@dataclass
class Found:
    """Of one store, a job."""

    waiting: float  # bytes of Redis
    kept: float
    then: float
    save: float  # seconds of WorkerStore.save


def measure(settings: QueueSettings, jobs: int) -> Found:
    keys, scripts = Keys(settings.namespace), Scripts(settings)
    store = WorkerStore(settings, "a-worker", lambda: False)
    redis: Any = Redis.from_url(settings.redis_url)

    def used() -> int:
        return int(redis.info("memory")["used_memory"])

    def make(count: int) -> tuple[list[str], float, int]:
        ids = [new_job_id() for _ in range(count)]
        for at in range(0, count, AT_ONCE):
            scripts.create([NewJob(one, "somebody", SPEC) for one in ids[at : at + AT_ONCE]]).run(redis)
        waiting = used()
        store.pop(SPEC.version, count)
        took = 0.0
        for at in range(0, count, BATCH):
            batch = ids[at : at + BATCH]
            store.begin(batch, len(batch), [])()
            images = [(one, 0, b"\x89PNG" + os.urandom(8_996)) for one in batch]
            began = perf_counter()
            store.save(images)
            took += perf_counter() - began
        return ids, took, waiting

    make(AT_ONCE)  # what is there once is there
    before = used()
    ids, took, waiting = make(jobs)
    kept = used()
    for one in ids:
        redis.delete(keys.images(one), keys.events(one))
    redis.delete(keys.expiring)
    then = used()
    store.close()
    redis.close()
    return Found((waiting - before) / jobs, (kept - before) / jobs, (then - before) / jobs, took / jobs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--jobs", type=int, default=5000)
    parser.add_argument("--rate", type=float, default=100.0, help="jobs a second, for the last column")
    asked = parser.parse_args()
    hour = f"{asked.rate:g} jobs/s for an hour"
    print(f"| store | waits, kB | kept, kB | then, kB | save, ms | {hour}, GB |\n|---|---|---|---|---|---|")  # noqa: T201
    for kind in ("redis", "file"):
        with tempfile.TemporaryDirectory() as folder:
            server = PrivateRedis(Path(folder) / "redis")
            server.start()
            settings = QueueSettings(
                redis_url=server.url,
                result_store="redis" if kind == "redis" else f"file://{folder}/results",
                max_queued=ceil(asked.jobs / 0.4),
                max_queued_images=10**9,
            )
            found = measure(settings, asked.jobs)
            server.stop()
        columns = (found.waiting / 1e3, found.kept / 1e3, found.then / 1e3, found.save * 1e3)
        total = asked.rate * 3600 * found.kept / 1e9
        print(f"| {kind} | " + " | ".join(f"{one:.2f}" for one in columns) + f" | {total:.2f} |")  # noqa: T201


if __name__ == "__main__":
    main()
