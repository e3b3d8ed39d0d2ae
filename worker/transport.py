"""kombu's Redis transport, its list of messages in hand written twice a second, not twice a job.

That list is what lets Redis hand a message out again whose worker has vanished. For jobs it is the second
net: the first is the sweeper (worker.upkeep), which knows from records and heartbeats what was lost, within
seconds and long before this list does. So a job that is taken and done between two writings never appears in
it. What is not a job is written at once, as kombu does.
"""

from __future__ import annotations

from time import time
from typing import Any, Final

from kombu.transport import redis
from kombu.transport.virtual.base import QoS as VirtualQoS
from kombu.utils.json import dumps
from redis.exceptions import RedisError

from worker.message import GENERATE_QUEUE

WRITTEN_EVERY: Final = 0.5  # seconds


class QoS(redis.QoS):
    """What this worker has in hand, and what of it is still to be written or struck out."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._taken: dict[str, tuple[float, str]] = {}
        self._done: list[str] = []

    def append(self, message: Any, delivery_tag: str) -> None:
        route = message.delivery_info["routing_key"]
        if route != GENERATE_QUEUE:
            super().append(message, delivery_tag)
            return
        entry = dumps([message._raw, message.delivery_info["exchange"], route])
        self._taken[delivery_tag] = (time(), entry)
        VirtualQoS.append(self, message, delivery_tag)

    def ack(self, delivery_tag: str) -> None:
        if self._taken.pop(delivery_tag, None) is None:
            self._done.append(delivery_tag)
        VirtualQoS.ack(self, delivery_tag)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        self.write()
        super().reject(delivery_tag, requeue)

    def restore_unacked(self, client: Any = None) -> None:
        self.write()
        super().restore_unacked(client)

    def write(self) -> None:
        """Bring the list in Redis up to date, in one round trip."""
        if not self._taken and not self._done:
            return
        with self.pipe_or_acquire() as pipe:
            for tag, (taken_at, entry) in self._taken.items():
                pipe.zadd(self.unacked_index_key, {tag: taken_at}).hset(self.unacked_key, tag, entry)
            if self._done:
                pipe.zrem(self.unacked_index_key, *self._done).hdel(self.unacked_key, *self._done)
            pipe.execute()
        self._taken.clear()
        self._done.clear()


class Channel(redis.Channel):
    """Makes its client once: building one costs more than what it is used for."""

    QoS = QoS
    _plain_client: Any = None

    def _create_client(self, asynchronous: bool = False) -> Any:
        if asynchronous:
            return super()._create_client(asynchronous=True)
        if self._plain_client is None:
            self._plain_client = super()._create_client()
        return self._plain_client


class Transport(redis.Transport):
    """What Celery is told to use."""

    Channel = Channel

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        super().register_with_event_loop(connection, loop)
        loop.call_repeatedly(WRITTEN_EVERY, self._write_all)

    def _write_all(self) -> None:
        for channel in self.channels:
            try:
                channel.qos.write()
            except (RedisError, OSError):
                return  # Redis is away: the consumer notices by itself, and what is left is written later
