"""Images a second of several sleeping workers on one Redis."""

from __future__ import annotations

import statistics
from time import monotonic, sleep
from typing import Annotated

import psutil
import typer

from benchmarks.scale_out.bed import ROWS, Bed, cpu_seconds, fill, started


def workers(
    counts: Annotated[str, typer.Option(help="Workers, comma-separated, growing")] = "1,2,4,8",
    sleeps: Annotated[str, typer.Option(help="Milliseconds of a forward, comma-separated")] = "200,50,20,5",
    seconds: Annotated[float, typer.Option(help="How long a run lasts while workers are the limit")] = 8,
    most: Annotated[int, typer.Option(help="Jobs of a run at most")] = 4000,
    rounds: Annotated[int, typer.Option(min=1)] = 3,
    appendfsync: str = "always",
) -> None:
    """Images a second of some workers, and the CPU they take; medians of the rounds.

    The jobs are queued before, the workers suspended meanwhile; counted is from 15 to 85 % of them, so that
    neither the start nor the uneven end is in it. Workers are only ever added, so each round is on a Redis
    and workers of its own.
    """
    numbers = [int(count) for count in counts.split(",")]
    found: dict[tuple[float, int], list[tuple[float, float, float]]] = {}
    for _ in range(rounds):
        with started(appendfsync) as bed:
            for count in numbers:
                bed.grow(count)
                for ms in (float(each) for each in sleeps.split(",")):
                    jobs = min(most, round(seconds * count * ROWS / ms * 1e3))
                    found.setdefault((ms, count), []).append(_drain(bed, jobs, ms / 1e3))
    typer.echo(f"{psutil.cpu_count()} cores, appendfsync {appendfsync}, {ROWS} images a forward")
    typer.echo("ms a forward  workers  images/s  × of the first  of the ideal  Redis  a worker  CPU, all")
    for (ms, count), runs in sorted(found.items(), key=lambda row: (-row[0][0], row[0][1])):
        rate, redis, each = (statistics.median(column) for column in zip(*runs, strict=True))
        first = statistics.median(run[0] for run in found[ms, numbers[0]])
        ideal = count * ROWS / ms * 1e3
        typer.echo(
            f"{ms:12g}{count:9}{rate:10.0f}{rate / first:16.2f}{rate / ideal:14.2f}"
            f"{redis:7.2f}{each:10.2f}{redis + count * each:10.2f}"
        )
    typer.echo("CPU in cores: Redis' process, the mean worker's, and all of these together.")


def _drain(bed: Bed, jobs: int, seconds: float) -> tuple[float, float, float]:
    """Images a second, and cores that Redis and a worker kept busy, while the middle of the jobs is made."""
    before = bed.ended()
    processes = [psutil.Process(worker.pid) for worker in bed.workers]
    for process in processes:
        process.suspend()  # fast workers would empty the queue while it is filled
    fill(bed.settings, jobs, seconds)
    for process in processes:
        process.resume()
    marks = []
    for share in (0.15, 0.85):
        while (done := bed.ended() - before) < share * jobs:
            sleep(0.02)
        marks.append((monotonic(), done, cpu_seconds([bed.redis_process]), cpu_seconds(processes)))
    while bed.ended() - before < jobs:
        sleep(0.02)
    took, done, redis, each = (b - a for a, b in zip(*marks, strict=True))
    return done / took, redis / took, each / took / len(processes)
