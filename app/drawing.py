"""Pixels that this process computes: bounded in memory, threads and time, and ended with their client.

A drawing is an iterator over the pieces of its file. Each piece is computed in a thread, while the event loop
goes on, and sent before the next is begun: no file is ever whole in memory, drawings take turns piece by
piece, and one whose client has left ends after the piece at hand. An empty piece is a pause between steps.
"""

import asyncio
import logging
import math
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from time import monotonic
from typing import Final, ParamSpec, TypeVar

import anyio.to_thread
from anyio import CapacityLimiter
from fastapi import Request, Response
from starlette.types import Receive, Scope, Send

from app.disconnect import while_connected
from app.errors import Busy, ClientLeft, TooLarge

log = logging.getLogger("sagan.app")

P = ParamSpec("P")
T = TypeVar("T")

SHORT: Final = 256 * 1024  # bytes of an answer that is sent whole, with its length
PART: Final = 64 * 1024  # bytes handed to the server at once
PATIENCE: Final = 30.0  # seconds that a client may be slow, and then it must read
SLOWEST: Final = 16 * 1024  # bytes a second on average
MEGABYTE: Final = 2**20


class Drawings:
    """Room for drawings. One that finds none waits for its turn; where too many wait it is refused."""

    def __init__(self, *, memory: int, at_once: int, waiting: int) -> None:
        """memory: bytes that all drawings may use together. at_once: threads. waiting: drawings, at most."""
        self._memory = memory
        self._free = memory
        self._threads = CapacityLimiter(at_once)
        self._most_waiting = waiting
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._seconds = 0.0  # of a drawing, over the last few

    @asynccontextmanager
    async def room(self, size: int) -> AsyncIterator[None]:
        """Room for a drawing that uses `size` bytes of memory. Raises Busy, or TooLarge if it never fits."""
        if size > self._memory:
            raise TooLarge(
                f"This drawing needs {size / MEGABYTE:.0f} MB of memory, and drawings may use "
                f"{self._memory / MEGABYTE:.0f} MB here. Ask for a smaller size."
            )
        await self._enter(size)
        began = monotonic()
        try:
            yield
        finally:
            took = monotonic() - began
            self._seconds = took if not self._seconds else 0.8 * self._seconds + 0.2 * took
            self._free += size
            self._let_in()

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The result of a function that runs in one of the threads."""
        return await anyio.to_thread.run_sync(lambda: function(*args, **kwargs), limiter=self._threads)

    async def pieces(self, drawing: Iterator[bytes]) -> AsyncIterator[bytes]:
        """The pieces of a drawing that are not empty, each computed in one of the threads."""
        while (piece := await self.run(next, drawing, None)) is not None:
            if piece:
                yield piece

    async def _enter(self, size: int) -> None:
        if not self._waiting and size <= self._free:
            self._free -= size
            return
        if len(self._waiting) >= self._most_waiting:
            turns = self._seconds * len(self._waiting) / self._threads.total_tokens
            raise Busy(
                f"{len(self._waiting)} drawings are waiting and no more are taken. Try again a little later.",
                retry_after=min(60, max(1, math.ceil(turns))),
            )
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((size, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._free += size  # its turn came just as its client left
            else:
                with suppress(ValueError):
                    self._waiting.remove((size, turn))
            self._let_in()
            raise

    def _let_in(self) -> None:
        while self._waiting and self._waiting[0][0] <= self._free:
            size, turn = self._waiting.popleft()
            if not turn.done():
                self._free -= size
                turn.set_result(None)


@dataclass(frozen=True)
class Drawn:
    """A drawing that has begun."""

    pieces: Iterator[bytes]
    headers: dict[str, str] = field(default_factory=dict)  # those that only the drawing knows


class DrawnResponse(Response):
    """Waits for room, reads and draws, and sends the pieces as they come. Ends with its client."""

    def __init__(
        self,
        request: Request,
        drawings: Drawings,
        size: int,
        begin: Callable[[], Awaitable[Drawn]],
        *,
        headers: dict[str, str],
        media_type: str = "image/png",
    ) -> None:
        """size: bytes of memory that it uses at most. begin: reads what is drawn; called in the room."""
        super().__init__(media_type=media_type, headers=headers)
        del self.headers["Content-Length"]  # of an empty answer
        self._request = request
        self._drawings = drawings
        self._size = size
        self._begin = begin
        self._started = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await while_connected(self._request, self._answer(send))
        except ClientLeft:
            if not self._started:
                raise  # so that it is counted as 499
        except TimeoutError:
            if not self._started:
                raise
            log.info("a client read a drawing too slowly and was left")

    async def _answer(self, send: Send) -> None:
        async with self._drawings.room(self._size):
            drawn = await self._begin()
            self.headers.update(drawn.headers)
            pieces = self._drawings.pieces(drawn.pieces)
            first = b""
            async for piece in pieces:
                first += piece
                if len(first) > SHORT:
                    break
            else:
                self.headers["Content-Length"] = str(len(first))
            self._started = True
            await send(
                {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
            )
            pace = _Pace(send)
            await pace.send(first)
            async for piece in pieces:
                await pace.send(piece)
            await send({"type": "http.response.body", "body": b"", "more_body": False})


class _Pace:
    """Sends to a client that must keep reading: what it has not read stays in memory."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._left = PATIENCE  # seconds

    async def send(self, piece: bytes) -> None:
        """Raises TimeoutError once the client has been too slow for too long."""
        for start in range(0, len(piece), PART):
            part = piece[start : start + PART]
            began = monotonic()
            async with asyncio.timeout(self._left):
                await self._send({"type": "http.response.body", "body": part, "more_body": True})
            self._left = min(PATIENCE, self._left - (monotonic() - began) + len(part) / SLOWEST)
