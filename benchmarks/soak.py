"""Memory of the embedded service over many jobs of one image: it grows for one window of TTLs, then no more.

    python -m benchmarks.soak [--jobs 50000] [--ttl 20] [--clients 16] [--out docs/images/memory.svg]

`sagan serve` as it ships, with a small network of random weights, so that the time goes into the jobs and not
into the forwards. Images live for --ttl seconds and records as long again: the window. A sample a second
holds the resident memory of the API's and the worker's process and Redis' used_memory; the samples are
written as .csv beside the picture. A short run (--jobs 5000 --ttl 5) shows the CPU of a job.
"""

from __future__ import annotations

import asyncio
import csv
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from pathlib import Path
from time import monotonic
from typing import Annotated, Any

import psutil
import typer
import uvloop
from redis.asyncio import Redis

from benchmarks.service import ready
from loadtest.client import Address, Client
from model.checkpoint import save_generator
from model.config import ModelConfig
from model.generator import Generator
from serve.private_redis import PrivateRedis, end, free_port
from train.experiments.charts import Axes, Line, chart

ROOT = Path(__file__).parent.parent
PARTS = ("API", "worker", "Redis")


@dataclass(frozen=True)
class Sample:
    """Memory at one moment, bytes."""

    seconds: float
    jobs: int  # answered so far
    api: int
    worker: int
    redis: int


class Service:
    """`sagan serve` on a Redis whose memory can be asked for."""

    def __init__(
        self, folder: Path, ttl: int, checkpoint: Path | None = None, env: Mapping[str, str] | None = None
    ) -> None:
        """checkpoint: what is served; None: a tiny network of random weights. env: more settings."""
        if checkpoint is None:
            _write_checkpoint(folder / "checkpoints" / "tiny.safetensors")
        else:
            (folder / "checkpoints").mkdir()
            shutil.copy(checkpoint, folder / "checkpoints")
        self.redis = PrivateRedis(folder / "redis")
        self.redis.start()
        self.address = Address("127.0.0.1", free_port(), secure=False, path="")
        ours = {
            "SAGAN_REDIS_URL": self.redis.url,
            "SAGAN_CHECKPOINTS": str(folder / "checkpoints"),
            "SAGAN_RESULT_TTL": str(ttl),
            "SAGAN_RECORD_TTL": str(ttl),
        }
        with (folder / "serve.log").open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "cli", "serve", "--port", str(self.address.port)],
                env={**os.environ, **ours, **(env or {})},
                cwd=ROOT,
                stderr=log,
                start_new_session=True,
            )
        self._api = psutil.Process(self._process.pid)
        self._worker: Any = None
        self._asked = Redis.from_url(self.redis.url)

    async def ready(self, client: Client) -> None:
        """Wait for a worker with its model."""
        await ready(self._process, client)
        self._worker = next(p for p in self._api.children() if "worker" in p.cmdline())

    async def sample(self, seconds: float, jobs: int) -> Sample:
        """The memory now. Raises psutil.NoSuchProcess if a process has died."""
        redis: Any = await self._asked.info("memory")
        api, worker = self._api.memory_info().rss, self._worker.memory_info().rss
        return Sample(seconds, jobs, api, worker, int(redis["used_memory"]))

    def cpu(self) -> list[float]:
        """Seconds of CPU of API, worker and Redis since their start."""
        parts = (self._api, self._worker, psutil.Process(self.redis.pid))
        times = [process.cpu_times() for process in parts]
        return [one.user + one.system for one in times]

    def stop(self) -> None:
        end(self._process, 40)
        self.redis.stop()


