"""Redis by itself: its CPU a job, and the jobs a second that it manages."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from multiprocessing import get_context
from time import perf_counter
from typing import Annotated, Any, Final

import psutil
import typer
from redis import Redis

from benchmarks.scale_out.bed import FLIGHT, ROWS, Bed, cpu_seconds, sleeping_job, started
from jobs.job import new_job_id
from jobs.scripts import Call, NewJob, Scripts
from jobs.settings import QueueSettings

PNG: Final = os.urandom(9_000)  # as long as a 64-pixel image


def broker(jobs: Annotated[int, typer.Option(min=1000)] = 20_000, clients: int = 2) -> None:
    """Redis' CPU a job in each of our three scripts, and the jobs a second that it manages of each.

    Calls are pipelined by as many processes as `clients`, which do nothing else; BEGIN and SAVE come for 8
    jobs at once, as after a forward. The image is 9,000 bytes, and somebody waits for the answer.
    """
    typer.echo(f"{psutil.cpu_count()} cores, {clients} clients, {FLIGHT} calls in flight each")
    typer.echo("appendfsync  script    jobs/s  µs Redis a job  of these in the script  cores of Redis")
    for appendfsync in ("always", "everysec"):
        with started(appendfsync) as bed:
            ids = [new_job_id() for _ in range(jobs)]
            whole = 0.0
            for name, calls in (("CREATE", _creates), ("BEGIN", _begins), ("SAVE", _saves)):
                rate, spent, inside, cores = _put(bed, ids, calls, clients)
                whole += spent
                typer.echo(f"{appendfsync:11}  {name:6}{rate:10.0f}{spent:16.0f}{inside:24.0f}{cores:16.2f}")
            typer.echo(f"{appendfsync:11}  all   {'':10}{whole:16.0f}")


def _creates(settings: QueueSettings, ids: Sequence[str]) -> Iterator[Call[Any]]:
    for job_id in ids:
        yield Scripts(settings).create([NewJob(job_id, "somebody", sleeping_job(0.2), waiter="node")])


def _begins(settings: QueueSettings, ids: Sequence[str]) -> Iterator[Call[Any]]:
    before: Sequence[str] = ()
    for start in range(0, len(ids), ROWS):
        entering = ids[start : start + ROWS]
        yield Scripts(settings).begin("worker", entering, len(entering), before)
        before = entering


def _saves(settings: QueueSettings, ids: Sequence[str]) -> Iterator[Call[Any]]:
    for start in range(0, len(ids), ROWS):
        yield Scripts(settings).save([(one, 0, PNG) for one in ids[start : start + ROWS]])


Calls = Callable[[QueueSettings, Sequence[str]], Iterator[Call[Any]]]


def _put(bed: Bed, ids: Sequence[str], calls: Calls, clients: int) -> tuple[float, float, float, float]:
    """Jobs a second, µs of Redis' process a job, µs of it inside the script, cores that Redis kept busy."""
    context = get_context("fork")
    ready, go = context.Semaphore(0), context.Event()
    processes = [
        context.Process(target=_send, args=(bed.settings, ids[k::clients], calls, ready, go), daemon=True)
        for k in range(clients)
    ]
    for process in processes:
        process.start()
    for _ in processes:
        ready.acquire()
    bed.redis.config_resetstat()
    cpu, began = cpu_seconds([bed.redis_process]), perf_counter()
    go.set()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    took, cpu = perf_counter() - began, cpu_seconds([bed.redis_process]) - cpu
    inside = bed.redis.info("commandstats")["cmdstat_evalsha"]["usec"]
    return len(ids) / took, cpu / len(ids) * 1e6, inside / len(ids), cpu / took


def _send(settings: QueueSettings, ids: Sequence[str], calls: Calls, ready: Any, go: Any) -> None:
    """All calls, packed before the clock starts: the client must cost less than the server."""
    with Redis.from_url(settings.redis_url) as redis:
        connection: Any = redis.connection_pool.get_connection()
        load = cache(redis.script_load)
        commands = []
        for call in calls(settings, ids):
            load(call.in_full[1])
            commands.append(call.by_digest)
        batches = [commands[start : start + FLIGHT] for start in range(0, len(commands), FLIGHT)]
        packed = [(len(batch), b"".join(connection.pack_commands(batch))) for batch in batches]
        ready.release()
        go.wait()
        for count, data in packed:
            connection.send_packed_command([data])
            for _ in range(count):
                connection.read_response()
        redis.connection_pool.release(connection)
