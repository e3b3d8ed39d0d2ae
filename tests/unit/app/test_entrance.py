"""The parts of uvicorn's protocol that ours is made of."""

from __future__ import annotations

import asyncio
import resource
import time
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from app.entrance import Connection, Doorkeeper
from app.settings import Settings


def doorkeeper(**settings: object) -> Doorkeeper:
    ended = Counter("ended", "By reason", ["reason"], registry=CollectorRegistry())
    return Doorkeeper(Settings(**settings), on_stop=lambda: None, ended=ended)  # type: ignore[arg-type]


async def test_uvicorn_calls_what_ours_overrides() -> None:
    for name in (
        *("connection_made", "connection_lost", "data_received", "pause_writing", "resume_writing"),
        *("on_headers_complete", "on_body", "on_message_complete"),
        *("on_response_complete", "send_400_response", "shutdown"),
    ):
        assert getattr(Connection, name) is not getattr(HttpToolsProtocol, name)
    config = Config(lambda scope: None, proxy_headers=False)
    state = {"doorkeeper": doorkeeper(idle_timeout=42)}
    connection = Connection(config, ServerState(), state, asyncio.get_running_loop())
    assert connection.timeout_keep_alive == 42  # uvicorn's own timer does not cut ours short
    for name in ("pipeline", "headers", "cycle", "app", "client", "transport"):
        assert hasattr(connection, name)


@pytest.mark.parametrize(
    ("files", "asked", "most"),
    [(1024, 8192, 768), (256, 8192, 192), (65536, 8192, 8192), (resource.RLIM_INFINITY, 9, 9), (1024, 5, 5)],
)
def test_connections_leave_files_for_others(
    monkeypatch: pytest.MonkeyPatch, files: int, asked: int, most: int
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (files, files))
    door = doorkeeper(max_connections=asked)
    assert (door.most, door.share) == (most, most // 2)


async def test_a_process_that_is_late_takes_no_more_requests_until_it_is_not() -> None:
    door = doorkeeper()
    for late, expected in ((0.0, (200, 200)), (1.0, (503, 200)), (0.0, (200, 200))):
        door.late = late
        assert await statuses(door) == expected


async def test_it_is_measured_how_late_a_process_is() -> None:
    door = doorkeeper()
    async with door.watching():
        await asyncio.sleep(0.15)
        time.sleep(0.8)  # noqa: ASYNC251  # as too many requests would
        measured = []
        for _ in range(10):
            await asyncio.sleep(0)
            measured.append(door.late)
    assert max(measured) > 0.5


async def statuses(door: Doorkeeper) -> tuple[int, int]:
    """The statuses of GET / and GET /health/live, one after the other on one connection."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    config = Config(app, proxy_headers=False, lifespan="off", log_config=None)
    config.load()
    state = ServerState()

    def connect() -> Connection:
        return Connection(config, state, {"doorkeeper": door}, asyncio.get_running_loop())

    server = await asyncio.get_running_loop().create_server(connect, "127.0.0.1", 0)
    found = []
    async with server:
        for path in ("/", "/health/live"):
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname()[:2])
            writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
            found.append(int((await reader.read()).split(b" ", 2)[1]))
            writer.close()
    return found[0], found[1]
