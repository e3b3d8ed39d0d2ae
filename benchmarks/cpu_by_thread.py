"""CPU time of an image by thread of the service, for single images under load.

    python -m benchmarks.cpu_by_thread images [--engine plain|own] [--clients 1,8,32] [--seconds 6]

`sagan serve` on the peers' network, with the plain engine or its own. Milliseconds of CPU an image, as
Linux's scheduler counts them for each thread; the worker names its threads to the system here.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import statistics
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import psutil
import typer
import uvloop

from benchmarks import machine
from benchmarks.peers.__main__ import target
from benchmarks.peers.network import write_checkpoint
from benchmarks.service import ready
from loadtest.client import Client
from loadtest.load import GOOD, Clients, measure
from serve.private_redis import end, free_port

PARTS = {
    "device": "forwards",
    "writer": "PNG and store",
    "MainThread": "Celery's consumer",
    "others": "the worker's other threads",
    "API": "API",
    "Redis": "Redis",
    "load": "load generator",
}
PR_SET_NAME = 15  # prctl's option
MODULE = "benchmarks.cpu_by_thread"

app = typer.Typer(add_completion=False)


@app.command(hidden=True)
def worker(engine: str) -> None:
    """The worker, its threads named."""
    run = threading.Thread.run

    def named(thread: threading.Thread) -> None:
        ctypes.CDLL(None).prctl(PR_SET_NAME, thread.name.encode()[:15], 0, 0, 0)
        run(thread)

    threading.Thread.run = named  # type: ignore[method-assign,assignment]
    ctypes.CDLL(None).prctl(PR_SET_NAME, b"MainThread", 0, 0, 0)
    from benchmarks.peers.plain_worker import plain_loader
    from worker.main import run_worker
    from worker.models import EngineLoader
    from worker.settings import WorkerSettings

    raise typer.Exit(run_worker(WorkerSettings(), plain_loader if engine == "plain" else EngineLoader))


@app.command(hidden=True)
def serve(port: int, engine: str) -> None:
    """The service with that worker."""
    from serve.supervisor import run

    raise typer.Exit(run(port, worker_command=[sys.executable, "-m", MODULE, "worker", engine]))


@app.command()
def images(
    engine: Annotated[str, typer.Option(help='"plain", as in every peer, or "own"')] = "plain",
    clients: Annotated[str, typer.Option(help="Comma-separated")] = "1,8,32",
    seconds: Annotated[float, typer.Option(min=1)] = 6,
    rounds: Annotated[int, typer.Option(min=1)] = 3,
) -> None:
    """Print the table."""
    typer.echo(f"{os.cpu_count()} cores; other processes keep {machine.neighbours():.2f} of them busy")
    counts = [int(count) for count in clients.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(Path(folder))
        port = free_port()
        process = subprocess.Popen(
            [sys.executable, "-m", MODULE, "serve", str(port), engine],
            env={**os.environ, "SAGAN_CHECKPOINTS": folder, "SAGAN_STATE_DIR": f"{folder}/state"},
            cwd=Path(__file__).parent.parent,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                found = runner.run(_measure(process, port, counts, seconds, rounds))
        finally:
            end(process, 40)
    typer.echo(
        "\n| ms of CPU an image, median (range) | " + " | ".join(f"{n} clients" for n in counts) + " |"
    )
    typer.echo("|---|" + "---|" * len(counts))
    for part in (*PARTS, "sum", "images/s"):
        cells = []
        for count in counts:
            values = [one[part] for one in found[count]]
            cells.append(f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})")
        typer.echo(f"| {PARTS.get(part, part)} | " + " | ".join(cells) + " |")


async def _measure(
    process: subprocess.Popen[Any], port: int, counts: list[int], seconds: float, rounds: int
) -> dict[int, list[dict[str, float]]]:
    asked = target(port, 1)
    await ready(process, Client(asked.address))
    found: dict[int, list[dict[str, float]]] = {count: [] for count in counts}
    await measure(asked, Clients(8), 3)  # the first jobs share the CPU with trials and compilation
    for _ in range(rounds):
        for count in counts:
            before, own = _spent(process.pid), _of(os.getpid(), lambda name: "load")
            result = await measure(asked, Clients(count), seconds)
            after, own_after = _spent(process.pid), _of(os.getpid(), lambda name: "load")
            images = int((result.kinds == GOOD).sum())
            spent = {part: (after + own_after - before - own)[part] / 1e6 / images for part in PARTS}
            found[count].append({**spent, "sum": sum(spent.values()), "images/s": images / seconds})
    return found


def _spent(api: int) -> Counter[str]:
    """Nanoseconds of CPU so far, by part."""
    spent = _of(api, lambda name: "API")
    for child in psutil.Process(api).children():
        spent += _of(child.pid, _part if MODULE in child.cmdline() else lambda name: "Redis")
    return spent


def _part(thread: str) -> str:
    name = thread.split("-")[0]
    return name if name in PARTS else "others"


def _of(process: int, part: Callable[[str], str]) -> Counter[str]:
    spent: Counter[str] = Counter()
    for task in Path(f"/proc/{process}/task").iterdir():
        try:
            spent[part((task / "comm").read_text().strip())] += int(
                (task / "schedstat").read_text().split()[0]
            )
        except OSError:
            continue  # it has ended
    return spent


if __name__ == "__main__":
    app()
