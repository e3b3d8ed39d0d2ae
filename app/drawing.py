"""Pixels that this process computes: bounded in memory, threads and time, and ended with their client.

A drawing is an iterator over the pieces of its file. Each piece is computed in a thread, while the event loop
goes on, and sent before the next is begun: no file is ever whole in memory, and a drawing whose client has
left ends after the piece at hand. An empty piece is a pause between steps.
"""

import asyncio
import functools
import heapq
import itertools
import logging
import os
import threading
from collections import Counter, deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field
from math import ceil, inf
from time import monotonic
from typing import Final, ParamSpec, TypeVar

import anyio
import anyio.lowlevel
from fastapi import Request, Response
from starlette.types import Receive, Scope, Send

from app.disconnect import while_connected
from app.errors import Busy, ClientLeft, TooLarge
from app.work import resting

log = logging.getLogger("sagan.app")

P = ParamSpec("P")
T = TypeVar("T")

SHORT: Final = 256 * 1024  # bytes of an answer that is sent whole, with its length
PART: Final = 64 * 1024  # bytes handed to the server at once
STANDS: Final = 2.0  # seconds that one has waited already, after which no more are taken
LONGEST: Final = 10.0  # seconds that a drawing may wait for those before it; beyond, it is refused
PATIENCE: Final = 30.0  # seconds that a client may be slow, and then it must read
SLOWEST: Final = 16 * 1024  # bytes a second on average
MEGABYTE: Final = 2**20


