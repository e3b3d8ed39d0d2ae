"""SIGTERM while clients wait: each hears what has become of its job."""

from __future__ import annotations

import http.client
import json
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from redis import Redis

from forked import Python
from serve.private_redis import free_port
from served import until_it_listens

if TYPE_CHECKING:
    from tests.integration.entrance.conftest import Start


class Waiter(threading.Thread):
    """One client that asks and waits for its answer."""

    def __init__(self, port: int, method: str, path: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(daemon=True)
        self._client = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        self._asks = (method, path, None, headers or {})
        self.headers: dict[str, str] = {}
        self.status = 0
        self.text = ""
        self.start()

    def run(self) -> None:
        self._client.request(*self._asks)
        reply = self._client.getresponse()
        self.status, self.headers = reply.status, {k.lower(): v for k, v in reply.getheaders()}
        self.text = reply.read().decode()
        self._client.close()


def waiters(redis_url: str, port: int, count: int) -> list[Waiter]:
    """So many clients that wait for a job each; every job is recorded."""
    with Redis.from_url(redis_url) as redis:
        before = redis.zcard("sagan:queued")
        clients = [Waiter(port, "POST", "/generate/cat", {"Prefer": "wait=50"}) for _ in range(count)]
        deadline = time.monotonic() + 30
        while redis.zcard("sagan:queued") < before + count:
            assert time.monotonic() < deadline
            time.sleep(0.02)
    return clients


def assert_told(clients: list[Waiter], redis_url: str) -> None:
    for client in clients:
        client.join(20)
        assert client.status == 202, client.text
        job = json.loads(client.text)
        assert job["state"] == "queued"
        assert client.headers["location"] == job["links"]["self"] == f"/jobs/{job['id']}"
        with Redis.from_url(redis_url) as redis:
            assert redis.hget(f"sagan:job:{job['id']}", "state") == b"queued"


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_sagan_api_tells_who_waits(start: Start, redis_url: str, how: signal.Signals) -> None:
    api = start()
    clients = waiters(redis_url, api.port, 20)
    stream = Waiter(api.port, "GET", str(api.job()["links"]["events"]))  # type: ignore[index]
    time.sleep(0.3)  # it has begun, or is told like a newcomer
    began = time.monotonic()
    api.process.send(how)
    assert_told(clients, redis_url)
    assert api.process.wait(20) in (0, -how)
    assert time.monotonic() - began < 4  # not the grace that open streams once took
    stream.join(10)
    assert "event: end" not in stream.text
    assert "Traceback" not in api.output


def test_every_process_of_several_tells_who_waits(start: Start, redis_url: str) -> None:
    api = start("--workers", "2")
    clients = waiters(redis_url, api.port, 20)
    api.process.send(signal.SIGTERM)
    assert_told(clients, redis_url)


def test_sagan_serve_tells_who_waits(tmp_path: Path, redis_url: str) -> None:
    port = free_port()
    sleeper = "import sys; from serve.supervisor import run; sys.exit(run(port={}, worker_command={}))"
    command = sleeper.format(port, [sys.executable, "-c", "import time; time.sleep(600)"])
    env = {"SAGAN_REDIS_URL": redis_url, "SAGAN_WORKER_TTL": "600"}
    serving = Python(["-c", command], env, tmp_path / "log")
    try:
        until_it_listens(port, serving, tmp_path / "log")
        clients = waiters(redis_url, port, 10)
        serving.send(signal.SIGTERM)
        assert_told(clients, redis_url)
        assert serving.wait(30) == 0, serving.output
    finally:
        serving.close()


def test_what_cannot_end_in_time_is_answered_too(tmp_path: Path) -> None:
    """An app of ours with a route that never ends, under a server without our protocol."""
    port = free_port()
    code = f"""if True:
        import asyncio, uvicorn
        from app.main import create_app
        app = create_app()
        async def stuck():
            await asyncio.sleep(600)
        app.add_api_route("/stuck", stuck)
        uvicorn.run(app, port={port}, timeout_graceful_shutdown=1, ws="none")
    """
    serving = Python(["-c", code], {}, tmp_path / "log")
    try:
        until_it_listens(port, serving, tmp_path / "log")
        client = Waiter(port, "GET", "/stuck")
        time.sleep(0.5)
        serving.send(signal.SIGTERM)
        client.join(20)
        assert client.status == 503
        assert json.loads(client.text)["type"] == "urn:sagan:problem:stopping"
        assert client.headers["x-request-id"]
    finally:
        serving.close()
