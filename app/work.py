"""What this process has to do at this moment, and when that is too much.

A request is in work from its last byte to its answer, but not while it rests: while it waits for a worker,
for a thread, or for its client. A burst of requests is answered, however large. A crowd that stands is not:
each request would wait for all those before it, so what comes is refused until there is room (as CoDel does:
Nichols and Jacobson, "Controlling Queue Delay", 2012).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from math import inf
from time import monotonic
from typing import Final, Protocol

CROWD: Final = 16  # requests in work; at half a millisecond to one each, the last waits for some 10 ms
STANDS: Final = 1.0  # seconds without room, after which a crowd stands; and with room, until it is gone


class Work:
    """The requests in work, each by its connection."""

    def __init__(self) -> None:
        self._here: set[Hashable] = set()
        self._standing = False
        self._full_since = inf  # without a pause
        self._full_at = -inf  # the last time

    @property
    def count(self) -> int:
        return len(self._here)

    def begin(self, one: Hashable) -> None:
        self._here.add(one)
        if len(self._here) == CROWD:
            self._full_since = min(self._full_since, monotonic())

    def end(self, one: Hashable) -> None:
        """May be called twice."""
        if len(self._here) == CROWD and one in self._here:
            self._full_since, self._full_at = inf, monotonic()
        self._here.discard(one)

    def is_too_much(self) -> bool:
        """Whether one more would join a crowd that stands."""
        full, now = len(self._here) >= CROWD, monotonic()
        if now - self._full_since > STANDS:
            self._standing = True
        elif not full and now - self._full_at > STANDS:
            self._standing = False
        return full and self._standing


class Rests(Protocol):
    """What answers a request."""

    def rest(self) -> None: ...
    def resume(self) -> None: ...


# of the request that the present task is for
answering: ContextVar[Rests | None] = ContextVar("answering", default=None)


@contextmanager
def resting() -> Iterator[None]:
    """The request that the present task is for waits meanwhile, and is not in work."""
    one = answering.get()
    if one is None:
        yield
        return
    one.rest()
    try:
        yield
    finally:
        one.resume()
