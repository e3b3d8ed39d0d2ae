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


class Watch:
    """News about some keys since this watch was opened: look at the state after opening it, then wait."""

    def __init__(self) -> None:
        self._event = asyncio.Event()
        self.answer: bytes | None = None  # the last news in full, where more than the key was told

    async def wait(self, seconds: float) -> bool:
        """Wait for so many seconds at most; True if there may be news: then look again."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._event.wait(), min(seconds, RECHECK))
        told = self._event.is_set() or seconds > RECHECK
        self._event.clear()
        return told

    def tell(self, answer: bytes | None = None) -> None:
        self.answer = answer or self.answer
        self._event.set()


class News:
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
                            key, _, answer = message["data"].partition(b"\n")
                            for watch in self._watches.get(key.decode(), ()):
                                watch.tell(answer or None)
            except (RedisError, OSError):
                self._tell_all()
                await asyncio.sleep(0.5)

    def _tell_all(self) -> None:
        for watches in self._watches.values():
            for watch in watches:
                watch.tell()
