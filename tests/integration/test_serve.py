"""The embedded service starts, serves, restarts a part that dies, and leaves nothing running."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import anyio
import httpx
import pytest

from embedded import Sagan, are_gone

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


@pytest.fixture
def sagan(tmp_path: Path, checkpoints: Path) -> Iterator[Sagan]:
    service = Sagan(tmp_path, checkpoints)
    yield service
    if service.process.poll() is None:
        service.process.kill()
        service.process.wait()


async def test_one_command_serves_and_one_ctrl_c_ends_it_all(
    sagan: Sagan, tmp_path: Path, checkpoints: Path
) -> None:
    await sagan.says("ready with tiny")
    parts = sagan.parts()
    assert set(parts) == {"worker", "redis"}
    status, job = await sagan.generate(count=2)
    assert (status, job["state"]) == (200, "succeeded")

    os.kill(parts["worker"], signal.SIGKILL)
    status, job = await sagan.generate(seed=1)
    assert (status, job["state"]) == (200, "succeeded"), sagan.output
    assert "the worker died (SIGKILL)" in sagan.output

    os.kill(parts["redis"], signal.SIGKILL)
    await sagan.says("Redis died (SIGKILL); it starts again on its data")
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{sagan.port}") as client:
        with anyio.fail_after(10):
            while (reply := await client.get(f"/jobs/{job['id']}")).status_code == 503:  # noqa: ASYNC110
                await anyio.sleep(0.1)
        assert reply.json()["state"] == "succeeded"

    second = Sagan(tmp_path, checkpoints)
    assert await asyncio.to_thread(second.process.wait, 30) == 1
    assert "Another sagan serves from" in second.output
    third = Sagan(tmp_path, checkpoints, port=sagan.port)
    assert await asyncio.to_thread(third.process.wait, 30) == 1
    assert "cannot be listened on" in (tmp_path / f"sagan-{sagan.port}.log").read_text()

    pids = list(sagan.parts().values())
    assert await sagan.stop(signal.SIGINT) == 0
    await are_gone(pids)


async def test_kill_9_leaves_nothing_running_and_nothing_lost(
    sagan: Sagan, tmp_path: Path, checkpoints: Path
) -> None:
    await sagan.says("ready with tiny")
    status, job = await sagan.generate(seed=5)
    assert status == 200
    pids = list(sagan.parts().values())
    sagan.process.kill()
    await are_gone(pids)
    again = Sagan(tmp_path, checkpoints, port=sagan.port)
    await again.says("ready with tiny")
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{again.port}") as client:
        assert (await client.get(f"/jobs/{job['id']}")).json()["state"] == "succeeded"
    closed = signal.getsignal(signal.SIGHUP) != signal.SIG_IGN  # these tests do not run under nohup
    assert await again.stop(signal.SIGHUP if closed else signal.SIGTERM) == 0
    assert "stopped; jobs that were waiting are kept" in again.output


async def test_without_a_model_it_ends_and_says_what_to_do(tmp_path: Path) -> None:
    sagan = Sagan(tmp_path, tmp_path / "no-checkpoints")
    assert await asyncio.to_thread(sagan.process.wait, 60) == 1
    assert "sagan train" in sagan.output
    assert "Traceback" not in sagan.output
