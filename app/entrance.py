"""The entrance: limits on connections, heads, bodies, idle times and answers that nobody takes.

uvicorn reads a head of any length for as long as its client likes, and takes connections until the process
may open no more files. `Connection` is its protocol with these limits; `Doorkeeper` knows all connections of
the process. docs/decisions/entrance.md says why they stand here and not in another server.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import resource
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any, Final

from prometheus_client import Counter
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from app.access import Access, id_of, note_refusal
from app.addresses import counted_as, read_address
from app.answers import document
from app.bodies import refuse
from app.errors import (
    BadRequest,
    HeadersTooLarge,
    Problem,
    TooManyConnections,
    TooManyRequests,
    TooMuchAsked,
    TooSlow,
)
from app.settings import Settings
from app.work import Work, answering

log = logging.getLogger("sagan.app")

_OVERLOADED: Final = TooMuchAsked(
    "More is asked than can be answered in time. Ask again shortly.", retry_after=1
)
PERIOD: Final = 0.5  # seconds between two looks at the clocks of all connections
LINGER: Final = 2.0  # seconds that a refused client has to read why
MAX_FIELDS: Final = 100  # headers of a request: each takes some 200 bytes of memory, however short it is
MAX_PIPELINE: Final = 16  # requests that a connection may send ahead of their answers
SPARE_FILES: Final = 256  # that are left to Redis, logs and what is being accepted; a quarter at most
SLOWEST: Final = 8192  # bytes a second, with send_timeout before: who takes an answer slower loses it
MAX_UNSENT: Final = 128 * 1024 * 1024  # bytes of answers that wait for their clients


class _Peer:
    """The connections of one address."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.count = 0
        self.waiting: dict[Connection, None] = {}  # as the doorkeeper's


