"""The embedded service starts, serves, restarts a part that dies, and leaves nothing running."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import anyio
import httpx
import pytest

from serve.private_redis import free_port

COMMAND = "import sys; from serve.supervisor import run; sys.exit(run(port={port}))"


class Sagan:
    """The embedded service in a process of its own."""

    def __init__(self, folder: Path, checkpoints: Path, port: int | None = None) -> None:
        self.port = free_port() if port is None else port
        self._log = folder / f"sagan-{self.port}.log"
        env = {name: value for name, value in os.environ.items() if not name.startswith("SAGAN_")}
        env |= {
            "SAGAN_CHECKPOINTS": str(checkpoints),
            "SAGAN_STATE_DIR": str(folder / "state"),
            "SAGAN_THREADS": "1",
            "SAGAN_HEARTBEAT_PERIOD": "0.4",
            "SAGAN_WORKER_TTL": "2",
            "PYTHONPATH": str(Path(__file__).parents[2]),
        }
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", COMMAND.format(port=self.port)],
                env=env,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        return self._log.read_text()

    async def says(self, words: str, seconds: float = 60) -> None:
        with anyio.fail_after(seconds):
            while words not in self.output:
                assert self.process.poll() is None, self.output
                await anyio.sleep(0.05)

    def parts(self) -> dict[str, int]:
        """Its children's process ids, by part."""
        found = {}
        for pid in children(self.process.pid):
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
            found["worker" if b"\0worker\0" in command else "redis"] = pid
        return found

    async def generate(self, **body: object) -> tuple[int, dict[str, object]]:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{self.port}", timeout=40) as client:
            reply = await client.post("/generate/1", json=body, headers={"Prefer": "wait=30"})
            return reply.status_code, json.loads(reply.text)

    async def stop(self, how: signal.Signals) -> int:
        self.process.send_signal(how)
        return await asyncio.to_thread(self.process.wait, 30)


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_running(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


async def are_gone(pids: list[int]) -> None:
    with anyio.fail_after(10):
        while any(is_running(pid) for pid in pids):  # noqa: ASYNC110
            await anyio.sleep(0.05)


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
    assert await again.stop(signal.SIGTERM) == 0


async def test_without_a_model_it_ends_and_says_what_to_do(tmp_path: Path) -> None:
    sagan = Sagan(tmp_path, tmp_path / "no-checkpoints")
    assert await asyncio.to_thread(sagan.process.wait, 60) == 1
    assert "sagan train" in sagan.output
    assert "Traceback" not in sagan.output
