"""`sagan api` as a process of its own, over a Redis and a worker that beats and takes nothing."""

from __future__ import annotations

import json
import resource
import socket
import subprocess
import time
import urllib.error
import urllib.request
from datetime import UTC, datetime
from pathlib import Path

from app.settings import Settings
from forked import Python
from jobs.job import ModelInfo, WorkerInfo
from jobs.worker_store import WorkerStore
from serve.private_redis import free_port

ROOT = Path(__file__).parents[2]


def beat(redis_url: str, namespace: str) -> None:
    """One heartbeat that lasts: jobs are taken in, and wait for ever."""
    store = WorkerStore(
        Settings(redis_url=redis_url, namespace=namespace, worker_ttl=600), "sleeper", lambda: False
    )
    now = datetime.now(UTC)
    model = ModelInfo("tiny", "0" * 64, "float32", 32, ("cat", "dog"), ())
    store.beat(WorkerInfo("sleeper", "cpu", now, now, (model,)))
    store.close()


def until_it_listens(port: int, process: Python | subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 5).close()
            return
        except OSError:
            ended = process.returncode if isinstance(process, Python) else process.poll()
            assert ended is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)


class Api:
    """`sagan api` with settings by name."""

    def __init__(
        self,
        folder: Path,
        redis_url: str,
        *words: str,
        files: int | None = None,
        before: str = "",
        **settings: object,
    ) -> None:
        """files: the files that it may open. before: statements that it runs first."""
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        env = {f"SAGAN_{name.upper()}": str(value) for name, value in settings.items()}
        env |= {"SAGAN_REDIS_URL": redis_url, "SAGAN_WORKER_TTL": "600", "PORT": str(self.port)}
        if files is not None:
            before += f"\nimport resource\nresource.setrlimit(resource.RLIMIT_NOFILE, ({files}, {files}))"
        log = folder / f"api-{self.port}.log"
        self.process = Python(["-c", f"{before}\nfrom cli import app\napp()", "api", *words], env, log)
        try:
            until_it_listens(self.port, self.process, log)
        except BaseException:
            self.process.close()  # whoever asked for it has nothing to close
            raise

    @property
    def output(self) -> str:
        return self.process.output

    @property
    def memory(self) -> int:
        """Bytes of its own in memory."""
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * resource.getpagesize()

    def get(self, path: str, **headers: str) -> tuple[int, str]:
        """Status and text of an answer."""
        request = urllib.request.Request(self.url + path, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=20) as reply:
                return reply.status, reply.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def counted(self, name: str) -> float:
        """A series of /metrics, 0 before it is there."""
        lines = [line for line in self.get("/metrics")[1].splitlines() if line.startswith(f"{name} ")]
        return float(lines[0].rsplit(" ", 1)[1]) if lines else 0.0

    def job(self) -> dict[str, object]:
        """A job that waits for ever."""
        request = urllib.request.Request(f"{self.url}/generate/cat", method="POST")
        with urllib.request.urlopen(request, timeout=20) as reply:
            found: dict[str, object] = json.loads(reply.read())
            return found

    def close(self) -> None:
        try:
            if self.process.returncode is None:
                self.process.stop()
        finally:
            self.process.close()
