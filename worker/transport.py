"""kombu's Redis transport, made for many small jobs (docs/decisions/transport.md has what it earns).

One look into Redis takes several messages. Any thread may acknowledge a message. The list of messages in hand
is written twice a second, not twice a job.

From that list a message is handed out again when its worker has vanished. For jobs it is the second net. The
first is the sweeper (worker.sweeper), which finds a lost job within seconds, by records and heartbeats. So a
job that is taken and done between two writings never appears in the list. Other messages are written at once,
as kombu does.

It overrides private methods of kombu, so pyproject.toml pins kombu, and a test names each of them.
"""

from __future__ import annotations

import json
import logging
import secrets
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from queue import Empty
from time import monotonic, sleep, time
from typing import Any, Final

from kombu.transport import redis
from kombu.transport.virtual.base import QoS as VirtualQoS
from kombu.utils.json import dumps
from redis.connection import Connection, parse_url
from redis.exceptions import RedisError, ResponseError

from jobs.connections import Refused
from jobs.wire import TURNS, is_generate_queue

log = logging.getLogger(__name__)

WRITTEN_EVERY: Final = 0.5  # seconds
MOST_LOOKS: Final = 1000  # packed commands kept
REFUSED: Final = 1.0  # seconds between two looks into a Redis that takes no orders
SHORT_LOOK: Final = 0.1  # seconds of a look that leaves a queue out: the reason may soon be gone


@dataclass(frozen=True)
class Wiring:
    """What a channel is given beside kombu's options, which Celery's tools show to whoever asks."""

    redis_url: str  # there may be a password in it
    order: Any = "sorted"  # of the queues in a look; "attention" comes before "generate": a person waits
    room: Callable[[], int] = lambda: 1  # messages to take in one look; at least one is taken
    looked: Callable[[], None] = lambda: None  # called after each look that was answered


_wirings: dict[str, Wiring] = {}


def wire(wiring: Wiring) -> dict[str, str]:
    """The options that give it to the channels of this process."""
    name = secrets.token_hex(8)
    _wirings[name] = wiring
    return {"wiring": name}


def wired(options: Mapping[str, Any]) -> Wiring:
    """What `wire` was given."""
    return _wirings[options["wiring"]]