class Doorkeeper:
    """All connections of this process. Those that wait for their client give way to newer ones."""

    def __init__(
        self,
        settings: Settings,
        *,
        on_stop: Callable[[], None],
        ended: Counter,
        shed: Counter,
        refusals: Counter,
    ) -> None:
        """on_stop: called once when the server begins to stop. ended: counts connections by reason. shed:
        counts requests that are refused because too many are in work. refusals: counts what is refused here,
        by problem."""
        self._refusals = refusals
        self.settings = settings
        self._ended = ended
        self._shed = shed
        self._on_stop: Callable[[], None] | None = on_stop
        self.most = settings.max_connections
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        if files != resource.RLIM_INFINITY:
            self.most = max(1, min(self.most, files - min(SPARE_FILES, files // 4)))
        self.share = settings.max_connections_per_address or max(1, self.most // 2)
        self._peers: dict[str, _Peer] = {}
        self._open: dict[Connection, _Peer] = {}
        # ordered: who waits longest is first. They wait for a request, or for an answer to be taken
        self._waiting: dict[Connection, None] = {}
        self._unsent: dict[Connection, int] = {}  # bytes of an answer that its client does not take
        self.work = Work()

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Look at the clocks of all connections while this is open."""
        watching = asyncio.create_task(self._watch(), name="doorkeeper")
        try:
            yield
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(PERIOD)
            now = asyncio.get_running_loop().time()
            for connection in [one for one in self._open if one.deadline < now or one.take_by < now]:
                try:
                    connection.expire()
                except Exception:  # the others are looked at all the same
                    log.exception("a connection that is too slow could not be ended")

    def enter(self, connection: Connection, address: str) -> Problem | None:
        """Counts a new connection. A problem: there are too many others, and it answers all requests."""
        name = counted_as(address)
        peer = self._peers.setdefault(name, _Peer(name))
        self._open[connection] = peer
        peer.count += 1
        problem: Problem | None = None
        if peer.count > self._share_of(address) and not self._evict(peer.waiting):
            problem = TooManyRequests(
                "Too many connections are open from this address. Use fewer at a time.", retry_after=1
            )
        elif len(self._open) > self.most and not self._evict(self._waiting):
            problem = TooManyConnections("Too many connections are open. Ask again shortly.", retry_after=1)
        if problem is not None:
            self.count("refused")
            self.refused(problem)
        self.wait(connection)
        return problem

    def leave(self, connection: Connection) -> None:
        """May be called twice."""
        self.work.end(connection)
        self.taken(connection)
        if peer := self._open.pop(connection, None):
            self._waiting.pop(connection, None)
            peer.waiting.pop(connection, None)
            peer.count -= 1
            if not peer.count:
                del self._peers[peer.name]

    def wait(self, connection: Connection) -> None:
        """It waits for its client: for a request, or that an answer is taken."""
        self.work.end(connection)
        if peer := self._open.get(connection):
            self._waiting[connection] = peer.waiting[connection] = None

    def busy(self, connection: Connection) -> None:
        """A whole request has come: it is not to be evicted until it is answered."""
        if peer := self._open.get(connection):
            if not connection.shed:
                self.work.begin(connection)
            self._waiting.pop(connection, None)
            peer.waiting.pop(connection, None)

    def untaken(self, connection: Connection, size: int) -> None:
        """So many bytes of an answer wait for the client. The longest waiting ones may have to go."""
        self._unsent[connection] = size
        while sum(self._unsent.values()) > MAX_UNSENT:
            oldest = next(iter(self._unsent))
            self.count("slow")
            oldest.drop()

    def taken(self, connection: Connection) -> None:
        self._unsent.pop(connection, None)

    def sheds(self, url: bytes) -> bool:
        """Whether a request for `url` is refused, as too many are in work. How we are can always be asked.

        A refusal costs a tenth of an answer here.
        """
        if url.startswith((b"/health/", b"/metrics")) or not self.work.is_too_much():
            return False
        self._shed.inc()
        self.refused(_OVERLOADED)
        return True

    def stop(self) -> None:
        """The server begins to stop; called by every connection."""
        if self._on_stop is not None:
            self._on_stop()
            self._on_stop = None

    def count(self, reason: str) -> None:
        self._ended.labels(reason).inc()

    def refused(self, problem: Problem) -> None:
        self._refusals.labels(problem.slug).inc()

    def _share_of(self, address: str) -> int:
        """Connections that an address may have: all of them behind a trusted proxy."""
        found = read_address(address)
        trusted = found is not None and any(found in network for network in self.settings.trusted_proxies)
        return self.most if trusted else self.share

    def _evict(self, waiting: dict[Connection, None]) -> bool:
        """Drop the first that waits for its client; False: none does."""
        for connection in waiting:
            self.count("evicted")
            connection.drop()
            return True
        return False


class Connection(HttpToolsProtocol):
    """uvicorn's protocol with limits: it waits for a head, a body, our answer, and for another head."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.door: Doorkeeper = app_state["doorkeeper"]
        self._limits = self.door.settings
        self.timeout_keep_alive = math.ceil(self._limits.idle_timeout)
        self.deadline = math.inf  # of what it waits for; infinite while it waits for us
        self.take_by = math.inf  # when the client must have taken the answer
        self.shed = False  # the present request is refused, since too many are in work
        self._served = self.app
        self.url = b""  # until one comes
        self._idle = False  # nothing of the next request is here
        self._extra = 0  # bytes received that are no body: head, framing, trailers
        self._found: Problem | None = None  # what a callback of the parser found wrong
        self._problem: Problem | None = None  # why it reads no more

    # asyncio's protocol

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.deadline = self.loop.time() + self._limits.head_timeout
        if problem := self.door.enter(self, self.client[0] if self.client else ""):
            self._served = _refusing(problem, close=True)

    def connection_lost(self, exc: Exception | None) -> None:
        self.door.leave(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._idle:
            self._idle = False
            self.deadline = self.loop.time() + self._limits.head_timeout
        size = self._limits.max_head
        # in pieces: what stands behind the end of a message in its last piece is not counted
        for piece in [data[start : start + size] for start in range(0, len(data), size)]:
            if self._problem is not None:
                return  # refused: it only reads why
            self._extra += len(piece)
            super().data_received(piece)
            if self._problem is not None:
                return  # the parser's callback has refused it
            if self._extra > size or (self.headers and len(self.headers) > MAX_FIELDS):
                self._refuse(self._too_large())

    def pause_writing(self) -> None:
        super().pause_writing()
        size = self.transport.get_write_buffer_size()
        self.take_by = self.loop.time() + self._limits.send_timeout + size / SLOWEST
        self.door.wait(self)
        self.door.untaken(self, size)

    def resume_writing(self) -> None:
        super().resume_writing()
        self.take_by = math.inf
        self.door.taken(self)
        if self.cycle is not None and not self.cycle.more_body and not self.cycle.response_complete:
            self.door.busy(self)  # the rest of its answer is ours to make

    # the parser's callbacks; what one raises ends in send_400_response

    def on_headers_complete(self) -> None:
        if len(self.pipeline) >= MAX_PIPELINE:
            raise ValueError("too many requests ahead of their answers")
        if len(self.headers) > MAX_FIELDS or (self._extra > self._limits.max_head and self._head_is_large()):
            self._found = self._too_large()
            raise ValueError("too large a head")
        self._extra = 0
        self.deadline = self.loop.time() + self._limits.body_timeout
        self.shed = self.door.sheds(self.url)
        self.app = _SHED if self.shed else self._served
        answering.set(self)  # the task that answers begins with it
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        # a byte of body may come with the seven of its chunk's frame
        self._extra = max(0, self._extra - 8 * len(body))
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._extra = 0
        self.deadline = math.inf
        super().on_message_complete()
        if self.cycle.response_complete:
            self._rest()
        else:
            self.door.busy(self)

    # uvicorn's

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():
            self.deadline = self.loop.time() + self._limits.send_timeout  # what is not taken by then is lost
        elif self.deadline == math.inf and self.cycle.response_complete:
            self._rest()

    def _unsupported_upgrade_warning(self) -> None:
        """uvicorn would advise to install a library at each request; such a request is read as any other."""

    def send_400_response(self, msg: str) -> None:
        self._refuse(self._found or BadRequest(msg))

    def shutdown(self) -> None:
        self.door.stop()
        super().shutdown()

    # ours

    def rest(self) -> None:
        self.door.work.end(self)

    def resume(self) -> None:
        if self.take_by == math.inf:  # else it waits for its client
            self.door.busy(self)

    def expire(self) -> None:
        """A time is up: tell the client where it can hear it, and end."""
        self.door.count("slow")
        in_head_or_body = not self._idle and not self.transport.is_closing()
        if self.take_by == math.inf and self._problem is None and in_head_or_body:
            self._refuse(TooSlow("The request did not come in time. Send it at once."))
        else:
            self.drop()

    def drop(self) -> None:
        """End at once."""
        self.deadline = self.take_by = math.inf
        self.door.leave(self)
        self.transport.abort()

    def _head_is_large(self) -> bool:
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        return bool(size > self._limits.max_head)

    def _too_large(self) -> Problem:
        return HeadersTooLarge(
            f"A request may have {self._limits.max_head} bytes before its body, and {MAX_FIELDS} headers."
        )

    def _rest(self) -> None:
        """Answered: wait for another request."""
        self._idle = True
        self.deadline = self.loop.time() + self._limits.idle_timeout
        self.door.wait(self)

    def _refuse(self, problem: Problem) -> None:
        """Say why and read no more. A client may still be sending: closing would lose it the answer."""
        self._problem = problem
        self.door.refused(problem)
        self.deadline = self.loop.time() + LINGER
        cycle = self.cycle
        unanswered = cycle is not None and not cycle.response_complete
        if unanswered and (cycle.response_started or not cycle.more_body):
            self.drop()  # an answer is on its way, and another would become part of it
            return
        self._unset_keepalive_if_required()
        request_id = id_of(dict(self.headers or ()))
        body = json.dumps(document(problem, "")).encode()
        head = (
            f"HTTP/1.1 {problem.status} {HTTPStatus(problem.status).phrase}\r\n"
            "content-type: application/problem+json\r\ncache-control: no-store\r\n"
            f"x-request-id: {request_id}\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.write_eof()
        note_refusal(request_id, self.url, problem, self.client[0] if self.client else "")


def _refusing(problem: Problem, *, close: bool = False) -> ASGIApp:
    """An app that answers everything with `problem`; close: and then closes the connection."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await refuse(problem, scope, receive, send, close=close)

    return Access(app)


_SHED: Final = _refusing(_OVERLOADED)  # the connection stays: another one would cost more than the answer
