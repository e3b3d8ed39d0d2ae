"""The parts of uvicorn's protocol that ours is made of."""

from __future__ import annotations

import asyncio
import re
import resource
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from app.entrance import Connection, Doorkeeper
from app.settings import Settings
from app.work import resting


def doorkeeper(**settings: object) -> Doorkeeper:
    counts = CollectorRegistry()
    return Doorkeeper(
        Settings(**settings),  # type: ignore[arg-type]
        on_stop=lambda: None,
        ended=Counter("ended", "By reason", ["reason"], registry=counts),
        shed=Counter("shed", "Requests", registry=counts),
        refusals=Counter("refusals", "By problem", ["reason"], registry=counts),
    )


async def test_uvicorn_calls_what_ours_overrides() -> None:
    for name in (
        *("connection_made", "connection_lost", "data_received", "pause_writing", "resume_writing"),
        *("on_headers_complete", "on_body", "on_message_complete"),
        *("on_response_complete", "send_400_response", "shutdown", "_unsupported_upgrade_warning"),
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


async def test_a_crowd_that_stands_is_refused_but_may_ask_how_we_are(monkeypatch: pytest.MonkeyPatch) -> None:
    door = doorkeeper()
    assert await asked(door) == {"/": 200, "/jobs": 200, "/health/live": 200, "/metrics": 200}
    monkeypatch.setattr(door.work, "is_too_much", lambda: True)
    # on one connection: a refusal leaves it open
    assert await asked(door) == {"/": 503, "/jobs": 503, "/health/live": 200, "/metrics": 200}


async def test_a_request_is_in_work_until_its_answer_unless_it_rests_or_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    door = doorkeeper()
    seen: list[tuple[int, int, int]] = []

    async def look() -> None:
        before = door.work.count
        with resting():
            during = door.work.count
        seen.append((before, during, door.work.count))

    await asked(door, look)
    assert seen == [(1, 0, 1)] * 4
    monkeypatch.setattr(door.work, "is_too_much", lambda: True)
    began: list[object] = []
    monkeypatch.setattr(door.work, "begin", began.append)
    await asked(door)
    assert (len(began), door.work.count) == (2, 0)


async def test_who_does_not_take_its_answer_is_not_in_work_again() -> None:
    door = doorkeeper()
    config = Config(lambda scope: None, proxy_headers=False)
    connection = Connection(config, ServerState(), {"doorkeeper": door}, asyncio.get_running_loop())
    door.enter(connection, "127.0.0.1")
    connection.resume()
    assert door.work.count == 1
    connection.rest()
    connection.take_by = 10.0  # the client has to take something first
    connection.resume()
    assert door.work.count == 0


async def asked(door: Doorkeeper, look: Callable[[], Awaitable[None]] | None = None) -> dict[str, int]:
    """The statuses of requests, one after the other on one connection. look: called within each."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if look:
            await look()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    config = Config(app, proxy_headers=False, lifespan="off", log_config=None)
    config.load()
    state = ServerState()

    def connect() -> Connection:
        return Connection(config, state, {"doorkeeper": door}, asyncio.get_running_loop())

    server = await asyncio.get_running_loop().create_server(connect, "127.0.0.1", 0)
    found = {}
    async with server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname()[:2])
        for method, path in (("GET", "/"), ("POST", "/jobs"), ("GET", "/health/live"), ("GET", "/metrics")):
            body = "{}" if method == "POST" else ""
            head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
            writer.write((head + body).encode())
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            found[path] = int(head.split()[1])
            await reader.readexactly(int(re.search(r"content-length: (\d+)", head)[1]))  # type: ignore[index]
        writer.close()
    return found
