"""One pub/sub subscription for a whole process: whoever waits for a key is a future in a dictionary."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any, Final

from redis.asyncio import Redis
from redis.exceptions import RedisError

# Pub/sub may lose a message (a reconnect, a full buffer), so nobody relies on it for longer than this.
RECHECK: Final = 5.0  # seconds


async def cancel(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks and return when they have ended, however they ended.

    One request can get lost: redis-py now and then swallows a cancellation that comes while it reads, and a
    task that loops would then never end.
    """
    while pending := [task for task in tasks if not task.done()]:
        for task in pending:
            task.cancel()
        await asyncio.wait(pending, timeout=0.5)
    await asyncio.gather(*tasks, return_exceptions=True)  # else an error in one is told as never looked at


def read(message: bytes) -> Iterator[tuple[str, bytes | None]]:
    """What a message tells of which keys: one key alone, or for each `key length\n` and so many bytes."""
    at = 0
    while (end := message.find(b"\n", at)) >= 0:
        key, length = message[at:end].split()
        at = end + 1 + int(length)
        yield key.decode(), message[end + 1 : at]
    if at == 0:
        yield message.decode(), None


class Watch:
    """What was published of some keys since it was opened: open it, look at the state, then wait."""

    def __init__(self) -> None:
        self._told = False
        self._waiter: asyncio.Future[None] | None = None
        self.answer: bytes | None = None  # the last news in full, where more than the key was told

    async def wait(self, seconds: float) -> bool:
        """Wait for so many seconds at most; True if there may be news: then look again."""
        if not self._told:
            # not asyncio.wait_for: before Python 3.12 it makes a task for each wait
            loop = asyncio.get_running_loop()
            self._waiter = loop.create_future()
            timer = loop.call_later(min(seconds, RECHECK), self._wake)
            try:
                await self._waiter
            finally:
                timer.cancel()
        told, self._told = self._told or seconds > RECHECK, False
        return told

    def tell(self, answer: bytes | None = None) -> None:
        self.answer = answer or self.answer
        self._told = True
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Subscriber:
    """Tells watches of what is published on this process's channel. Open it inside a running event loop."""

    def __init__(self, redis: Redis, channel: str) -> None:
        self._redis = redis
        self._channel = channel
        self._watches: dict[str, set[Watch]] = {}
        self._task: asyncio.Task[None] | None = None

    @contextlib.contextmanager
    def watch(self, key: str) -> Iterator[Watch]:
        """A watch over a key. Somebody must have told Redis that this process wants to hear of it."""
        if self._task is None:
            self._task = asyncio.create_task(self._listen(), name="job news")
        watch = Watch()
        self._watches.setdefault(key, set()).add(watch)
        try:
            yield watch
        finally:
            self._watches[key].discard(watch)
            if not self._watches[key]:
                del self._watches[key]

    async def close(self) -> None:
        if self._task is not None:
            await cancel(self._task)
            self._task = None

    async def _listen(self) -> None:
        while True:
            try:
                async with self._redis.pubsub() as subscription:
                    await subscription.subscribe(self._channel)
                    self._tell_all()  # of what happened while nobody listened
                    while True:
                        message = await subscription.get_message(timeout=RECHECK)
                        if message is None:
                            await subscription.ping()  # notices a connection that is half open
                        elif message["type"] == "message":
                            for key, answer in read(message["data"]):
                                for watch in self._watches.get(key, ()):
                                    watch.tell(answer)
            except (RedisError, OSError):
                self._tell_all()
                await asyncio.sleep(0.5)

    def _tell_all(self) -> None:
        for watches in self._watches.values():
            for watch in watches:
                watch.tell()
