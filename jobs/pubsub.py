"""One pub/sub subscription for a whole process: each waiter for a key is a future in a dictionary."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any, Final, TypeAlias

from redis.asyncio import Redis
from redis.exceptions import RedisError

log = logging.getLogger(__name__)

# Seconds. Pub/sub may lose a message (a reconnect, a full buffer), so a waiter looks by itself this often.
RECHECK: Final = 5.0

Waiting: TypeAlias = Callable[[], contextlib.AbstractContextManager[object]]


async def cancel(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks and wait until they have ended; their errors are dropped.

    redis-py now and then swallows a cancellation that comes while it reads, and a task that loops would then
    never end. So each task is cancelled again until it has ended.
    """
    while pending := [task for task in tasks if not task.done()]:
        for task in pending:
            task.cancel()
        await asyncio.wait(pending, timeout=0.5)
    await asyncio.gather(
        *tasks, return_exceptions=True
    )  # else asyncio logs an error of theirs as never retrieved


def read(message: bytes) -> list[tuple[str, bytes | None]]:
    """The keys that a message tells about, each with its answer or None.

    A message is one key alone, or for each key `key length\n` and then `length` bytes of its answer. Raises
    ValueError for any other: whoever reaches Redis may publish here.
    """
    if b"\n" not in message:
        return [(message.decode(), None)]
    found: list[tuple[str, bytes | None]] = []
    at = 0
    while at < len(message):
        end = message.index(b"\n", at)
        key, length = message[at:end].split(b" ")
        if not length.isdigit() or len(length) > 12 or (after := end + 1 + int(length)) > len(message):
            raise ValueError("the length of an answer is wrong")
        found.append((key.decode(), message[end + 1 : after]))
        at = after
    return found


class Watch:
    """Hears of one key from the moment it is opened: open it, look at the state, then wait."""

    def __init__(self, waiting: Waiting = contextlib.nullcontext) -> None:
        self._waiting = waiting
        self._told = False
        self._waiter: asyncio.Future[None] | None = None
        self.answer: bytes | None = None  # the last answer that came along with the key

    async def wait(self, seconds: float) -> bool:
        """Wait at most so many seconds; True: look at the state again, it may have changed."""
        if not self._told:
            # not asyncio.wait_for: before Python 3.12 it makes a task for each wait
            loop = asyncio.get_running_loop()
            self._waiter = loop.create_future()
            timer = loop.call_later(min(seconds, RECHECK), self.wake)
            try:
                with self._waiting():
                    await self._waiter
            finally:
                timer.cancel()
        told, self._told = self._told or seconds > RECHECK, False
        return told

    def tell(self, answer: bytes | None = None) -> None:
        self.answer = answer or self.answer
        self._told = True
        self.wake()

    def wake(self) -> None:
        """End the wait as if its time were up."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Subscriber:
    """Wakes watches when this process's channel tells of their key. Use it inside a running event loop."""

    def __init__(self, redis: Redis, channel: str, waiting: Waiting = contextlib.nullcontext) -> None:
        """waiting: entered around every wait."""
        self._redis = redis
        self._channel = channel
        self._waiting = waiting
        self._watches: dict[str, set[Watch]] = {}
        self._task: asyncio.Task[None] | None = None

    @contextlib.contextmanager
    def watch(self, key: str) -> Iterator[Watch]:
        """Watch a key. Redis publishes here only if this process is among the key's watchers."""
        if self._task is None:
            self._task = asyncio.create_task(self._listen(), name="pubsub")
        watch = Watch(self._waiting)
        self._watches.setdefault(key, set()).add(watch)
        try:
            yield watch
        finally:
            self._watches[key].discard(watch)
            if not self._watches[key]:
                del self._watches[key]

    def wake_all(self) -> None:
        """End every wait as if its time were up."""
        for watches in self._watches.values():
            for watch in watches:
                watch.wake()

    async def close(self) -> None:
        if self._task is not None:
            await cancel(self._task)
            self._task = None

    async def _listen(self) -> None:
        """For ever: whatever goes wrong, the waiters look by themselves and listening begins anew."""
        while True:
            try:
                await self._hear()
            except (RedisError, OSError):
                pass  # Redis is away: whoever asks it something tells so
            except Exception:
                log.exception("listening to Redis failed and begins again")
            self._tell_all()
            await asyncio.sleep(0.5)

    async def _hear(self) -> None:
        async with self._redis.pubsub() as subscription:
            await subscription.subscribe(self._channel)
            self._tell_all()  # something may have changed before this
            while True:
                message = await subscription.get_message(timeout=RECHECK)
                if message is None:
                    await subscription.ping()  # notices a connection that is half open
                elif message["type"] == "message":
                    self._tell(message["data"])

    def _tell(self, message: bytes) -> None:
        try:
            news = read(message)
        except ValueError as error:
            log.warning("a message on the channel of the news cannot be read (%s): %.80r", error, message)
            return
        for key, answer in news:
            for watch in self._watches.get(key, ()):
                watch.tell(answer)

    def _tell_all(self) -> None:
        for watches in self._watches.values():
            for watch in watches:
                watch.tell()
