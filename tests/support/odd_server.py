"""A small HTTP server whose behaviour each test decides."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from loadtest.client import Address

PNG = b"\x89PNG\r\n\x1a\n"
Answer = Callable[[bytes], Awaitable[bytes | None]]  # body of a request -> the whole answer; None: hang up


def http(status: int = 200, body: bytes = PNG, more: str = "") -> bytes:
    return f"HTTP/1.1 {status} Said\r\nContent-Length: {len(body)}\r\n{more}\r\n".encode() + body


@dataclass
class Server:
    """What it received, and its address."""

    address: Address
    heads: list[str] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    connections: int = 0
    open: set[asyncio.StreamWriter] = field(default_factory=set)

    @property
    def url(self) -> str:
        return f"http://{self.address.authority}"

    def hang_up(self) -> None:
        """Close the connections that are open, as a server does with idle ones."""
        for writer in self.open:
            writer.close()


@asynccontextmanager
async def serving(answer: Answer) -> AsyncIterator[Server]:
    """A server on a free port."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        found.connections += 1
        found.open.add(writer)
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                length = re.search(r"(?i)content-length: (\d+)", head)
                body = await reader.readexactly(int(length[1])) if length else b""
                found.heads.append(head)
                found.bodies.append(body)
                said = await answer(body)
                writer.write(said or b"")
                if said is None or b"Connection: close" in said:
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            return  # the client is done
        finally:
            found.open.discard(writer)
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    found = Server(Address("127.0.0.1", server.sockets[0].getsockname()[1], secure=False, path=""))
    async with server:
        yield found


async def at_once(body: bytes) -> bytes:
    """A PNG, whatever was asked."""
    return http()
