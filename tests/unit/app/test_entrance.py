"""The parts of uvicorn's protocol that ours is made of."""

from __future__ import annotations

import asyncio
import resource

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