async def soak(service: Service, jobs: int, clients: int) -> tuple[list[Sample], list[float]]:
    """A sample a second while `clients` ask for `jobs` PNGs, and seconds of CPU of API, worker and Redis."""
    client = Client(service.address)
    await service.ready(client)
    headers = {"Content-Type": "application/json", "Prefer": "wait=30", "Accept": "image/png"}
    request = client.request("POST", "/generate/0", headers, b"{}")
    asked = answered = 0
    began, before = monotonic(), service.cpu()

    async def one() -> None:
        nonlocal asked, answered
        while asked < jobs:
            asked += 1
            status, body = await client.ask(request, 60)
            assert (status, body[:4]) == (200, b"\x89PNG"), (status, body[:200])
            answered += 1

    work = asyncio.gather(*(one() for _ in range(clients)))
    samples = []
    while not work.done():
        samples.append(await service.sample(monotonic() - began, answered))
        await asyncio.wait([work], timeout=1)
    await work
    samples.append(await service.sample(monotonic() - began, answered))
    client.close()
    return samples, [after - then for after, then in zip(service.cpu(), before, strict=True)]


def summary(samples: list[Sample], window: float) -> str:
    """Growth of each part once the window was full: medians of the first and last quarter after that."""
    steady = [sample for sample in samples if sample.seconds >= 1.5 * window]
    quarter = max(1, len(steady) // 4)
    if len(steady) < 8:
        return f"The run was too short: growth needs 8 samples after {1.5 * window:.0f} s."
    first, last = steady[:quarter], steady[-quarter:]
    between = statistics.median(s.jobs for s in last) - statistics.median(s.jobs for s in first)
    lines = [f"{'':8}{'at first':>10}{'at last':>10}{'growth':>10}   MB; {between:.0f} jobs lie between"]
    for name, place in zip(PARTS, range(2, 5), strict=True):
        before, after = (statistics.median(astuple(s)[place] for s in some) / 1e6 for some in (first, last))
        lines.append(f"{name:8}{before:10.1f}{after:10.1f}{after - before:10.1f}")
    return "\n".join(lines)


def draw(samples: list[Sample], ttl: int) -> bytes:
    """An SVG: MB against jobs, a line a part."""
    chosen = samples[:: max(1, len(samples) // 300)]
    lines = [
        Line(name, [(s.jobs / 1000, astuple(s)[place] / 1e6) for s in chosen])
        for place, name in enumerate(PARTS, 2)
    ]
    title = f"Memory over {samples[-1].jobs:,} jobs in {samples[-1].seconds:.0f} s, images kept {ttl} s"
    return chart(title, Axes("thousand jobs", "MB"), lines)


def _write_checkpoint(path: Path) -> None:
    """A 32-pixel network of random weights; its forwards take next to nothing."""
    widths = (16,) * 4
    config = ModelConfig(
        resolution=32,
        classes=2,
        generator_widths=widths,
        discriminator_widths=widths,
        generator_attention=(),
        discriminator_attention=(),
        latent=32,
    )
    save_generator(path, Generator(config), ("cat", "dog"))


def main(
    jobs: Annotated[int, typer.Option(min=1)] = 50_000,
    ttl: Annotated[int, typer.Option(help="Seconds an image lives, and its record after that", min=1)] = 20,
    clients: Annotated[int, typer.Option(help="Connections", min=1)] = 16,
    out: Annotated[Path, typer.Option(help="The picture; its .csv goes beside it")] = Path("memory.svg"),
) -> None:
    """Print the growth of API, worker and Redis after the first window and a half."""
    with tempfile.TemporaryDirectory() as folder:
        service = Service(Path(folder), ttl)
        try:
            samples, cpu = uvloop.run(soak(service, jobs, clients))
        finally:
            service.stop()
    with out.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["seconds", "jobs", "api_rss", "worker_rss", "redis_used_memory"])
        writer.writerows([round(s.seconds, 2), *astuple(s)[1:]] for s in samples)
    out.write_bytes(draw(samples, ttl))
    typer.echo(f"{samples[-1].jobs} jobs in {samples[-1].seconds:.0f} s; ms of CPU a job: ", nl=False)
    typer.echo(", ".join(f"{name} {1e3 * spent / jobs:.2f}" for name, spent in zip(PARTS, cpu, strict=True)))
    typer.echo(summary(samples, 2 * ttl))


if __name__ == "__main__":
    typer.run(main)
