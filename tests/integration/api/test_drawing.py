"""Large drawings in an API process of its own: its memory, its stop, and a client that leaves."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from time import monotonic

import httpx
import pytest
from PIL import Image

from serve.private_redis import free_port

MEGABYTE = 2**20
API = "from cli import app; app()"
TICKS = os.sysconf("SC_CLK_TCK")


class Api:
    """`sagan api` in a process of its own."""

    def __init__(self, redis_url: str, log: Path, **settings: object) -> None:
        self.port, self.log = free_port(), log
        env = {name: value for name, value in os.environ.items() if not name.startswith("SAGAN_")}
        env |= {f"SAGAN_{name.upper()}": str(value) for name, value in settings.items()}
        env |= {"SAGAN_REDIS_URL": redis_url, "PYTHONPATH": str(Path(__file__).parents[3])}
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-c", API, "api", "--port", str(self.port)],
                env=env,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        self.client = httpx.AsyncClient(base_url=f"http://127.0.0.1:{self.port}", timeout=60)

    async def ready(self) -> None:
        async with asyncio.timeout(60):
            while True:
                assert self.process.poll() is None, self.log.read_text()
                with contextlib.suppress(httpx.TransportError):
                    if (await self.client.get("/health/ready")).status_code == 200:
                        return
                await asyncio.sleep(0.05)

    async def grid(self) -> str:
        """Address of the grid of 64 images."""
        body = {"count": 64, "model": "plain"}
        reply = await self.client.post("/generate/3", json=body, headers={"Prefer": "wait=60"})
        assert reply.status_code == 200, reply.text
        address: str = reply.json()["links"]["grid"]
        return address

    def peak(self) -> int:
        """Bytes of memory that it has had at most."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))

    def busy(self) -> float:
        """Seconds of CPU."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    async def until_idle(self) -> None:
        """Return when it computes no more."""
        async with asyncio.timeout(30):
            before = -1.0
            while self.busy() - before > 0.3:
                before = self.busy()
                await asyncio.sleep(1)

    async def close(self) -> None:
        await self.client.aclose()
        self.process.kill()
        self.process.wait()


@contextlib.asynccontextmanager
async def running(redis_url: str, folder: Path, **settings: object) -> AsyncIterator[Api]:
    api = Api(redis_url, folder / "api.log", **settings)
    try:
        await api.ready()
        yield api
    finally:
        await api.close()


@pytest.fixture
async def api(redis_url: str, worker: object, tmp_path: Path) -> AsyncIterator[Api]:
    async with running(redis_url, tmp_path) as api:
        yield api


async def test_large_grids_at_once_take_little_memory(api: Api) -> None:
    grid = await api.grid()
    await api.client.get(grid)
    before = api.peak()
    asked = [f"{grid}?size=512&resample={resample}" for resample in ("lanczos", "nearest", "lanczos")]
    for reply in await asyncio.gather(*map(api.client.get, asked)):
        assert reply.status_code == 200
        with Image.open(io.BytesIO(reply.content)) as image:
            assert image.size == (8 * 514 - 2, 8 * 514 - 2)
            image.load()
    assert api.peak() - before < 60 * MEGABYTE  # the sheet alone is 50 MB, and there are three


async def test_work_ends_when_its_client_leaves(api: Api) -> None:
    grid = await api.grid()
    large = [f"{grid}?size=1024&resample=lanczos"] * 3  # a minute of work
    for address in large:
        async with api.client.stream("GET", address) as reply:
            assert reply.status_code == 200
            assert "content-length" not in reply.headers
            async for _ in reply.aiter_raw():
                break
    began = monotonic()
    await api.until_idle()
    assert monotonic() - began < 10
    assert (await api.client.get("/health/live")).status_code == 200


async def test_a_drawing_does_not_hold_up_the_end_of_the_service(api: Api) -> None:
    grid = await api.grid()
    address = f"{grid}?size=1024&resample=lanczos"

    async def ask() -> None:
        async with httpx.AsyncClient(base_url=api.client.base_url, timeout=60) as client:
            with contextlib.suppress(httpx.TransportError):
                await client.get(address)

    asking = [asyncio.create_task(ask()) for _ in range(8)]
    busy = api.busy()
    async with asyncio.timeout(30):
        while api.busy() - busy < 1:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    began = monotonic()
    api.process.send_signal(signal.SIGINT)
    await asyncio.to_thread(api.process.wait, 30)
    assert monotonic() - began < 15
    await asyncio.gather(*asking)


async def test_too_many_drawings_are_refused_with_a_time_to_come_back(
    redis_url: str, worker: object, tmp_path: Path
) -> None:
    async with running(redis_url, tmp_path, drawing_memory=2**24, max_drawings=4) as api:
        grid = await api.grid()
        address = f"{grid}?size=256"
        replies = await asyncio.gather(*(api.client.get(address) for _ in range(12)))
        served = [reply for reply in replies if reply.status_code == 200]
        refused = [reply for reply in replies if reply.status_code != 200]
        assert len(served) >= 2
        assert refused
        assert len({reply.content for reply in served}) == 1
        for reply in refused:
            assert reply.status_code == 503
            assert reply.json()["type"] == "urn:sagan:problem:busy"
            assert 1 <= int(reply.headers["retry-after"]) <= 60
        assert (await api.client.get(address)).status_code == 200


async def test_who_only_waits_for_room_is_never_drawn_after_leaving(
    redis_url: str, worker: object, tmp_path: Path
) -> None:
    async with running(redis_url, tmp_path, drawing_memory=2**25, max_drawings=64) as api:
        grid = await api.grid()
        address = f"{grid}?size=1000&resample=lanczos"
        asking = [asyncio.create_task(api.client.get(address)) for _ in range(20)]
        await asyncio.sleep(1.5)
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
        await api.until_idle()
        assert api.busy() < 30  # all twenty would be two minutes
