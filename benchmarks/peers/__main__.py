"""Our service beside its peers: the same network, the same machine, one interleaved run.

    python -m benchmarks.peers [--only ours,litserve] [--rounds 3] [--seconds 8] [--clients 1,8,32]

Each contender starts, is measured and is stopped before the next one; from round to round another one is
first. The floor is measured before each. A measurement that loses more than QUIET cores to other processes or
the hypervisor is made again, and the loss stands in the table. The load generator runs on the same cores.
Every request asks for an image of its own, and only a PNG answers it. On first use each peer is installed
into an environment of its own (--cache).
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
import uvloop

from benchmarks import machine
from benchmarks.peers.contenders import CONTENDERS, Contender
from benchmarks.peers.environment import Uninstallable, python_of, variables
from benchmarks.peers.network import write_checkpoint
from benchmarks.peers.processes import Processes, Usage, busy, own_cpu, spent
from benchmarks.peers.tables import tables
from loadtest.client import Address, Client
from loadtest.load import GOOD, Clients, Result, Target, measure, percentile
from serve.private_redis import free_port, server_command

PATIENCE = 120.0  # seconds that a contender may take to its first image
WARM_UP = 2.0  # seconds of load before the measured time
JOB = 64  # images of a large job
QUIET = 0.15  # cores that others may take during a measurement
ATTEMPTS = 3
Row = dict[str, Any]


class Failed(Exception):
    """A contender that does not start; the others go on."""


def target(port: int, count: int) -> Target:
    """The same request for all: POST /generate/{class} with a seed."""
    told = {"count": count} if count > 1 else {}
    return Target(
        address=Address("127.0.0.1", port, secure=False, path=""),
        path="/generate/3",
        headers={"Content-Type": "application/json", "Accept": "image/png", "Prefer": "wait=60"},
        body=lambda n: json.dumps({"seed": n, **told}).encode(),
        good=lambda body: body.startswith(b"\x89PNG"),
        images=count,
    )


async def first_image(asked: Target, processes: Processes) -> None:
    """Wait until the contender answers with an image. Raises Failed."""
    deadline = time.monotonic() + PATIENCE
    said = "no answer"
    while time.monotonic() < deadline:
        if last := processes.died():
            raise Failed(f"it does not start: {last}")
        client = Client(asked.address)
        try:
            request = client.request(asked.method, asked.path, asked.headers, asked.body(0))
            status, body = await client.ask(request, 30)
            said = f"HTTP {status}: {body[:200]!r}"
            if asked.kind(status, body) == GOOD:
                return
        except OSError as error:  # a timeout is one
            said = str(error) or type(error).__name__
        finally:
            client.close()
        await asyncio.sleep(0.2)
    raise Failed(f"no image within {PATIENCE:g} s: {said}")


def weighed(result: Result, before: Usage, after: Usage, generator: float) -> Row:
    """The figures of one load."""
    images = max(1, int((result.kinds == GOOD).sum()) * result.images)  # the warm-up's too: their CPU is in
    cpu, redis_cpu = spent(before.cpu, after.cpu), spent(before.redis_cpu, after.redis_cpu)
    elapsed = after.at - before.at
    latencies = result.latencies

    def ms(share: float) -> float | None:
        return 1e3 * percentile(latencies, share) if len(latencies) else None

    return {
        "images_a_second": result.throughput,
        "p50_ms": ms(0.5),
        "p99_ms": ms(0.99),
        "max_ms": ms(1.0),
        "requests": result.counts.total(),
        "errors": result.errors,
        "counts": dict(result.counts),
        "cpu_ms": 1e3 * cpu / images,
        "redis_cpu_ms": 1e3 * redis_cpu / images,
        "generator_ms": 1e3 * result.cpu_per_request if result.counts.total() else None,
        "processes": after.processes,
        "memory_mb": after.memory / 2**20,
        "redis_memory_mb": after.redis_memory / 2**20,
        "neighbours": max(0.0, (after.machine - before.machine - cpu - redis_cpu - generator) / elapsed),
        "stolen": (after.stolen - before.stolen) / elapsed,
    }


def turn(
    contender: Contender, python: Path, work: Path, clients: Sequence[int], seconds: float
) -> Iterator[Row]:
    """Start it, put each load on it, stop it. Raises Failed."""
    port = free_port()
    filled = {"port": port, "work": work}
    settings = {name: value.format(**filled) for name, value in contender.variables.items()}
    commands = [[str(python), *(word.format(**filled) for word in words)] for words in contender.commands]
    if contender.redis:
        redis = free_port()
        settings["REDIS_URL"] = f"redis://127.0.0.1:{redis}/0"
        in_memory = ["--port", str(redis), "--save", "", "--appendonly", "no", "--dir", str(work)]
        commands.insert(0, [server_command(), *in_memory])
    log = work / "logs" / f"{contender.name}.log"
    with (
        Processes(commands, {**variables(python), **settings}, log) as processes,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        runner.run(first_image(target(port, 1), processes))
        loads = [(1, n) for n in clients] + [(JOB, n) for n in (1, 2) if contender.jobs]

        def once(count: int, n: int) -> Row:
            before, own = processes.usage(), own_cpu()
            result = runner.run(measure(target(port, count), Clients(n), seconds, WARM_UP))
            return weighed(result, before, processes.usage(), own_cpu() - own)

        for count, n in loads:
            row = undisturbed(partial(once, count, n))
            yield {"contender": contender.name, "count": count, "clients": n, **row}


def undisturbed(once: Callable[[], Row]) -> Row:
    """A measurement with less than QUIET cores taken by others, or the quietest of ATTEMPTS.

    Others take cores independently of the contender, so the choice favours none.
    """
    rows: list[Row] = []
    while len(rows) < ATTEMPTS and not (rows and _disturbance(rows[-1]) < QUIET):
        rows.append(once())
    return min(rows, key=_disturbance) | {"attempts": len(rows)}


def _disturbance(row: Row) -> float:
    return float(row["neighbours"] + row["stolen"])


def floor(seconds: float) -> Row:
    """{"floor": {batch size: images a second}, ...}: the loop without HTTP and queue, in its own process."""

    def once() -> Row:
        command = [sys.executable, "-m", "benchmarks.peers.floor", str(seconds)]
        start, before = time.monotonic(), busy()
        children = os.times().children_user + os.times().children_system
        done = subprocess.run(
            command, env=variables(Path(sys.executable)), capture_output=True, text=True, check=True
        )
        own = os.times().children_user + os.times().children_system - children
        after, elapsed = busy(), time.monotonic() - start
        return {
            "floor": json.loads(done.stdout),
            "neighbours": max(0.0, (after[0] - before[0] - own) / elapsed),
            "stolen": (after[1] - before[1]) / elapsed,
        }

    return undisturbed(once)


def chosen(only: str) -> list[Contender]:
    """Contenders by name, in their order. Raises typer.BadParameter."""
    names = [name.strip() for name in only.split(",") if name.strip()] or [c.name for c in CONTENDERS]
    if unknown := set(names) - {c.name for c in CONTENDERS}:
        raise typer.BadParameter(
            f"there is no {', '.join(sorted(unknown))}; there are {', '.join(c.name for c in CONTENDERS)}"
        )
    return [c for c in CONTENDERS if c.name in names]


def installed(contenders: Sequence[Contender], cache: Path) -> Mapping[str, Path | Uninstallable]:
    """Each one's Python, or why there is none."""
    found: dict[str, Path | Uninstallable] = {}
    for contender in contenders:
        typer.echo(
            f"{contender.name}: {' '.join(contender.requirements) or 'the environment of the project'}"
        )
        try:
            found[contender.name] = python_of(contender.name, contender.requirements, cache)
        except Uninstallable as why:
            found[contender.name] = why
    return found