class Place:
    """A drawing's place among the others: what it computes waits for what those before it compute."""

    def __init__(self, drawings: "Drawings", number: int, begin_by: float) -> None:
        self._drawings = drawings
        self.number = number
        self.begin_by: float | None = begin_by  # by the loop's clock; None: it has begun
        self.seconds = 0.0  # that it has computed

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The result of a function that runs in one of the threads."""
        return await self._drawings.run(self, functools.partial(function, *args, **kwargs))

    async def pieces(self, drawing: Iterator[bytes]) -> AsyncGenerator[bytes]:
        """The pieces of a drawing that are not empty, each computed in one of the threads."""
        while (piece := await self.run(next, drawing, None)) is not None:
            if piece:
                yield piece


class Drawings:
    """Room for drawings. One that finds none waits for its turn; where too many wait it is refused."""

    def __init__(self, *, memory: int, at_once: int, most: int) -> None:
        """memory: bytes that all drawings may use together. at_once: threads. most: drawings, those that wait
        included."""
        self._memory = memory
        self._free = memory
        self._at_once = at_once
        self._most = most
        self._threads = ThreadPoolExecutor(at_once, "drawing", initializer=_step_back)
        self._idle = at_once  # threads
        self._turns: list[tuple[int, asyncio.Future[None]]] = []  # heap: those that wait for a thread
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()  # those that wait for memory
        self._numbers = itertools.count()
        self._not_begun: dict[int, float] = {}  # number -> since when it waits; the longest first
        self._here: Counter[str] = Counter()  # drawings, by caller
        self._seconds = 0.0  # of computing a drawing, over the last few

    def check(self, caller: str) -> None:
        """Raise Busy where one more drawing would be refused: before anything is read for it."""
        here, own = self._here.total(), self._here[caller]
        wait = self._seconds * here / self._at_once
        retry_after = min(60, max(1, ceil(wait / 2)))
        waited = monotonic() - next(iter(self._not_begun.values()), inf)
        if here >= self._most or waited > STANDS or (here >= self._at_once and wait > LONGEST):
            raise Busy(
                f"{here} drawings are waiting and no more are taken. Try again a little later.",
                retry_after=retry_after,
            )
        # else whoever reads slowly could hold all places
        if own >= max(1, self._most // 2):
            raise Busy(
                f"{own} drawings of yours are not at their end, and others need places as well. "
                "Read them first, or try again a little later.",
                retry_after=retry_after,
            )

    @asynccontextmanager
    async def room(self, size: int, caller: str) -> AsyncIterator[Place]:
        """Room for a drawing that uses `size` bytes of memory. Raises Busy, or TooLarge if it never fits."""
        if size > self._memory:
            raise TooLarge(
                f"This drawing needs {size / MEGABYTE:.0f} MB of memory, and drawings may use "
                f"{self._memory / MEGABYTE:.0f} MB here. Ask for a smaller size."
            )
        self.check(caller)
        self._here[caller] += 1
        number = next(self._numbers)
        self._not_begun[number] = monotonic()
        try:
            begin_by = asyncio.get_running_loop().time() + LONGEST
            with resting():
                async with _told_as_busy(begin_by):
                    await self._enter(size)
            place = Place(self, number, begin_by)
            try:
                yield place
            finally:
                took = place.seconds
                self._seconds = took if not self._seconds else 0.8 * self._seconds + 0.2 * took
                self._free += size
                self._let_in()
        finally:
            self._not_begun.pop(number, None)
            self._here[caller] -= 1
            if not self._here[caller]:
                del self._here[caller]

    async def run(self, place: Place, function: Callable[[], T]) -> T:
        """The result of a function that runs in one of the threads, in the turn of the drawing."""
        with resting():
            if place.begin_by is None:
                await self._turn(place.number)
            else:
                async with _told_as_busy(place.begin_by):
                    await self._turn(place.number)
                place.begin_by = None
                self._not_begun.pop(place.number, None)
            began = monotonic()
            try:
                return await _to_its_end(asyncio.get_running_loop().run_in_executor(self._threads, function))
            finally:
                place.seconds += monotonic() - began
                self._idle += 1
                self._next_turn()

    def close(self) -> None:
        """End the threads once the pieces at hand are computed."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _turn(self, number: int) -> None:
        """Take a thread. The drawing that began first comes first: all in turns would all end late."""
        if not self._turns and self._idle:
            self._idle -= 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._turns, (number, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._idle += 1
                self._next_turn()
            raise

    def _next_turn(self) -> None:
        while self._turns and self._idle:
            _, turn = heapq.heappop(self._turns)
            if not turn.done():
                self._idle -= 1
                turn.set_result(None)

    async def _enter(self, size: int) -> None:
        if not self._waiting and size <= self._free:
            self._free -= size
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((size, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._free += size  # its turn came just as its client left
            self._let_in()
            raise

    def _let_in(self) -> None:
        while self._waiting and (self._waiting[0][1].done() or self._waiting[0][0] <= self._free):
            size, turn = self._waiting.popleft()
            if not turn.done():
                self._free -= size
                turn.set_result(None)


@asynccontextmanager
async def _told_as_busy(until: float) -> AsyncIterator[None]:
    """Raises Busy where what is inside lasts longer. until: by the loop's clock."""
    try:
        async with asyncio.timeout_at(until):
            yield
    except TimeoutError:
        raise Busy(
            f"The drawings before this one took longer than {LONGEST:g} s. Try again a little later.",
            retry_after=ceil(LONGEST),
        ) from None


async def _to_its_end(running: asyncio.Future[T]) -> T:
    """The result of what runs in a thread: it cannot be interrupted, and its memory is in use meanwhile."""
    cancelled: asyncio.CancelledError | None = None
    with anyio.CancelScope(shield=True):  # a scope would else cancel again and again meanwhile
        while not running.done():
            try:
                await asyncio.wait([running])
            except asyncio.CancelledError as error:
                cancelled = error
    if cancelled is not None:
        raise cancelled
    await anyio.lowlevel.checkpoint_if_cancelled()  # what a scope could not deliver meanwhile
    return running.result()


def _step_back() -> None:
    """Threads that draw leave the cores to the event loop, which answers everybody, and to the worker."""
    with suppress(OSError, AttributeError):  # only Linux gives a thread a priority of its own
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)


@dataclass(frozen=True)
class Drawn:
    """A drawing that has begun."""

    pieces: Iterator[bytes] | AsyncGenerator[bytes]  # the latter computes in its place, and reads between
    headers: dict[str, str] = field(default_factory=dict)  # those that only the drawing knows


class DrawnResponse(Response):
    """Waits for room, reads and draws, and sends the pieces as they come. Ends with its client."""

    def __init__(
        self,
        request: Request,
        drawings: Drawings,
        size: int,
        caller: str,
        begin: Callable[[Place], Awaitable[Drawn]],
        *,
        headers: dict[str, str],
        media_type: str = "image/png",
    ) -> None:
        """size: bytes of memory that it uses at most. begin: reads what is drawn; called in the room.

        caller: whose drawing it is, as deps.payer_of names them.
        """
        super().__init__(media_type=media_type, headers=headers)
        del self.headers["Content-Length"]  # of an empty answer
        self._request = request
        self._drawings = drawings
        self._size = size
        self._caller = caller
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
        async with self._drawings.room(self._size, self._caller) as place:
            drawn = await self._begin(place)
            self.headers.update(drawn.headers)
            pieces = drawn.pieces if isinstance(drawn.pieces, AsyncGenerator) else place.pieces(drawn.pieces)
            async with aclosing(pieces):  # it lets go of what it holds, whenever its client leaves
                await self._send(pieces, send)

    async def _send(self, pieces: AsyncIterator[bytes], send: Send) -> None:
        first = b""
        async for piece in pieces:
            first += piece
            if len(first) > SHORT:
                break
        else:
            self.headers["Content-Length"] = str(len(first))
        self._started = True
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
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
