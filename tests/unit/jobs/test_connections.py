"""Turns: calls to Redis are bounded, and overload is told from an outage."""

from __future__ import annotations

import asyncio
import logging

import pytest
from redis._parsers import BaseParser
from redis.exceptions import ConnectionError as RedisConnectionError

from app.answers import problem_of
from jobs.connections import REFUSALS, Full, Refused, Turns
from jobs.errors import BrokerUnavailable, Overloaded, UnknownJob


async def test_more_calls_than_can_be_answered_in_time_are_overload() -> None:
    turns = Turns(at_once=2, seconds=0.5)

    async def call() -> str:
        await asyncio.sleep(0.2)
        return "answer"

    answers = await asyncio.gather(*(turns.take(call) for _ in range(20)), return_exceptions=True)
    made = [answer for answer in answers if answer == "answer"]
    assert 2 <= len(made) < 20
    assert {type(answer) for answer in answers} == {str, Overloaded}
    problem = problem_of(Overloaded())
    assert (problem.status, problem.slug, problem.retry_after) == (503, "overloaded", 1)


async def test_a_shared_call_waits_for_no_turn() -> None:
    turns = Turns(at_once=1, seconds=5)
    free = asyncio.Event()
    holder = asyncio.create_task(turns.take(free.wait))
    await asyncio.sleep(0)
    assert await turns.take(lambda: asyncio.sleep(0, "answer"), shared=True) == "answer"
    free.set()
    await holder


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RedisConnectionError("gone"), "does not answer"),
        (OSError("too many open files"), "does not answer"),
        (Full("no memory", status_code="OOM"), "is full"),
        (Refused("no replicas", status_code="NOREPLICAS"), "NOREPLICAS"),
    ],
)
async def test_an_outage_is_told_once_with_its_reason(
    error: Exception, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    turns = Turns()

    async def fail() -> None:
        raise error

    for _ in range(3):
        with pytest.raises(BrokerUnavailable, match=said):
            await turns.take(fail)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert str(error) in caplog.text


async def test_a_redis_that_hangs_is_an_outage() -> None:
    with pytest.raises(BrokerUnavailable, match="does not answer"):
        await Turns(seconds=0.05).take(asyncio.Event().wait)


async def test_errors_of_jobs_pass_through() -> None:
    async def unknown() -> None:
        raise UnknownJob("x")

    with pytest.raises(UnknownJob):
        await Turns().take(unknown)


@pytest.mark.parametrize("code", [*REFUSALS, "OOM"])
def test_redis_py_reads_a_refusal_as_a_lost_connection(code: str) -> None:
    error = BaseParser.parse_error(f"{code} for a reason")  # type: ignore[no-untyped-call]
    assert isinstance(error, Refused)
    assert isinstance(error, RedisConnectionError)
    assert str(error) == f"{code} for a reason"
