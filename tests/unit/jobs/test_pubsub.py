"""Reading a message, waiting for one, and ending tasks that may swallow a cancellation."""

from __future__ import annotations

import asyncio
from time import monotonic

import pytest

from jobs import pubsub
from jobs.pubsub import Watch, cancel, read


def test_a_message_tells_of_one_key_or_of_many_with_their_answers() -> None:
    assert list(read(b"some-job")) == [("some-job", None)]
    assert list(read(b"job/0/16x16")) == [("job/0/16x16", None)]
    answers = [("a", b"{}\n\x89PNG\r\n\x1a\n 3\n"), ("b", b""), ("c", b"\n")]
    framed = b"".join(b"%b %d\n%b" % (key.encode(), len(answer), answer) for key, answer in answers)
    assert list(read(framed)) == answers


@pytest.mark.parametrize(
    "junk",
    [
        *(b"\xff\xfe", b"\n", b"a b\n", b"a -5\nhello", b"a 6\nshort", b"a\n", b"a 1 2\nx", b"a 3\nabcdef"),
        *(b"\xff 1\nx", b"a " + b"9" * 5000 + b"\nx", "a ²\nxx".encode(), b"a  1\nx"),
    ],
)
def test_what_is_none_of_our_messages_is_an_error(junk: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # decoding has one of its own
        read(junk)


async def test_a_watch_tells_what_came_before_or_while_it_waits_and_nothing_twice() -> None:
    watch = Watch()
    watch.tell(b"answer")
    watch.tell()
    assert await watch.wait(0.01)
    assert watch.answer == b"answer"
    assert not await watch.wait(0.01)
    asyncio.get_running_loop().call_later(0.01, watch.tell)
    began = monotonic()
    assert await watch.wait(5)
    assert monotonic() - began < 2


async def test_who_waits_long_looks_again_though_nothing_was_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pubsub, "RECHECK", 0.05)
    assert await Watch().wait(10)
    assert not await Watch().wait(0.04)


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
