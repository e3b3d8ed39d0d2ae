"""Methods that ask Redis, each when it is its turn."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from functools import wraps
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from jobs.connections import Turns


class TakesTurns(Protocol):
    """Whose methods they are."""

    turns: Turns


P = ParamSpec("P")
T = TypeVar("T")
S = TypeVar("S", bound=TakesTurns)
_Method = Callable[Concatenate[S, P], Awaitable[T]]
_Asked = Callable[Concatenate[S, P], Coroutine[Any, Any, T]]


def asks_redis(method: _Method[S, P, T]) -> _Asked[S, P, T]:
    """The method when it is its turn, raising BrokerUnavailable and Overloaded (see Turns)."""

    @wraps(method)
    async def asked(self: S, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self.turns.take(lambda: method(self, *args, **kwargs))

    return asked  # type: ignore[return-value]  # wraps() drops the first parameter's type


def shares_a_call(method: _Method[S, P, T]) -> _Asked[S, P, T]:
    """The same for a method whose question goes to Redis together with others: it waits for no turn."""

    @wraps(method)
    async def asked(self: S, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self.turns.take(lambda: method(self, *args, **kwargs), shared=True)

    return asked  # type: ignore[return-value]
