"""How far the queue alone carries: workers that sleep instead of making images, and Redis by itself.

    python -m benchmarks.scale_out workers [--rounds 3]     throughput of 1, 2, 4 and 8 workers
    python -m benchmarks.scale_out broker                   what Redis spends on a job, and its ceiling
    python -m benchmarks.scale_out depth                    submission, memory and priority at a depth
    python -m benchmarks.scale_out faults                   what becomes of jobs while much is killed

Each starts a Redis of its own. A sleeping worker is `sagan worker` in all but its engine.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from time import monotonic, perf_counter, sleep
from typing import Annotated, Any, Final, cast

import numpy as np
import psutil
import typer
import uvloop
from numpy.typing import NDArray
from redis import Redis

from imaging.spec import ImageSpec
from jobs.client import JobClient
from jobs.job import JobSpec, ModelInfo, new_job_id
from jobs.keys import Keys
from jobs.scripts import Call, NewJob, Scripts
from jobs.settings import QueueSettings
from jobs.worker_store import WorkerStore
from loadtest.client import Address, Client
from serve.private_redis import PrivateRedis, end, free_port
from worker.settings import WorkerSettings
from worker.sweeper import FIRST

ROOT: Final = Path(__file__).parent.parent
ROWS: Final = 8  # images a forward
MODEL: Final = ModelInfo("sleeper", "0" * 64, "float32", 64, ("cat",))
PNG: Final = os.urandom(9_000)  # as long as a 64-pixel image
FLIGHT: Final = 32  # calls at once

app = typer.Typer(pretty_exceptions_enable=False, no_args_is_help=True)


class Sleeper:
    """An engine for the queue's sake: a forward lasts as many seconds as the truncation of its first job."""

    max_batch = ROWS
    lanes = 1
    device = "cpu"
    info = MODEL

    def __init__(self) -> None:
        self._pixels = np.random.default_rng(0).integers(0, 256, (ROWS, 64, 64, 3), np.uint8)

    def verify_batch_sizes(self) -> None:
        """There is nothing to try."""

    def sample(self, specs: Sequence[ImageSpec]) -> NDArray[np.uint8]:
        sleep(specs[0].truncation)
        return self._pixels[: len(specs)]


@app.command(hidden=True)
def sleeper() -> None:
    """One worker that sleeps; the commands below start it."""
    from worker.engine import Engine
    from worker.main import run_worker

    raise typer.Exit(
        run_worker(WorkerSettings(), lambda _: cast(Mapping[str, Engine], {"sleeper": Sleeper()}))
    )


class Bed:
    """A private Redis, and the sleeping workers on it."""

    def __init__(self, folder: Path, appendfsync: str = "always") -> None:
        self.folder = folder
        self.server = PrivateRedis(folder / "redis", appendfsync=appendfsync)
        self.server.start()
        self.settings = QueueSettings(redis_url=self.server.url, max_queued=10**9)
        self.redis: Any = Redis.from_url(self.server.url)
        self.redis_process = _child("redis", "valkey")
        self.workers: list[subprocess.Popen[bytes]] = []
        self.env = {
            **os.environ,
            "SAGAN_REDIS_URL": self.server.url,
            "SAGAN_MAX_QUEUED": str(10**9),
            "OMP_NUM_THREADS": "1",
        }

    def start_workers(self, workers: int) -> None:
        """Start workers until there are so many."""
        with (self.folder / "workers.log").open("ab") as log:
            while len(self.workers) < workers:
                command = [sys.executable, __file__, "sleeper"]
                self.workers.append(subprocess.Popen(command, env=self.env, stdout=log, stderr=log))

    def grow(self, workers: int) -> None:
        """Start workers until there are so many, and wait for the signs of life of all."""
        self.start_workers(workers)
        while self.redis.zcard(Keys(self.settings.namespace).workers) < workers:
            assert all(worker.poll() is None for worker in self.workers), "a worker died"
            sleep(0.1)

    def ended(self) -> int:
        """Jobs that have succeeded so far."""
        return int(self.redis.hget(Keys(self.settings.namespace).ended, "succeeded") or 0)

    def close(self) -> None:
        for worker in self.workers:
            worker.terminate()
        for worker in self.workers:
            end(worker, 20)
        self.server.stop()


