"""A small HTTP/1.1 client: kept connections over an asyncio Protocol, answers parsed by httptools.

A load generator shares its processors with the service it measures. This client takes 0.1 ms of CPU a
request, httpx 3 to 8 ms; an image costs the service 4 to 6 (docs/decisions/load-generator.md).
"""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast
from urllib.parse import SplitResult, urlsplit

import httptools


class BenchError(Exception):
    """`sagan bench` cannot do as asked; the message says why, in one line."""


# ConnectionError (Python's)
# └── Broken   the connection ended, or carried something else than HTTP, before the answer was whole


class Broken(ConnectionError):
    """No whole answer came over this connection."""


@dataclass(frozen=True)
class Address:
    """Where connections go."""

    host: str
    port: int
    secure: bool  # TLS
    path: str  # prefix of every path; "" or "/something"

    @classmethod
    def of(cls, url: str) -> Address:
        """The address in an http:// or https:// URL. Raises BenchError for any other."""
        try:
            parts: SplitResult = urlsplit(url)
            port = parts.port
        except ValueError as wrong:
            raise BenchError(f"{url} is not a URL ({wrong}); write it as http://host:port.") from None
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise BenchError(f"{url!r} is no service's address; write it as http://host:port.")
        secure = parts.scheme == "https"
        return cls(parts.hostname, port or (443 if secure else 80), secure, parts.path.rstrip("/"))

    @property
    def authority(self) -> str:
        """The Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.secure else 80) else f"{host}:{self.port}"


def reason(error: OSError) -> str:
    """Why there is no connection, in the same words on every event loop."""
    if error.errno is not None and error.errno > 0:
        return os.strerror(error.errno)
    return error.strerror or str(error)  # getaddrinfo's numbers are negative and not in strerror's table


class Connection(asyncio.Protocol):
    """One kept connection; it carries one request at a time."""

    def __init__(self, ended: Callable[[Connection], None]) -> None:
        """ended: called when the connection ends."""
        self._ended = ended
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._body: list[bytes] = []
        self.heard = False  # whether any byte of the present answer has come
        self.usable = True

    def ask(self, request: bytes) -> asyncio.Future[tuple[int, bytes]]:
        """Send the bytes of a whole request; its answer's (status, body), or the exception Broken."""
        self._answer = asyncio.get_running_loop().create_future()
        self._body = []
        self.heard = False
        self._transport.write(request)
        return self._answer

    def close(self) -> None:
        """Close it at once, whatever is on its way."""
        self.usable = False
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's has its methods, but not its class

    def data_received(self, data: bytes) -> None:
        self.heard = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as wrong:
            self._break(Broken(f"its answer is not HTTP/1.1 ({wrong})"))

    def connection_lost(self, exc: Exception | None) -> None:
        self._break(Broken("it closed the connection"))

    # httptools calls these; without on_header, as a call for each header would cost more than the rest

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < 200:
            return  # 100 Continue and the like come before the answer
        self.usable = self.usable and self._parser.should_keep_alive()
        answer, self._answer = self._answer, None
        if answer is not None and not answer.done():
            answer.set_result((status, b"".join(self._body)))

    def _break(self, why: Broken) -> None:
        self.usable = False
        self._transport.abort()
        answer, self._answer = self._answer, None
        if answer is not None and not answer.done():
            answer.set_exception(why)
        self._ended(self)


class Client:
    """Connections to one server, opened on demand and kept; the last used is the next to be used."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._idle: list[Connection] = []
        self._tls = ssl.create_default_context() if address.secure else None

    async def ask(self, request: bytes, seconds: float) -> tuple[int, bytes]:
        """Status and body of the answer, whatever the status.

        Raises TimeoutError after `seconds`, OSError without a connection, and Broken.
        """
        async with asyncio.timeout(seconds):
            if self._idle:
                connection = self._idle.pop()
                try:
                    return await self._ask(connection, request)
                except Broken:
                    if connection.heard:
                        raise
                    # the server closed it while it was idle, as every server may: ask over a new one
            return await self._ask(await self._open(), request)

    def request(self, method: str, path: str, headers: dict[str, str], body: bytes = b"") -> bytes:
        """The bytes of a request."""
        fields = {"Host": self._address.authority, "Content-Length": str(len(body)), **headers}
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        return f"{method} {self._address.path}{path} HTTP/1.1\r\n{head}\r\n".encode() + body

    def close(self) -> None:
        idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    async def _ask(self, connection: Connection, request: bytes) -> tuple[int, bytes]:
        try:
            answer = await connection.ask(request)
        except BaseException:
            connection.close()  # its answer may still come, and would be taken for the next one's
            raise
        if connection.usable:
            self._idle.append(connection)
        else:
            connection.close()
        return answer

    async def _open(self) -> Connection:
        loop = asyncio.get_running_loop()
        address = self._address
        _, connection = await loop.create_connection(
            lambda: Connection(self._drop), address.host, address.port, ssl=self._tls
        )
        return connection

    def _drop(self, connection: Connection) -> None:
        if connection in self._idle:
            self._idle.remove(connection)
