"""Ending tasks that may swallow a cancellation."""

from __future__ import annotations

import asyncio

from worker.news import cancel


async def test_a_task_that_swallows_a_cancellation_is_ended_all_the_same() -> None:
    swallowed = 0

    async def stubborn() -> None:
        nonlocal swallowed
        while True:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                swallowed += 1
                if swallowed == 3:
                    raise

    async def broken() -> None:
        raise ValueError("an error of its own")

    tasks = [asyncio.create_task(stubborn()), asyncio.create_task(broken())]
    await asyncio.sleep(0)
    async with asyncio.timeout(10):
        await cancel(*tasks)
    assert swallowed == 3
    assert all(task.done() for task in tasks)
