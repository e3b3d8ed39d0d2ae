"""What watching costs: logs, metrics, traces, keys, webhooks, results elsewhere; alone and together.

    python -m benchmarks.watching [--seconds 5] [--rounds 3] [--clients 8]

A `sagan serve` for each row, as it ships, with a tiny network of random weights, so that the time goes into
the way of a job and not into its forward; each with a Redis of its own. Clients in a closed loop ask for one
image a job, of one service after the other, and of all of them again --rounds times. The other services idle
meanwhile. Traces and webhooks go to a receiver in this process, which answers at once.

A row has the images a second and the milliseconds of CPU that a job costs the API, the worker and Redis:
medians over the rounds, and the range. On a busy machine compare the CPU.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Annotated

import typer
import uvloop

from benchmarks.machine import neighbours
from benchmarks.soak import PARTS, ROOT, Service
from loadtest.client import Client
from loadtest.load import Clients, Target, measure

QUIET = {"SAGAN_LOG_LEVEL": "error"}
LOGS = {"SAGAN_LOG_LEVEL": "info", "SAGAN_LOG_FORMAT": "json"}
WAIT = {"Content-Type": "application/json", "Prefer": "wait=30", "Accept": "image/png"}
KEY_NAME = "bench"


@dataclass
class Way:
    """One way to run the service."""

    name: str
    env: Mapping[str, str] = field(default_factory=dict)
    keyed: bool = False
    webhook: str | None = None  # address of the receiver
    scraped: bool = False  # once a second
    rates: list[float] = field(default_factory=list)  # images a second, a round each
    cpu: list[list[float]] = field(default_factory=list)  # milliseconds a job: API, worker, Redis


def ways(receiver: str, folder: Path) -> list[Way]:
    """receiver: its address. folder: for results."""
    traces = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver}
    hooks = {
        "SAGAN_WEBHOOK_SECRET": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        "SAGAN_WEBHOOK_ALLOWED": "127.0.0.1",
    }
    alone, together = folder / "alone", folder / "together"
    return [
        Way("off", QUIET),
        Way("logs", LOGS),
        Way("metrics", QUIET, scraped=True),
        Way("traces", QUIET | traces),
        Way("a key", QUIET, keyed=True),
        Way("a webhook", QUIET | hooks, webhook=f"{receiver}/hook"),
        Way("results in a folder", QUIET | {"SAGAN_RESULT_STORE": f"file://{alone}"}),
        Way(
            "all of it",
            LOGS | traces | hooks | {"SAGAN_RESULT_STORE": f"file://{together}"},
            keyed=True,
            webhook=f"{receiver}/hook",
            scraped=True,
        ),
    ]


class _Receiver(BaseHTTPRequestHandler):
    """Takes whatever is posted."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def _key(service: Service) -> str:
    """A new key of the service."""
    command = [sys.executable, "-m", "cli", "keys", "create", "--owner", KEY_NAME, "--json"]
    command += ["--scopes", "generate,read,metrics"]
    env = {**os.environ, "SAGAN_REDIS_URL": service.redis.url}
    told = subprocess.run(command, env=env, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return str(json.loads(told)["key"])


def _target(way: Way, service: Service, key: str | None) -> Target:
    body = {} if way.webhook is None else {"webhook": way.webhook}
    return Target(
        address=service.address,
        path="/generate/0",
        headers=WAIT | ({} if key is None else {"X-API-Key": key}),
        body=lambda n: json.dumps({"seed": n, **body}).encode(),
        good=lambda answer: answer[:4] == b"\x89PNG",
    )


@asynccontextmanager
async def _scraping(service: Service, key: str | None) -> AsyncIterator[None]:
    client = Client(service.address)
    request = client.request("GET", "/metrics", {} if key is None else {"X-API-Key": key})

    async def scrape() -> None:
        while True:
            status, _ = await client.ask(request, 10)
            assert status == 200
            await asyncio.sleep(1)

    scraping = asyncio.create_task(scrape())
    try:
        yield
    finally:
        scraping.cancel()
        with suppress(asyncio.CancelledError):
            await scraping
        client.close()


async def _round(way: Way, service: Service, key: str | None, clients: int, seconds: float) -> None:
    await measure(_target(way, service, key), Clients(clients), 1.0)
    before = service.cpu()
    result = await measure(_target(way, service, key), Clients(clients), seconds)
    spent = [after - then for after, then in zip(service.cpu(), before, strict=True)]
    assert result.errors == 0, result.counts
    jobs = len(result.ended)
    way.rates.append(result.throughput)
    way.cpu.append([1e3 * part / jobs for part in spent])


async def run(folder: Path, receiver: str, clients: int, seconds: float, rounds: int) -> list[Way]:
    chosen = ways(receiver, folder)
    services: list[Service] = []
    keys: list[str | None] = []
    try:
        for number, way in enumerate(chosen):
            place = folder / str(number)
            place.mkdir()
            services.append(Service(place, 60, env=way.env))
            client = Client(services[-1].address)
            await services[-1].ready(client)
            client.close()
            keys.append(_key(services[-1]) if way.keyed else None)
        await asyncio.sleep(5)  # keys are heard of, batch sizes are verified
        for _ in range(rounds):
            for way, service, key in zip(chosen, services, keys, strict=True):
                once = partial(_round, way, service, key, clients, seconds)
                if way.scraped:
                    async with _scraping(service, key):
                        await once()
                else:
                    await once()
    finally:
        for service in services:
            service.stop()
    return chosen


def told(chosen: list[Way]) -> str:
    lines = [
        f"{'':22}{'images/s':>10}{'range':>14}"
        + "".join(f"{part:>9}" for part in PARTS)
        + f"{'sum':>9}  ms of CPU a job"
    ]
    for way in chosen:
        parts = [statistics.median(values) for values in zip(*way.cpu, strict=True)]
        total = statistics.median(sum(values) for values in way.cpu)
        spread = f"{min(way.rates):.0f} to {max(way.rates):.0f}"
        line = f"{way.name:22}{statistics.median(way.rates):10.0f}{spread:>14}"
        lines.append(line + "".join(f"{part:9.2f}" for part in parts) + f"{total:9.2f}")
    return "\n".join(lines)


def main(
    seconds: Annotated[float, typer.Option(help="Measured time of a service in a round", min=0.5)] = 5.0,
    rounds: Annotated[int, typer.Option(min=1)] = 3,
    clients: Annotated[int, typer.Option(min=1)] = 8,
) -> None:
    """Print a row a way."""
    typer.echo(f"{neighbours():.1f} cores are busy with something else")
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Receiver)
    Thread(target=server.serve_forever, daemon=True).start()
    receiver = f"http://127.0.0.1:{server.server_address[1]}"
    with tempfile.TemporaryDirectory() as folder:
        typer.echo(told(uvloop.run(run(Path(folder), receiver, clients, seconds, rounds))))
    server.shutdown()


if __name__ == "__main__":
    typer.run(main)
