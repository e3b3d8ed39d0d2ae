"""The outbox of webhooks in Redis: which deliveries are due, who tries them, and what became of each.

The scripts that change a job's state put its event here in the same step (`tell_hook` in
jobs/lua/prelude.lua), so an event is there if its change is. A delivery is leased for one try: a process that
dies loses its leases, and another one tries again.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Literal

from jobs.connections import Turns, open_redis
from jobs.errors import JobError
from jobs.job import HookEvent, Job
from jobs.keys import Keys
from jobs.records import changed_job, hook_tag, read_job, read_webhook
from jobs.scripts import Call
from jobs.settings import QueueSettings

log = logging.getLogger(__name__)

EVENTS: Final[tuple[HookEvent, ...]] = ("start", "progress", "end")
RINGS: Final = 2.0  # seconds that one wait for the bell takes at most; below any timeout of a connection
Outcome = Literal["done", "again", "back", "gone"]  # as hook_settle.lua has them


@dataclass(frozen=True)
class Delivery:
    """An event of a job that is to be delivered now."""

    member: str  # of Keys.hooks: CALLER:RECEIVER:JOB
    lease: str  # until when nobody else tries
    event: HookEvent
    tries: int  # before this one
    event_id: str
    at: datetime  # of the event
    job: Job  # as it was then
    url: str

    @property
    def lane(self) -> str:
        return self.member.rpartition(":")[0]


@dataclass(frozen=True)
class Claimed:
    """What is to be delivered now, by Redis' clock."""

    now: datetime
    wait: float | None  # seconds until another is due; None: none waits
    deliveries: list[Delivery]


@dataclass(frozen=True)
class HookLog:
    """A job's webhook and what became of it."""

    url: str | None  # None: it has none, or its receiver was gone
    events: Sequence[str]
    attempts: list[bytes]  # JSON, oldest first
    waiting: Sequence[str] = ()  # events
    due: datetime | None = None  # when the first of these is tried


class Hooks:
    """The outbox of a service; each call may raise BrokerUnavailable."""

    def __init__(self, settings: QueueSettings) -> None:
        self._redis = open_redis(settings)
        self._keys = Keys(settings.namespace)
        self._turns = Turns()

    async def close(self) -> None:
        await self._redis.aclose()

    async def waiting(self, caller: str) -> tuple[int, int]:
        """Jobs with events to deliver: all, and those of one caller."""

        async def ask() -> tuple[int, int]:
            async with self._redis.pipeline(transaction=False) as pipe:
                pipe.zcard(self._keys.hooks)
                pipe.hget(self._keys.hook_callers, hook_tag(caller))
                every, own = await pipe.execute()
            return int(every), int(own or 0)

        return await self._turns.take(ask)

    async def claim(
        self, most: int, lease: float, of_caller: int, of_receiver: int, trying: Sequence[str]
    ) -> Claimed:
        """Up to `most` deliveries that are due, leased for so many seconds.

        of_caller, of_receiver: most that this process tries at once. trying: the lane of each that it does.
        """
        args: list[str | int] = [self._keys.prefix, most, f"{lease:.3f}", of_caller, of_receiver, *trying]
        return await self._turns.take(lambda: Call("hook_claim", args, _claimed).arun(self._redis))

    async def settle(self, delivery: Delivery, outcome: Outcome, pause: float = 0, attempt: str = "") -> None:
        """Say what became of a delivery. pause: seconds until the next try. attempt: JSON for the log."""
        args = [
            *(self._keys.prefix, delivery.member, delivery.lease, delivery.event, delivery.event_id),
            *(outcome, f"{pause:.3f}", attempt),
        ]
        await self._turns.take(lambda: Call("hook_settle", args, bool).arun(self._redis))

    async def rings(self) -> None:
        """Return when something new is due, or after some seconds; of several processes one hears it."""
        await self._redis.blpop([self._keys.hook_bell], timeout=RINGS)

    async def log(self, job_id: str) -> HookLog:
        """What became of a job's webhook."""

        async def ask() -> list[Any]:
            async with self._redis.pipeline(transaction=False) as pipe:
                pipe.hget(self._keys.job(job_id), "webhook")
                pipe.lrange(self._keys.hook_log(job_id), 0, -1)
                pipe.hmget(self._keys.hook(job_id), *EVENTS)
                return list(await pipe.execute())

        webhook, attempts, waits = await self._turns.take(ask)
        if webhook is None:
            return HookLog(None, [], attempts)
        url, events = read_webhook(webhook)
        waiting = [event for event, told in zip(EVENTS, waits, strict=True) if told]
        if not waiting:
            return HookLog(url, events, attempts)
        member = f"{webhook.decode().partition(' ')[0]}:{job_id}"
        due = await self._turns.take(lambda: self._redis.zscore(self._keys.hooks, member))
        return HookLog(
            url, events, attempts, waiting, None if due is None else datetime.fromtimestamp(due, UTC)
        )


def _claimed(answer: Any) -> Claimed:
    now, due, *found = answer
    at = float(now)
    wait = max(0.0, float(due) - at) if due else None
    deliveries = []
    for one in found:
        try:
            deliveries.append(_delivery(*one))
        except (JobError, LookupError, ValueError) as error:  # of a newer release: its lease ends
            log.warning("a webhook cannot be read, and is left to another process: %r", error)
    return Claimed(datetime.fromtimestamp(at, UTC), wait, deliveries)


def _delivery(
    member: bytes, lease: bytes, event: bytes, tries: bytes, told: bytes, *record: bytes
) -> Delivery:
    event_id, at, changes = told.decode().split(" ", 2)
    fields = dict(zip(record[::2], record[1::2], strict=True))
    job_id = member.decode().rpartition(":")[2]
    url, _ = read_webhook(fields[b"webhook"])
    return Delivery(
        member.decode(),
        lease.decode(),
        next(name for name in EVENTS if name == event.decode()),
        int(tries),
        event_id,
        datetime.fromtimestamp(float(at), UTC),
        changed_job(read_job(job_id, fields), changes),
        url,
    )