def main(
    only: Annotated[str, typer.Option(help="By name, such as ours,litserve; unless told, all")] = "",
    rounds: Annotated[int, typer.Option(min=1)] = 3,
    seconds: Annotated[float, typer.Option(help="Measured time of each load", min=0.5)] = 8.0,
    clients: Annotated[str, typer.Option(help="Clients that ask at once, in turn")] = "1,8,32",
    out: Annotated[Path, typer.Option(help="Folder for results.jsonl and tables.md")] = Path("runs/peers"),
    cache: Annotated[Path, typer.Option(help="Folder of the peers' environments")] = Path(".peers"),
) -> None:
    """Our service beside its peers: the same network, the same machine, one interleaved run."""
    contenders = chosen(only)
    counts = [int(n) for n in clients.split(",")]
    pythons = installed(contenders, cache.absolute())
    began, before = datetime.now(UTC), machine.neighbours(2)
    about = [
        f"{machine.described(torch.device('cpu'))}; {began:%Y-%m-%d %H:%M} UTC; {rounds} interleaved rounds, "
        f"{seconds:g} s each load after {WARM_UP:g} s to warm up",
        f"`python -m benchmarks.peers {' '.join(sys.argv[1:])}`; "
        f"neighbours before the run: {before:.1f} busy cores",
    ]
    rows: list[Row] = []
    out.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="peers-")))
        results = stack.enter_context((out / "results.jsonl").open("w"))
        write_checkpoint(work / "checkpoints")

        def tell(row: Row, **more: Any) -> None:
            rows.append(row | more)
            results.write(json.dumps(rows[-1]) + "\n")
            results.flush()
            (out / "tables.md").write_text(tables(about, rows))
            shown = {n: round(v, 2) if isinstance(v, float) else v for n, v in rows[-1].items()}
            typer.echo(" ".join(f"{name}={value}" for name, value in shown.items()))

        for r in range(rounds):
            for contender in contenders[r % len(contenders) :] + contenders[: r % len(contenders)]:
                python = pythons[contender.name]
                tell({"round": r, "contender": "floor", **floor(seconds / 8)})
                try:
                    if isinstance(python, Uninstallable):
                        raise Failed(str(python))
                    for row in turn(contender, python, work, counts, seconds):
                        tell(row, round=r)
                except Failed as why:
                    tell({"round": r, "contender": contender.name, "failed": str(why)})
    typer.echo((out / "tables.md").read_text())


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # contenders are stopped on the way out
    os.chdir(Path(__file__).parents[2])  # the contenders' modules are found from here
    typer.run(main)
