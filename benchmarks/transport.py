"""Our transport (worker.transport) against kombu's own: images a second, and CPU an image.

    python -m benchmarks.transport compare [--clients 1,8,32] [--seconds 5] [--rounds 9]

Two services of `sagan serve` on the peers' network differ in their worker's transport alone. They take turns,
load by load, so a neighbour on the machine disturbs both. The last column has jobs of 64 images, from 4
clients.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Annotated, Any, Final

import psutil
import typer
import uvloop
from kombu.transport import TRANSPORT_ALIASES, redis

from benchmarks import machine
from benchmarks.peers.__main__ import target
from benchmarks.peers.network import write_checkpoint
from benchmarks.service import ready
from loadtest.client import Client
from loadtest.load import GOOD, Clients, measure
from serve.private_redis import end, free_port

ROOT: Final = Path(__file__).parent.parent
KINDS: Final = {"plain": "kombu's", "ours": "ours"}
LONG: Final = (4, 64)  # clients, images a job

app = typer.Typer(add_completion=False)
Figures = dict[str, list[float]]  # figure -> its value in each round


class QoS(redis.QoS):
    """kombu's, for one thread alone: this hands it the acknowledgements of other threads."""

    def ack(self, delivery_tag: str) -> None:
        # as Celery's own ack does; it also wakes the thread, which may have room for more now
        self.channel.connection.loop.call_soon(super().ack, delivery_tag)


class Channel(redis.Channel):
    """kombu's, with that QoS."""

    QoS = QoS


class Transport(redis.Transport):
    """kombu's, with that QoS."""

    Channel = Channel

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        super().register_with_event_loop(connection, loop)  # type: ignore[no-untyped-call]
        self.loop = loop


@app.command(hidden=True)
def worker(kind: str) -> None:
    """The worker with one of the two."""
    from worker.celery_app import TRANSPORT
    from worker.main import run_worker
    from worker.settings import WorkerSettings

    if kind == "plain":
        TRANSPORT_ALIASES[TRANSPORT] = "benchmarks.transport:Transport"
    raise typer.Exit(run_worker(WorkerSettings()))


@app.command(hidden=True)
def serve(port: int, kind: str) -> None:
    """The service with that worker."""
    from serve.supervisor import run

    command = [sys.executable, "-m", "benchmarks.transport", "worker", kind]
    raise typer.Exit(run(port, worker_command=command))


@app.command()
def compare(
    clients: Annotated[str, typer.Option(help="Comma-separated")] = "1,8,32",
    seconds: Annotated[float, typer.Option(help="Of each load", min=1)] = 5,
    rounds: Annotated[int, typer.Option(min=1)] = 9,
) -> None:
    """Print the table: medians, and the least and the most."""
    typer.echo(f"{os.cpu_count()} cores; other processes keep {machine.neighbours():.2f} of them busy")
    loads = [(int(count), 1) for count in clients.split(",")] + [LONG]
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        write_checkpoint(folder)
        services = {}
        for kind in KINDS:
            port = free_port()
            process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.transport", "serve", str(port), kind],
                env={
                    **os.environ,
                    "SAGAN_CHECKPOINTS": str(folder),
                    "SAGAN_STATE_DIR": str(folder / kind),
                },
                cwd=ROOT,
                stdout=subprocess.DEVNULL,
            )
            stack.callback(end, process, 60)
            services[kind] = (process, port)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            found = runner.run(_measure(services, loads, seconds, rounds))
    names = [f"{n} client" + "s" * (n > 1) + f", {count} images a job" * (count > 1) for n, count in loads]
    typer.echo(f"\n| median (range) of {rounds} rounds | " + " | ".join(names) + " |")
    typer.echo("|---|" + "---|" * len(loads))
    for what in ("images/s", "CPU ms an image", "of which the worker", "of which Redis"):
        for kind, name in KINDS.items():
            cells = [_cell(found[kind, *load][what]) for load in loads]
            typer.echo(f"| {what}, {name} | " + " | ".join(cells) + " |")


def _cell(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


async def _measure(
    services: dict[str, tuple[subprocess.Popen[bytes], int]],
    loads: list[tuple[int, int]],
    seconds: float,
    rounds: int,
) -> dict[tuple[str, int, int], Figures]:
    for process, port in services.values():
        asked = target(port, 1)
        await ready(process, Client(asked.address))
        await measure(asked, Clients(8), 10)  # the worker verifies batch sizes beside its first jobs
    found: dict[tuple[str, int, int], Figures] = defaultdict(lambda: defaultdict(list))
    for turn in range(rounds):
        for load in loads:
            for kind in sorted(KINDS, reverse=bool(turn % 2)):
                process, port = services[kind]
                count, images = load
                before = _spent(process.pid)
                result = await measure(target(port, images), Clients(count), seconds)
                spent = {part: used - before[part] for part, used in _spent(process.pid).items()}
                made = images * int((result.kinds == GOOD).sum())
                assert not result.errors, result.counts
                figures = found[kind, *load]
                figures["images/s"].append(made / result.ended.max())
                figures["CPU ms an image"].append(1e3 * sum(spent.values()) / made)
                figures["of which the worker"].append(1e3 * spent["worker"] / made)
                figures["of which Redis"].append(1e3 * spent["Redis"] / made)
    return found


def _spent(api: int) -> dict[str, float]:
    """Seconds of CPU so far, by part."""
    service = psutil.Process(api)
    spent = {"API": _cpu(service), "worker": 0.0, "Redis": 0.0}
    for child in service.children():
        spent["worker" if "worker" in child.cmdline() else "Redis"] += _cpu(child)
    return spent


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


if __name__ == "__main__":
    app()
