"""Ten times what the service can make, over all its routes at once, and what it is like before and after.

    python -m benchmarks.overload [--seconds 180] [--factor 10] [--checkpoint checkpoints/dogs64.safetensors]

`sagan serve` as it ships, on one thread of forwards, with a queue of 100 jobs. First it is asked for single
images by 8 clients: its capacity in jobs/s. Then --factor times as many requests come at even gaps, whatever
becomes of those before them: half of them jobs, the rest grids, attention figures, reads of jobs, events,
models and the page. Up to --open are open at once; what is beyond is told as not sent. Then the 8 clients
come back.

It prints latencies by route and status, of refusals (429 and 503) together, the memory of API, worker and
Redis before and at most, the images/s before and in each second after, and how the accepted jobs ended.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import statistics
import tempfile
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Annotated

import typer
import uvloop

from benchmarks.soak import PARTS, Sample, Service
from loadtest.client import Broken, Client

CLIENTS = 8
JSON = {"Content-Type": "application/json"}
PNG = {"Prefer": "wait=30", "Accept": "image/png"}
REFUSED = (429, 503)

# route -> its share of the requests
MIX = {
    "job, waited for": 0.4,
    "job": 0.1,
    "grid": 0.12,
    "attention": 0.1,
    "read job": 0.1,
    "events": 0.05,
    "models": 0.08,
    "page": 0.05,
}


@dataclass
class Answers:
    """What came back: seconds by route and status; a status of 0 stands for no answer at all."""

    seconds: defaultdict[tuple[str, int], list[float]] = field(default_factory=lambda: defaultdict(list))
    accepted: list[str] = field(default_factory=list)  # ids of jobs
    not_sent: int = 0

    def told(self) -> list[str]:
        lines = [f"{'':18}{'status':>7}{'answers':>9}{'p50 ms':>9}{'p90 ms':>9}{'p99 ms':>9}{'most ms':>9}"]
        rows = sorted(self.seconds.items())
        refused = [one for (_, status), some in rows if status in REFUSED for one in some]
        for (route, status), some in [*rows, (("refusals", 0), refused)]:
            if some:
                percentiles = "".join(f"{1e3 * _at(some, at):9.0f}" for at in (50, 90, 99, 100))
                lines.append(f"{route:18}{status or '':>7}{len(some):9}{percentiles}")
        return lines


class Load:
    """Requests of every kind to one service."""

    def __init__(self, client: Client, most: int) -> None:
        """most: requests open at once."""
        self._client = client
        self._most = most
        self._open: set[asyncio.Task[None]] = set()
        self._random = random.Random(0)
        self._finished: list[str] = []  # ids of jobs whose grids and maps may be asked for
        self.answers = Answers()

    async def prepare(self, jobs: int) -> None:
        """Make jobs of 16 images to look at."""
        for _ in range(jobs):
            status, body = await self._ask("POST", "/generate/0", {"Prefer": "wait=60"}, b'{"count": 16}')
            assert status == 200, body
            self._finished.append(json.loads(body)["id"])

    async def run(self, rate: float, seconds: float) -> None:
        """So many requests a second, at even gaps; returns when the last is answered."""
        began, sent = monotonic(), 0
        routes, weights = list(MIX), list(MIX.values())
        while (now := monotonic() - began) < seconds:
            while sent < now * rate:
                sent += 1
                if len(self._open) >= self._most:
                    self.answers.not_sent += 1
                    continue
                task = asyncio.create_task(self._one(self._random.choices(routes, weights)[0]))
                self._open.add(task)
                task.add_done_callback(self._open.discard)
            await asyncio.sleep(0.005)
        while self._open:
            await asyncio.wait(self._open)

    async def _one(self, route: str) -> None:
        began = monotonic()
        try:
            status, body = await self._ask(*self._request(route))
        except (OSError, Broken, TimeoutError):
            status, body = 0, b""
        self.answers.seconds[route, status].append(monotonic() - began)
        if route == "job" and status == 202:
            self.answers.accepted.append(json.loads(body)["id"])

    def _request(self, route: str) -> tuple[str, str, dict[str, str], bytes]:
        job, image = self._random.choice(self._finished), self._random.randrange(16)
        match route:
            case "job, waited for":
                return "POST", "/generate/0", JSON | PNG, b"{}"
            case "job":
                return "POST", "/generate/0", JSON, b'{"priority": 6}'
            case "grid":
                return "GET", f"/jobs/{job}/grid?size={self._random.choice((64, 256, 512))}", {}, b""
            case "attention":
                return "GET", f"/attention/{job}?image={image}", {}, b""
            case "events":
                return "GET", f"/jobs/{job}/events", {}, b""
            case "models":
                return "GET", "/models", {}, b""
            case "page":
                return "GET", "/static/app.js", {}, b""
            case _:
                return "GET", f"/jobs/{job}", {}, b""

    async def _ask(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, bytes]:
        return await self._client.ask(self._client.request(method, path, headers, body), 70)

    async def lost(self) -> Counter[str]:
        """States of the accepted jobs, once each has ended or a minute has gone."""
        deadline, states = monotonic() + 60, Counter[str]()
        for job_id in self.answers.accepted:
            state = "queued"
            while state in ("queued", "running") and monotonic() < deadline:
                status, body = await self._ask("GET", f"/jobs/{job_id}", {}, b"")
                state = json.loads(body)["state"] if status == 200 else str(status)
                await asyncio.sleep(0 if state == "succeeded" else 0.05)
            states[state] += 1
        return states


async def images_a_second(client: Client, seconds: float) -> tuple[list[int], list[float]]:
    """Images in each second that 8 clients get, one after another, and all latencies."""
    request = client.request("POST", "/generate/0", JSON | PNG, b"{}")
    began, counts, latencies = monotonic(), [0] * int(seconds), list[float]()

    async def one() -> None:
        while (asked := monotonic()) - began < seconds:
            status, _ = await client.ask(request, 70)
            answered = monotonic()
            if status == 200 and answered - began < len(counts):
                counts[int(answered - began)] += 1
                latencies.append(answered - asked)
            elif status != 200:
                await asyncio.sleep(0.05)

    await asyncio.gather(*(one() for _ in range(CLIENTS)))
    return counts, latencies


@asynccontextmanager
async def watched(service: Service) -> AsyncIterator[list[Sample]]:
    """Memory, twice a second."""
    samples: list[Sample] = []

    async def watch() -> None:
        while True:
            samples.append(await service.sample(monotonic(), 0))
            await asyncio.sleep(0.5)

    watching = asyncio.create_task(watch())
    try:
        yield samples
    finally:
        watching.cancel()


async def measure(service: Service, seconds: float, factor: float, most: int) -> None:
    client = Client(service.address)
    await service.ready(client)
    load = Load(client, most)
    await load.prepare(30)
    await images_a_second(client, 3)
    before, calm = await images_a_second(client, 8)
    capacity = statistics.median(before)
    typer.echo(
        f"before: {capacity:.0f} images/s, p50 {1e3 * _at(calm, 50):.0f} ms, p99 {1e3 * _at(calm, 99):.0f} ms"
    )
    typer.echo(f"load: {factor * capacity:.0f} requests/s for {seconds:.0f} s")
    async with watched(service) as samples:
        await load.run(factor * capacity, seconds)
        ended = monotonic()
        after, _ = await images_a_second(client, 10)
    typer.echo("\n".join(load.answers.told()))
    typer.echo(f"not sent, as {most} were open: {load.answers.not_sent}")
    for place, name in enumerate(("api", "worker", "redis")):
        some = [getattr(sample, name) / 1e6 for sample in samples]
        typer.echo(
            f"{PARTS[place]}: {some[0]:.0f} MB at first, {max(some):.0f} at most, {some[-1]:.0f} at last"
        )
    typer.echo(f"after: {', '.join(map(str, after))} images in each second ({monotonic() - ended:.0f} s)")
    typer.echo(f"accepted jobs: {dict(await load.lost())}")
    client.close()


def _at(values: list[float], percent: int) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]


def main(
    seconds: Annotated[float, typer.Option(help="Of the overload", min=1)] = 180,
    factor: Annotated[float, typer.Option(help="Requests beside the capacity in jobs", min=1)] = 10,
    most: Annotated[int, typer.Option("--open", help="Requests open at once", min=1)] = 1000,
    queued: Annotated[int, typer.Option(help="SAGAN_MAX_QUEUED", min=1)] = 100,
    checkpoint: Annotated[Path, typer.Option(help="What is served")] = Path("checkpoints/dogs64.safetensors"),
) -> None:
    """Print what the overload did to each route, to memory and to the speed afterwards."""
    os.environ |= {"SAGAN_MAX_QUEUED": str(queued), "SAGAN_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        service = Service(Path(folder), ttl=3600, checkpoint=checkpoint)
        try:
            uvloop.run(measure(service, seconds, factor, most))
        finally:
            service.stop()


if __name__ == "__main__":
    typer.run(main)
