"""Coalescing: all questions asked while one call is out share the next call.

There is no waiting window: while no call is out, a question goes out in the same turn of the event loop.
Under load calls take longer, so more questions gather for the next one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from jobs.pubsub import cancel

Q = TypeVar("Q")
A = TypeVar("A")


class Coalescer(Generic[Q, A]):
    """One call for many questions. Use it inside a running event loop."""

    def __init__(self, call: Callable[[Sequence[Q]], Awaitable[Sequence[A]]], most: int) -> None:
        """call: many questions -> their answers, in the same order. most: questions in one call."""
        self._call = call
        self._most = most
        self._asked: list[tuple[Q, asyncio.Future[A]]] = []
        self._task: asyncio.Task[None] | None = None

    async def ask(self, question: Q) -> A:
        """The answer; raises the call's error. A question cancelled before its call begins is left out."""
        answer: asyncio.Future[A] = asyncio.get_running_loop().create_future()
        self._asked.append((question, answer))
        if self._task is None:
            self._task = asyncio.create_task(self._ask_all(), name="coalescer")
        return await answer

    async def close(self) -> None:
        """Cancel the call that is out, and every question that waits."""
        if self._task is not None:
            await cancel(self._task)

    async def _ask_all(self) -> None:
        out: list[tuple[Q, asyncio.Future[A]]] = []
        try:
            while self._asked:
                out = [one for one in self._asked[: self._most] if not one[1].done()]
                del self._asked[: self._most]
                if out:
                    await self._ask(out)
        finally:
            self._task = None
            for _, answer in (*out, *self._asked):
                answer.cancel()
            self._asked.clear()

    async def _ask(self, out: Sequence[tuple[Q, asyncio.Future[A]]]) -> None:
        try:
            answers = await self._call([question for question, _ in out])
            for (_, future), answer in zip(out, answers, strict=True):
                if not future.done():
                    future.set_result(answer)
        except Exception as error:  # each caller raises it  # noqa: BLE001
            for _, future in out:
                if not future.done():
                    future.set_exception(error)
