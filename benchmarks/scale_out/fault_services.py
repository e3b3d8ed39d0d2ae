"""Faults of the API, and models that differ or change: real APIs, real workers, small networks."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from time import monotonic, sleep
from typing import Final

import httpx

from benchmarks.scale_out.bed import ROOT, Bed
from benchmarks.scale_out.load import Outcome, outcome, wait_for
from jobs.client import JobClient
from jobs.job import JobSpec
from jobs.keys import Keys
from serve.private_redis import end, free_port

CLIENTS: Final = 40
REQUESTS: Final = 400
CLASSES: Final = ("cat", "dog", "ship")


class Clients:
    """Clients of an API that wait for their images, and ask again with the same key when it breaks off."""

    def __init__(self, port: int) -> None:
        self.answered: dict[str, str] = {}  # Idempotency-Key -> id of its job
        self.again: list[float] = []  # monotonic() of each answer that had to be asked for again
        self._url = f"http://127.0.0.1:{port}"
        self._keys = iter(f"key-{number}" for number in range(REQUESTS))

    async def run(self) -> None:
        async with httpx.AsyncClient(base_url=self._url, timeout=40) as client:
            await asyncio.gather(*(self._ask_all(client) for _ in range(CLIENTS)))

    async def _ask_all(self, client: httpx.AsyncClient) -> None:
        for key in self._keys:
            broken = False
            while (job := await self._ask(client, key)) is None:
                broken = True
                await asyncio.sleep(0.2)
            self.answered[key] = job
            if broken:
                self.again.append(monotonic())

    async def _ask(self, client: httpx.AsyncClient, key: str) -> str | None:
        headers = {"Prefer": "wait=30", "Idempotency-Key": key}
        try:
            reply = await client.post("/generate/0", json={"truncation": 0.2}, headers=headers)
        except httpx.TransportError:
            return None
        return str(reply.json()["id"]) if reply.status_code in (200, 202) else None


def end_the_api(bed: Bed, how: signal.Signals, patience: float) -> tuple[Outcome, float]:
    """The API gets a signal while its clients wait, and another one starts on its port.

    Recovery: from that start until all who were broken off have their answer. Two jobs for one key count as
    doubled.
    """
    port = free_port()
    api = _start_api(bed, port)
    clients = Clients(port)

    async def run() -> float:
        nonlocal api
        running = asyncio.create_task(clients.run())
        await asyncio.sleep(2)
        api.send_signal(how)
        await asyncio.to_thread(api.wait)
        began, api = monotonic(), _start_api(bed, port)
        await asyncio.wait_for(running, patience)
        return max(clients.again, default=began) - began

    try:
        recovery = asyncio.run(run())
    finally:
        end(api, 10)
    ids = set(clients.answered.values())
    wait_for(bed.redis, bed.settings, ids, patience)
    found = outcome(bed.redis, bed.settings, ids)
    made = sum(1 for _ in bed.redis.scan_iter(Keys(bed.settings.namespace).job("*"), count=1000))
    return replace(found, doubled=found.doubled + made - len(clients.answered)), recovery


def _start_api(bed: Bed, port: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "cli", "api", "--port", str(port)]
    with (bed.folder / "api.log").open("ab") as log:
        api = subprocess.Popen(command, env=bed.env, cwd=ROOT, stdout=log, stderr=log)
    deadline = monotonic() + 60
    while monotonic() < deadline:
        try:
            if httpx.get(f"http://127.0.0.1:{port}/health/ready", timeout=5).status_code == 200:
                return api
        except httpx.TransportError:
            assert api.poll() is None, (bed.folder / "api.log").read_text()
        sleep(0.05)
    raise AssertionError("the API is not ready after a minute")


def write_model(path: Path, seed: int) -> None:
    """A network of random weights at `path`, put in its place at once."""
    import torch

    from model.checkpoint import save_generator
    from model.config import ModelConfig
    from model.generator import Generator

    torch.manual_seed(seed)
    widths = (16, 16, 16, 16)
    generator = Generator(ModelConfig(32, len(CLASSES), widths, widths, (16,), latent=32))
    with torch.no_grad():
        generator.to_rgb.weight.mul_(8)  # a random network gives grey; this spreads it over all levels
    path.parent.mkdir(exist_ok=True)
    save_generator(path, generator, CLASSES)


def start_model_worker(bed: Bed, folder: Path) -> subprocess.Popen[bytes]:
    """A worker with the checkpoints of a folder."""
    return bed.start_worker(
        [sys.executable, "-m", "worker"],
        SAGAN_CHECKPOINTS=str(folder),
        SAGAN_DEVICE="cpu",
        SAGAN_PRECISION="float32",
        SAGAN_THREADS="1",
    )


def prepare_one_model(bed: Bed) -> None:
    write_model(bed.folder / "models" / "one.safetensors", seed=1)
    for _ in range(3):
        start_model_worker(bed, bed.folder / "models")
    bed.grow(3)


def roll(bed: Bed) -> None:
    """Another file of the same name; then the three workers are replaced one by one."""
    write_model(bed.folder / "models" / "one.safetensors", seed=2)
    for _ in range(3):
        old = bed.workers.pop(0)
        end(old, 60)
        bed.wait_for(start_model_worker(bed, bed.folder / "models"))
        sleep(2)


def prepare_two_models(bed: Bed) -> None:
    for seed, name in enumerate(("one", "two")):
        write_model(bed.folder / name / f"{name}.safetensors", seed)
        start_model_worker(bed, bed.folder / name)
    bed.grow(2)


async def served(store: JobClient, number: int) -> JobSpec | None:
    """A job for one of the models that are served now, as the API makes it."""
    models = await store.models()
    if not models:
        return None
    model = models[number % len(models)]
    return JobSpec(model.name, model.hash, model.precision, 0, CLASSES[0], 1, number, 1.0)


def with_api(how: signal.Signals) -> str:
    return f"the API: {how.name} while {CLIENTS} clients wait, started again; they ask again"