class QoS(redis.QoS):
    """The messages in hand, and the changes that the list in Redis does not have yet.

    Any thread may call `ack`; the rest is for the consumer's thread.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._taken: dict[str, tuple[float, Any]] = {}  # time of taking, and message; not in the list yet
        self._acknowledged: deque[str] = deque()
        self._done: list[str] = []  # in the list, and to be removed
        self._full = False  # the consumer may have found no room, and sleep

    def can_consume(self) -> bool:
        if super().can_consume():
            return True
        self._full = True  # set before a second look: an ack after that look wakes the consumer
        return bool(super().can_consume())

    def append(self, message: Any, delivery_tag: str) -> None:
        if not is_generate_queue(message.delivery_info["routing_key"]):
            super().append(message, delivery_tag)
            return
        self._taken[delivery_tag] = (time(), message)
        VirtualQoS.append(self, message, delivery_tag)

    def ack(self, delivery_tag: str) -> None:
        self._acknowledged.append(delivery_tag)
        VirtualQoS.ack(self, delivery_tag)
        if self._full:
            self._full = False
            if self.channel.connection is not None:
                self.channel.connection.wake()

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        self.write()
        super().reject(delivery_tag, requeue)

    def restore_unacked(self, client: Any = None) -> None:
        self.write()
        with self.channel.conn_or_acquire(client) as client:
            for tag in reversed(self._delivered):  # the oldest is put back last, and so taken first
                self.restore_by_tag(tag, client=client)
        self._delivered.clear()

    def write(self, older_than: float = 0.0) -> None:
        """Bring the list in Redis up to date, in one round trip.

        older_than: seconds; a message taken since then is left out, since most will be done by the next time.
        """
        while self._acknowledged:
            tag = self._acknowledged.popleft()
            if self._taken.pop(tag, None) is None:
                self._done.append(tag)
        before = time() - older_than
        due = {tag: taken for tag, taken in self._taken.items() if taken[0] <= before}
        if not due and not self._done:
            return
        with self.pipe_or_acquire() as pipe:
            for tag, (taken_at, message) in due.items():
                info = message.delivery_info
                entry = dumps([message._raw, info["exchange"], info["routing_key"]])
                pipe.zadd(self.unacked_index_key, {tag: taken_at}).hset(self.unacked_key, tag, entry)
            if self._done:
                pipe.zrem(self.unacked_index_key, *self._done).hdel(self.unacked_key, *self._done)
            pipe.execute()
        for tag in due:
            del self._taken[tag]
        self._done.clear()


def _has_no_blmpop(error: Exception) -> bool:
    """Whether the server is older than Redis 7.0, or its user may not send this command."""
    said = str(error).lower()
    return isinstance(error, ResponseError) and (
        "unknown command" in said or ("noperm" in said and "blmpop" in said)
    )


class Channel(redis.Channel):
    """Takes several messages in one look, and builds its client once: building costs more than using it."""

    QoS = QoS
    from_transport_options: Any = (*redis.Channel.from_transport_options, "wiring")
    wiring: str
    _several = True
    _in_poll: Any = False
    _brpop_sent_at: Any = None
    _plain_client: Any = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # packed commands, by queues, the list whose turn it is, and number
        self._looks: dict[tuple[tuple[str, ...], int, int], Any] = {}
        self._turns: Sequence[tuple[str, int]] = ()  # queue and turn of each list of new jobs
        self._next = 0  # whose turn it is
        try:
            # kombu has seen an answer to PING. A Redis that takes no orders answers that as well, and Celery
            # would connect again without the pauses that it makes where it cannot connect.
            self.client.set("nothing", "", px=1)
        except Exception:
            self.connection.cycle.discard(self)
            self._disconnect_pools()
            raise

    @property
    def _wired(self) -> Wiring:
        return _wirings[self.wiring]

    @property
    def queue_order_strategy(self) -> Any:  # type: ignore[override]
        return self._wired.order

    def _brpop_start(self, timeout: float | None = None) -> None:
        queues = tuple(self._queue_cycle.consume(len(self.active_queues)))
        if not queues:
            return
        # all of them come from one list: the most urgent that is not empty
        most = max(1, min(self._wired.room(), self.qos.can_consume_max_estimate() or 1))
        connection = self.client.connection
        look = queues, self._next, most
        if look not in self._looks:
            if len(self._looks) > MOST_LOOKS:  # models come and go
                self._looks.clear()
            lists = self._lists(queues)
            seconds = self.brpop_timeout if len(queues) == len(self.active_queues) else SHORT_LOOK
            if self._several:
                command = ("BLMPOP", seconds, len(lists), *lists, "RIGHT", "COUNT", most)
            else:
                command = ("BRPOP", *lists, seconds)
            self._looks[look] = connection.pack_command(*command)
        self._in_poll = connection
        self._brpop_sent_at = monotonic()
        connection.send_packed_command(self._looks[look])

    def _lists(self, queues: Sequence[str]) -> list[str]:
        """The lists of a look, in order: by step, what came back first, then the callers in turn."""
        jobs = [queue for queue in queues if is_generate_queue(queue)]
        self._turns = [(queue, turn) for turn in range(1, TURNS + 1) for queue in jobs]
        first = self._next % max(1, len(self._turns))
        in_turn = [*self._turns[first:], *self._turns[:first]]
        return [
            self.global_keyprefix + name
            for step in self.priority_steps
            for name in (
                *(self._q_for_pri(queue, step) for queue in queues),
                *(f"{queue}{self.sep}{step}~{turn}" for queue, turn in in_turn),
            )
        ]

    def _took_from(self, name: str) -> None:
        """Let the caller behind the one whose list this is come next."""
        queue, _, step_and_turn = name.rpartition(self.sep)
        _, _, turn = step_and_turn.partition("~")
        if turn and (queue, int(turn)) in self._turns:
            self._next = (self._turns.index((queue, int(turn))) + 1) % len(self._turns)

    def _brpop_read(self, **options: Any) -> bool:
        try:
            # parsed like an answer to BRPOP: kombu then strips its prefix from the list's name
            found = self.client.parse_response(self.client.connection, "BRPOP", **options)
        except (*self.connection_errors, ResponseError) as error:
            if _has_no_blmpop(error):
                self._several = False
                self._looks.clear()
                raise Empty from None
            self.client.connection.disconnect()
            if isinstance(error, Refused):
                sleep(REFUSED)
            raise
        finally:
            self._in_poll = None
            self._flush_brpop_reauth()
        self._wired.looked()
        if not found:
            raise Empty
        name = found[0].decode()
        self._took_from(name)
        queue = name.rsplit(self.sep, 1)[0]
        for item in found[1] if self._several else found[1:]:
            try:
                self.connection._deliver(json.loads(item.decode()), queue)
            except self.connection_errors:
                raise
            except Exception:  # the messages that came with it must go on
                log.exception("a message cannot be delivered: %.200r", item)
        return True

    def _connparams(self, asynchronous: bool = False) -> Any:
        """What a connection is made of: as redis-py reads the URL, with TLS and all options."""
        options = parse_url(self._wired.redis_url)
        self.connection_class = options.pop("connection_class", Connection)
        ours = super()._connparams(asynchronous)
        address = {"host", "port", "username", "password", "db"}
        if "path" in options:
            address |= {"socket_connect_timeout", "socket_keepalive", "socket_keepalive_options"}
        others = {name: value for name, value in ours.items() if name not in address}
        return others | {"db": 0} | options

    def _create_client(self, asynchronous: bool = False) -> Any:
        if asynchronous:
            return super()._create_client(asynchronous=True)
        if self._plain_client is None:
            self._plain_client = super()._create_client()
        return self._plain_client


class Transport(redis.Transport):
    """The transport that Celery uses."""

    Channel = Channel
    _loop: Any = None

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        super().register_with_event_loop(connection, loop)
        self._loop = loop
        loop.call_repeatedly(WRITTEN_EVERY, self._write_all)

    def wake(self) -> None:
        """Make the consumer look again; from any thread."""
        if self._loop is not None:
            self._loop.call_soon(bool)

    def _write_all(self) -> None:
        for channel in self.channels:
            try:
                channel.qos.write(older_than=WRITTEN_EVERY)
            except (RedisError, OSError):
                return  # Redis is away: the consumer notices by itself, and a later run writes the rest