@contextmanager
def _bed(appendfsync: str = "always") -> Iterator[Bed]:
    with tempfile.TemporaryDirectory() as folder:
        bed = Bed(Path(folder), appendfsync)
        try:
            yield bed
        finally:
            bed.close()


def _child(*names: str) -> psutil.Process:
    return next(p for p in psutil.Process().children() if any(name in p.name() for name in names))


def _cpu(processes: Sequence[psutil.Process]) -> float:
    """Seconds of CPU that they took so far, user and system."""
    times = [process.cpu_times() for process in processes]
    return float(sum(one.user + one.system for one in times))


def _job(seconds: float, seed: int = 0, priority: int = 5) -> JobSpec:
    return JobSpec("sleeper", "0" * 64, "float32", 0, "cat", 1, seed, seconds, priority)


def fill(settings: QueueSettings, jobs: int, seconds: float) -> None:
    """Queue jobs of one image as the API does; a forward of them lasts `seconds`."""

    async def fill_all() -> None:
        store = JobClient.open(settings)
        seeds = iter(range(jobs))

        async def some() -> None:
            for seed in seeds:
                await store.create(_job(seconds, seed), "somebody")

        await asyncio.gather(*(some() for _ in range(FLIGHT)))
        await store.close()

    uvloop.run(fill_all())


@app.command()
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
        with _bed(appendfsync) as bed:
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
        process.suspend()  # some are faster than whoever fills the queue
    fill(bed.settings, jobs, seconds)
    for process in processes:
        process.resume()
    marks = []
    for share in (0.15, 0.85):
        while (done := bed.ended() - before) < share * jobs:
            sleep(0.02)
        marks.append((monotonic(), done, _cpu([bed.redis_process]), _cpu(processes)))
    while bed.ended() - before < jobs:
        sleep(0.02)
    took, done, redis, each = (b - a for a, b in zip(*marks, strict=True))
    return done / took, redis / took, each / took / len(processes)


@app.command()
def broker(jobs: Annotated[int, typer.Option(min=1000)] = 20_000, clients: int = 2) -> None:
    """Redis' CPU a job in each of our three scripts, and the jobs a second that it manages of each.

    Calls are pipelined by as many processes as `clients`, which do nothing else; BEGIN and SAVE come for 8
    jobs at once, as after a forward. The image is 9,000 bytes, and somebody waits for the answer.
    """
    typer.echo(f"{psutil.cpu_count()} cores, {clients} clients, {FLIGHT} calls in flight each")
    typer.echo("appendfsync  script    jobs/s  µs Redis a job  of these in the script  cores of Redis")
    for appendfsync in ("always", "everysec"):
        with _bed(appendfsync) as bed:
            ids = [new_job_id() for _ in range(jobs)]
            whole = 0.0
            for name, calls in (("CREATE", _creates), ("BEGIN", _begins), ("SAVE", _saves)):
                rate, spent, inside, cores = _put(bed, ids, calls, clients)
                whole += spent
                typer.echo(f"{appendfsync:11}  {name:6}{rate:10.0f}{spent:16.0f}{inside:24.0f}{cores:16.2f}")
            typer.echo(f"{appendfsync:11}  all   {'':10}{whole:16.0f}")


def _creates(settings: QueueSettings, ids: Sequence[str]) -> Iterator[Call[Any]]:
    for job_id in ids:
        yield Scripts(settings).create([NewJob(job_id, "somebody", _job(0.2), waiter="node")])


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
    cpu, began = _cpu([bed.redis_process]), perf_counter()
    go.set()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    took, cpu = perf_counter() - began, _cpu([bed.redis_process]) - cpu
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


