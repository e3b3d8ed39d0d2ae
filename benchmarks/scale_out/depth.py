"""Submission, memory and priority while many jobs wait."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from contextlib import ExitStack
from time import perf_counter, sleep
from typing import Annotated

import numpy as np
import psutil
import typer
import uvloop

from benchmarks.scale_out.bed import ROOT, ROWS, Bed, fill, sleeping_job, started
from jobs.client import JobClient
from jobs.job import new_job_id
from jobs.keys import Keys
from jobs.scripts import NewJob
from jobs.worker_store import WorkerStore
from loadtest.client import Address, Client
from serve.private_redis import end, free_port
from worker.sweeper import FIRST


def depth(
    depths: Annotated[str, typer.Option(help="Jobs that wait, comma-separated, growing")] = "0,10000,100000",
    requests: Annotated[int, typer.Option(min=100)] = 500,
) -> None:
    """Time of a submission over HTTP while many jobs wait, and the cost of those jobs.

    A worker is alive; its forwards of 8 last a second, so that the depth hardly changes. `next`: the
    images made before that of a job of priority 9.
    """
    with started() as bed, ExitStack() as stack:
        port = free_port()
        command = [sys.executable, "-m", "cli", "api", "--port", str(port)]
        with (bed.folder / "api.log").open("wb") as log:
            api = subprocess.Popen(command, env=bed.env, cwd=ROOT, stdout=log, stderr=log)
        stack.callback(end, api, 10)
        bed.grow(1)
        # a worker takes no more jobs than its pace allows: let it learn that pace
        fill(bed.settings, ROWS, 1.0)
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
    """Seconds of each POST, one after the other."""
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
    """Milliseconds of a sweeper's usual pass, and of the full reading when a message is missing."""
    store = WorkerStore(bed.settings, "benchmark", lambda: False)
    began = perf_counter()
    in_hand = frozenset().union(*(worker.in_hand for worker in store.workers()))
    first = store.first(FIRST, store.holders().keys() | in_hand)
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
        new = NewJob(new_job_id(), "somebody", sleeping_job(1.0, priority=9))
        job, _ = await store.create_and_wait(new, 60)
        assert job.state == "succeeded", job
        await store.close()

    before = bed.ended()
    uvloop.run(urgent())
    return bed.ended() - before - 1
