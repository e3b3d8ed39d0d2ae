"""How the API is listened for."""

from __future__ import annotations

import asyncio
import socket
import time

import pytest
import uvloop

from serve.api import ACCEPTS, NotListening, accepting, listening


def test_many_may_come_in_one_turn_of_the_loop() -> None:
    newcomers = 10 * ACCEPTS
    came: list[asyncio.BaseTransport] = []

    class Door(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            came.append(transport)

    async def turns() -> int:
        loop = asyncio.get_running_loop()
        with listening("127.0.0.1", 0) as listener:
            servers = [await loop.create_server(Door, sock=one, backlog=2048) for one in accepting(listener)]
            clients = [socket.create_connection(listener.getsockname(), 5) for _ in range(newcomers)]
            count = 0
            while len(came) < newcomers and count < newcomers:
                count += 1
                time.sleep(0.001)  # noqa: ASYNC251  # a turn in which much is to do
                await asyncio.sleep(0)
            for client in clients:
                client.close()
            for server in servers:
                server.close()
            return count

    # one a turn without the copies; some turns are spent until the first is seen
    assert uvloop.run(turns()) < newcomers / 4


def test_a_port_that_others_have_is_told() -> None:
    with listening("127.0.0.1", 0) as listener:
        listener.listen()
        port = listener.getsockname()[1]
        with (
            pytest.raises(NotListening, match=f"127.0.0.1:{port} .*in use.*Choose another port"),
            listening("127.0.0.1", port),
        ):
            pass
