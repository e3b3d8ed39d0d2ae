"""Questions asked while a call is out share the next call."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from jobs.client import JobClient
from jobs.coalesce import Coalescer
from jobs.errors import BrokerUnavailable
from jobs.job import JobSpec
from jobs.settings import QueueSettings


class Doubler:
    """Answers with twice the number. A call waits until it is let go; a negative number breaks it."""

    def __init__(self, most: int = 64) -> None:
        self.calls: list[list[int]] = []
        self.let_go = asyncio.Semaphore(0)
        self.coalescer = Coalescer(self.double, most)

    async def double(self, numbers: Sequence[int]) -> list[int]:
        self.calls.append(list(numbers))
        await self.let_go.acquire()
        if min(numbers) < 0:
            raise ValueError("negative")
        return [2 * number for number in numbers]

    def ask(self, *numbers: int) -> list[asyncio.Task[int]]:
        return [asyncio.create_task(self.coalescer.ask(number)) for number in numbers]

    async def out(self, calls: int) -> None:
        """Wait until so many calls have gone out."""
        async with asyncio.timeout(5):
            while len(self.calls) < calls:  # noqa: ASYNC110
                await asyncio.sleep(0)


async def test_what_is_asked_while_a_call_is_out_goes_into_the_next_one() -> None:
    doubler = Doubler()
    first = doubler.ask(1)
    await doubler.out(1)
    others = doubler.ask(2, 3)
    await asyncio.sleep(0)
    others += doubler.ask(4)
    await asyncio.sleep(0)
    assert doubler.calls == [[1]]
    doubler.let_go.release()
    assert await asyncio.gather(*first) == [2]
    await doubler.out(2)
    doubler.let_go.release()
    assert await asyncio.gather(*others) == [4, 6, 8]
    assert doubler.calls == [[1], [2, 3, 4]]


async def test_what_is_asked_in_one_turn_goes_in_one_call_of_no_more_than_the_most() -> None:
    doubler = Doubler(most=3)
    doubler.let_go.release()
    doubler.let_go.release()
    assert await asyncio.gather(*doubler.ask(*range(5))) == [0, 2, 4, 6, 8]
    assert doubler.calls == [[0, 1, 2], [3, 4]]


async def test_a_call_that_fails_fails_for_all_in_it_and_for_nobody_else() -> None:
    doubler = Doubler()
    failing = doubler.ask(1, -1)
    await doubler.out(1)
    later = doubler.ask(2)
    doubler.let_go.release()
    doubler.let_go.release()
    found = await asyncio.gather(*failing, *later, return_exceptions=True)
    assert [type(one) for one in found] == [ValueError, ValueError, int]


async def test_who_is_cancelled_takes_nobody_along_and_is_not_asked_for_if_it_had_to_wait() -> None:
    doubler = Doubler()
    out = doubler.ask(1, 2)
    await doubler.out(1)
    waiting = doubler.ask(3, 4)
    await asyncio.sleep(0)
    for one in (out[0], waiting[0]):
        one.cancel()
    doubler.let_go.release()
    doubler.let_go.release()
    assert await asyncio.gather(out[1], waiting[1]) == [4, 8]
    assert out[0].cancelled()
    assert waiting[0].cancelled()
    assert doubler.calls == [[1, 2], [4]]


async def test_closing_leaves_nobody_waiting() -> None:
    doubler = Doubler()
    asked = doubler.ask(1)
    await doubler.out(1)
    asked += doubler.ask(2)
    await asyncio.sleep(0)
    await doubler.coalescer.close()
    async with asyncio.timeout(5):
        await asyncio.gather(*asked, return_exceptions=True)
    assert all(one.cancelled() for one in asked)


async def test_without_a_broker_each_of_many_creates_says_so() -> None:
    store = JobClient.open(QueueSettings(redis_url="redis://127.0.0.1:1/0"))
    spec = JobSpec("tiny", "0" * 64, "float32", 0, "cat", 1, 7, 1.0)
    found = await asyncio.gather(*(store.create(spec, "somebody") for _ in range(3)), return_exceptions=True)
    assert [type(one) for one in found] == [BrokerUnavailable] * 3
    await store.close()
