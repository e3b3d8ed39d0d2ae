"""`sagan serve` in a process of its own, as an operator meets it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import anyio
import httpx

from serve.private_redis import free_port

STATE = 'an operator\'s "state" of\nmany läyers'
COMMAND = "import sys; from serve.supervisor import run; sys.exit(run(port={port}))"


class Sagan:
    """The embedded service in a process of its own."""

    def __init__(
        self,
        folder: Path,
        checkpoints: Path,
        port: int | None = None,
        state: Path | None = None,
        log: Path | None = None,
        **env: str,
    ) -> None:
        """state: folder of the data; None: one of an odd name in `folder`. log: None: a file in `folder`.

        env: beside the tests' own.
        """
        self.port = free_port() if port is None else port
        self._log = folder / f"sagan-{self.port}.log" if log is None else log
        self.state = folder / STATE if state is None else state
        ours = {name: value for name, value in os.environ.items() if not name.startswith("SAGAN_")}
        ours |= {
            "SAGAN_CHECKPOINTS": str(checkpoints),
            "SAGAN_STATE_DIR": str(self.state),
            "SAGAN_THREADS": "1",
            "SAGAN_HEARTBEAT_PERIOD": "0.4",
            "SAGAN_WORKER_TTL": "2",
            "PYTHONPATH": str(Path(__file__).parents[2]),
        }
        with self._log.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-c", COMMAND.format(port=self.port)],
                env=ours | env,
                stdout=out,
                stderr=out,
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
