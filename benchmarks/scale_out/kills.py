"""Every job ends once, however often workers and Redis are killed meanwhile."""

from __future__ import annotations

from time import monotonic, sleep
from typing import Annotated

import numpy as np
import typer
import uvloop

from benchmarks.scale_out.bed import Bed, fill, started
from jobs.client import JobClient
from jobs.keys import Keys
from jobs.settings import QueueSettings


def kills(
    jobs: Annotated[int, typer.Option(min=100)] = 20_000,
    workers: Annotated[int, typer.Option(min=1)] = 3,
    worker_every: Annotated[float, typer.Option(help="Seconds between two kill -9 of a worker, mean")] = 2.5,
    redis_every: Annotated[float, typer.Option(help="Seconds between two kill -9 of Redis, mean")] = 12,
    patience: Annotated[float, typer.Option(help="Seconds in which all jobs must have ended")] = 600,
    seed: int = 0,
) -> None:
    """Kill workers and Redis again and again while jobs are made, a twentieth of them cancelled before.

    Exit 1 unless every job has ended, each told once, and each that was not cancelled has its image.
    """
    chance = np.random.default_rng(seed)
    with started() as bed:
        keys = Keys(bed.settings.namespace)
        fill(bed.settings, jobs, 0.02)
        ids = [name.decode().rsplit(":", 1)[1] for name in bed.redis.scan_iter(keys.job("*"), count=1000)]
        cancelled = set(chance.choice(ids, jobs // 20, replace=False).tolist())
        uvloop.run(_cancel(bed.settings, cancelled))
        bed.grow(workers)
        began = monotonic()
        killed = {"worker": 0, "redis": 0}
        due = {"worker": began + worker_every, "redis": began + redis_every}
        while bed.redis.exists(keys.open) and monotonic() - began < patience:
            sleep(0.1)
            if monotonic() > due["worker"]:
                bed.workers.pop(int(chance.integers(workers))).kill()
                bed.start_workers(workers)
                killed["worker"] += 1
                due["worker"] = monotonic() + worker_every * chance.uniform(0.5, 1.5)
            if monotonic() > due["redis"]:
                bed.server.kill()
                sleep(chance.uniform(0, 1))
                bed.server.start()
                killed["redis"] += 1
                due["redis"] = monotonic() + redis_every * chance.uniform(0.5, 1.5)
        took = monotonic() - began
        wrong = [one for one in ids if not _well_ended(bed, keys, one, one in cancelled)]
        again = (bed.folder / "workers.log").read_text().count("queued again")
    typer.echo(
        f"{jobs} jobs, {len(cancelled)} of them cancelled, {workers} workers, {took:.0f} s, seed {seed}: "
        f"{killed['worker']} workers and {killed['redis']} times Redis killed, {again} jobs queued again "
        f"by a sweeper, {len(wrong)} lost or told twice"
    )
    raise typer.Exit(bool(wrong))


async def _cancel(settings: QueueSettings, job_ids: set[str]) -> None:
    store = JobClient.open(settings)
    for job_id in job_ids:
        await store.cancel(job_id, "somebody")
    await store.close()


def _well_ended(bed: Bed, keys: Keys, job_id: str, cancelled: bool) -> bool:
    state = b"cancelled" if cancelled else b"succeeded"
    told = [event[b"state"] for _, event in bed.redis.xrange(keys.events(job_id))]
    images = bed.redis.hlen(keys.images(job_id))
    return bool(
        bed.redis.hget(keys.job(job_id), "state") == state
        and told.count(state) == 1
        and told[-1] == state
        and images == (not cancelled)
    )