@app.command()
def depth(
    depths: Annotated[str, typer.Option(help="Jobs that wait, comma-separated, growing")] = "0,10000,100000",
    requests: Annotated[int, typer.Option(min=100)] = 500,
) -> None:
    """What a submission takes at a depth, in HTTP to the API's process; and what the depth costs.

    A worker is alive; its forwards of 8 last a second, so that the queue stays as deep as it is. `next`: how
    many images came before that of a job of priority 9.
    """
    with _bed() as bed, ExitStack() as stack:
        port = free_port()
        command = [sys.executable, "-m", "cli", "api", "--port", str(port)]
        with (bed.folder / "api.log").open("wb") as log:
            api = subprocess.Popen(command, env=bed.env, cwd=ROOT, stdout=log, stderr=log)
        stack.callback(end, api, 10)
        bed.grow(1)
        fill(
            bed.settings, ROWS, 1.0
        )  # the worker learns its pace, by which it takes no more than it can make
        while bed.ended() < ROWS:
            sleep(0.1)
        client = Client(Address("127.0.0.1", port, secure=False, path=""))
        typer.echo("    depth  p50 ms  p99 ms  ratio  API MB  Redis MB  B a job  pass ms  all ms   next")
        first: tuple[float, float] | None = None
        for wanted in (int(each) for each in depths.split(",")):
            while (missing := wanted - _waiting(bed)) > 0:
                fill(bed.settings, missing, 1.0)
            took = np.percentile(uvloop.run(_submit(client, requests)), (50, 99)) * 1e3
            client.close()
            memory, waits = bed.redis.info("memory")["used_memory"], max(1, _waiting(bed))
            first = first or (took[0], memory)
            each = (memory - first[1]) / waits
            usual, whole = _sweep(bed)
            rss = psutil.Process(api.pid).memory_info().rss
            typer.echo(
                f"{wanted:9}{took[0]:8.2f}{took[1]:8.2f}{took[0] / first[0]:7.2f}{rss / 1e6:8.1f}"
                f"{memory / 1e6:10.1f}{each:9.0f}{usual:9.1f}{whole:8.0f}{_before_the_urgent(bed):7}"
            )


def _waiting(bed: Bed) -> int:
    return int(bed.redis.zcard(Keys(bed.settings.namespace).queued))


async def _submit(client: Client, requests: int) -> list[float]:
    """Seconds of each of so many POSTs, one after the other."""
    headers = {"Content-Type": "application/json"}
    asked = client.request("POST", "/generate/0", headers, b'{"truncation": 1.0}')
    took = []
    for number in range(requests + 20):  # the first ones open connections and load code
        began = perf_counter()
        while True:
            try:
                status, body = await client.ask(asked, 10)
                break
            except ConnectionRefusedError:  # it is still starting
                await asyncio.sleep(0.1)
        assert status == 202, (status, body)
        if number >= 20:
            took.append(perf_counter() - began)
    client.close()
    return took


def _sweep(bed: Bed) -> tuple[float, float]:
    """Milliseconds of what a sweeper's pass reads, and of the full reading when a message is missing."""
    store = WorkerStore(bed.settings, "benchmark", lambda: False)
    began = perf_counter()
    in_hand = store.in_hand()
    first = store.first(FIRST, store.holders().keys() | frozenset().union(*in_hand.values()))
    store.without_message(first, most=2 * FIRST)
    usual = perf_counter() - began
    began = perf_counter()
    store.without_message({new_job_id()})
    whole = perf_counter() - began
    store.close()
    return usual * 1e3, whole * 1e3


def _before_the_urgent(bed: Bed) -> int:
    """Images that were made between the submission of a job of priority 9 and its end, its own left out."""

    async def urgent() -> None:
        store = JobClient.open(bed.settings)
        job_id = new_job_id()
        job, _ = await store.create_and_wait(job_id, _job(1.0, priority=9), "somebody", 60)
        assert job.state == "succeeded", job
        await store.close()

    before = bed.ended()
    uvloop.run(urgent())
    return bed.ended() - before - 1


@app.command()
def faults(
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
    with _bed() as bed:
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


if __name__ == "__main__":
    app()
