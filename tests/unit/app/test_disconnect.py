"""A wait whose client goes away: a real server, and a socket that closes."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import uvicorn
from fastapi import Request

from app.disconnect import while_connected
from app.errors import ClientLeft
from app.main import create_app
from app.settings import Settings
from jobs.key_stores import KeyStore


class Waiting:
    """The API with one route more, which waits until it is told to go on."""

    def __init__(self, keys: KeyStore) -> None:
        self.began = asyncio.Event()
        self.go_on = asyncio.Event()
        self.ended: asyncio.Queue[str] = asyncio.Queue()
        self.app = create_app(Settings(redis_url="redis://127.0.0.1:1/0"), keys)
        self.app.add_api_route("/wait", self.wait, methods=["GET", "POST"])

    async def wait(self, request: Request) -> str:
        body = await request.body()
        try:
            await while_connected(request, self.work())
        except ClientLeft:
            self.ended.put_nowait("left")
            raise
        self.ended.put_nowait("answered")
        return body.decode()

    async def work(self) -> None:
        self.began.set()
        try:
            await self.go_on.wait()
        except asyncio.CancelledError:
            self.ended.put_nowait("cancelled")
            raise

    @asynccontextmanager
    async def served(self) -> AsyncIterator[int]:
        """The port it is served at, in this loop."""
        server = uvicorn.Server(uvicorn.Config(self.app, log_level="warning", ws="none"))
        with socket.create_server(("127.0.0.1", 0)) as listener:
            serving = asyncio.create_task(server.serve(sockets=[listener]))
            try:
                while not server.started:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
                yield listener.getsockname()[1]
            finally:
                self.go_on.set()  # the server ends when its requests have
                server.should_exit = True
                await serving


POST = b"POST /wait HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n\r\nbody"
GET = b"GET /wait HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.mark.parametrize("request_bytes", [POST, GET], ids=["POST", "GET"])
async def test_a_wait_ends_with_its_connection_and_leaves_nothing(
    keys: KeyStore, request_bytes: bytes
) -> None:
    waiting = Waiting(keys)
    async with waiting.served() as port:
        before = asyncio.all_tasks()
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request_bytes)
        await waiting.began.wait()
        assert waiting.ended.empty()
        writer.close()
        assert [await asyncio.wait_for(waiting.ended.get(), 5) for _ in range(2)] == ["cancelled", "left"]
        await writer.wait_closed()
        await _none_but(before)
        counted = waiting.app.state.metrics.registry.get_sample_value
        labels = {"method": request_bytes[:4].decode().strip(), "route": "/wait", "status": "499"}
        assert counted("sagan_http_requests_total", labels) == 1


async def test_who_stays_is_answered_and_may_ask_again_on_the_same_connection(keys: KeyStore) -> None:
    waiting = Waiting(keys)
    async with waiting.served() as port:
        before = asyncio.all_tasks()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(2):
            waiting.began.clear()
            waiting.go_on.clear()
            writer.write(POST)
            await waiting.began.wait()
            assert len(asyncio.all_tasks() - before) == 1  # nobody looks for the client yet
            waiting.go_on.set()
            assert b" 200 " in await reader.readuntil(b"\r\n\r\n")
            assert await reader.readexactly(6) == b'"body"'
            assert await waiting.ended.get() == "answered"
        await _none_but(before)
        writer.close()
        await writer.wait_closed()


async def _none_but(before: set[asyncio.Task[object]]) -> None:
    """The request that has been answered may take a moment to end."""
    async with asyncio.timeout(5):
        while asyncio.all_tasks() - before:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
