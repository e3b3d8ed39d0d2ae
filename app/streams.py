"""Event streams: how many are open, in all and of each caller."""

from collections import Counter
from collections.abc import AsyncIterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from prometheus_client import Gauge
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from app.errors import RETRY_AFTER, TooManyRequests, Unavailable

# whether the present task answers with an event stream
streaming: ContextVar[bool] = ContextVar("streaming", default=False)


class Streams:
    """The open event streams of this process."""

    def __init__(self, most: int, share: int, count: Gauge) -> None:
        """count: shows how many there are."""
        self._count = count
        self._most = most
        self._share = share  # of one caller
        self._open: Counter[str] = Counter()  # caller -> streams

    @contextmanager
    def one_of(self, caller: str) -> Iterator[None]:
        """Counts a stream of `caller` while it is open. Raises TooManyRequests, Unavailable."""
        if self._open.get(caller, 0) >= self._share:
            raise TooManyRequests(
                f"A caller may hold {self._share} event streams open. Close one, or ask for the job's state.",
                retry_after=RETRY_AFTER,
            )
        if self._open.total() >= self._most:
            raise Unavailable(
                "Too many event streams are open. Ask for the job's state instead.", retry_after=RETRY_AFTER
            )
        self._open[caller] += 1
        self._count.inc()
        try:
            yield
        finally:
            self._count.dec()
            self._open[caller] -= 1
            if not self._open[caller]:
                del self._open[caller]


class EventStream(StreamingResponse):
    """Server-sent events that count as a stream of `caller` from the first byte to the last."""

    def __init__(self, events: AsyncIterable[bytes], streams: Streams, caller: str) -> None:
        super().__init__(
            events,
            media_type="text/event-stream",
            # no-transform and X-Accel-Buffering: a proxy must pass each event on as it comes
            headers={"Cache-Control": "no-store, no-transform", "X-Accel-Buffering": "no"},
        )
        self._streams = streams
        self._caller = caller

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._streams.one_of(self._caller):
            before = streaming.set(True)
            try:
                await super().__call__(scope, receive, send)
            finally:
                streaming.reset(before)
