"""An operator's view of Redis: every caller's jobs, whoever asked for them."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from redis import Redis

from jobs.api_keys import owner_name
from jobs.errors import NewerFormat
from jobs.job import ENDED, Job, State, WorkerInfo
from jobs.keys import Keys
from jobs.records import as_time, read_job, read_workers
from jobs.scripts import Scripts
from jobs.settings import QueueSettings

PAGE: Final = 200  # records read at once: between two reads Redis serves others
SHORTEST: Final = 6  # letters of a caller's name that stand for the whole


@dataclass(frozen=True)
class Row:
    """A job, and what its record has beside what its caller may see."""

    job: Job
    caller: str  # whose share of the queue it takes
    worker: str  # that has it; "": none
    position: int | None  # jobs before it; None: it does not wait

    def belongs_to(self, caller: str) -> bool:
        """Whether it is a caller's: an owner, an address, the id of a key; or the first letters of one."""
        names = (self.job.owner, self.caller, self.job.context.key)
        return any(
            name in (caller, owner_name(caller)) or (len(caller) >= SHORTEST and name.startswith(caller))
            for name in names
            if name
        )


class Operator:
    """Looks at, and cancels, anybody's jobs. Each call may raise redis.exceptions.RedisError."""

    def __init__(self, settings: QueueSettings) -> None:
        self._keys = Keys(settings.namespace)
        self._scripts = Scripts(settings)
        # Any: redis-py's types allow for text and bytes everywhere; this client answers bytes.
        self.redis: Any = Redis.from_url(settings.redis_url, socket_timeout=10, socket_connect_timeout=3)

    def close(self) -> None:
        self.redis.close()

    def rows(self, states: Collection[State]) -> Iterator[Row]:
        """The jobs in these states: those that wait in their order, then the running, then the ended."""
        waiting = [job_id.decode() for job_id in self.redis.zrange(self._keys.queued, 0, -1)]
        if "queued" in states:
            yield from self._read(waiting, states)
        if "running" in states:
            open_ = {job_id.decode() for job_id in self.redis.smembers(self._keys.open)}
            yield from self._read(sorted(open_ - set(waiting)), states)
        if ENDED & set(states):
            yield from self._read(self._ids(), ENDED & set(states))

    def _ids(self) -> Iterator[str]:
        """Every job that Redis remembers."""
        stem = self._keys.job("")
        # a namespace may have what a pattern takes for its own
        pattern = re.sub(r"([*?\[\]\\])", r"\\\1", stem)
        for key in self.redis.scan_iter(match=f"{pattern}*", count=1000):
            yield key.decode().removeprefix(stem)

    def _read(self, ids: Iterator[str] | list[str], states: Collection[State]) -> Iterator[Row]:
        page: list[str] = []
        for job_id in ids:
            page.append(job_id)
            if len(page) == PAGE:
                yield from self._page(page, states)
                page = []
        yield from self._page(page, states)

    def _page(self, ids: list[str], states: Collection[State]) -> Iterator[Row]:
        with self.redis.pipeline(transaction=False) as pipe:
            for job_id in ids:
                pipe.hgetall(self._keys.job(job_id))
                pipe.zrank(self._keys.queued, job_id)
            answers = pipe.execute()
        for job_id, record, rank in zip(ids, answers[::2], answers[1::2], strict=True):
            row = _row(job_id, record, rank) if record else None
            if row is not None and row.job.state in states:
                yield row

    def find(self, job_id: str) -> Row | None:
        """A job; None: Redis does not remember it."""
        record = self.redis.hgetall(self._keys.job(job_id))
        return _row(job_id, record, self.redis.zrank(self._keys.queued, job_id)) if record else None

    def events(self, job_id: str) -> list[tuple[datetime, str, int]]:
        """Its changes of state, oldest first: when, the state, images made."""
        return [
            (as_time(_moment(row_id)), row[b"state"].decode(), int(row[b"done"]))
            for row_id, row in self.redis.xrange(self._keys.events(job_id))
        ]

    def cancel(self, job_id: str) -> bool:
        """End a job. False: it had ended, or is unknown."""
        return self._scripts.end(job_id, "cancelled", "The operator cancelled it.").run(self.redis)

    def time(self) -> datetime:
        """The time by Redis' clock."""
        return as_time(self.redis.time())

    def workers(self) -> list[WorkerInfo]:
        """The living workers, the oldest first."""
        ids = [worker.decode() for worker in self.redis.zrange(self._keys.workers, 0, -1)]
        beats = self.redis.mget(list(map(self._keys.worker, ids))) if ids else []
        return read_workers(dict(zip(ids, beats, strict=True)))

    def silent(self) -> dict[str, datetime]:
        """Workers that have gone without a word lately -> when they were last heard."""
        heard = {
            worker.decode(): as_time((int(at), 0))
            for worker, at in self.redis.zrange(self._keys.workers, 0, -1, withscores=True)
        }
        alive = {worker.id for worker in self.workers()}
        return {worker: at for worker, at in heard.items() if worker not in alive}


def _row(job_id: str, record: dict[bytes, bytes], rank: int | None) -> Row | None:
    """None: a newer release wrote the record."""
    try:
        job = read_job(job_id, record)
    except NewerFormat:
        return None
    return Row(job, record.get(b"caller", b"").decode(), record.get(b"worker", b"").decode(), rank)


def _moment(stream_id: bytes) -> tuple[int, int]:
    """Seconds and microseconds of a stream's id, which begins with milliseconds."""
    seconds, milliseconds = divmod(int(stream_id.split(b"-")[0]), 1000)
    return seconds, 1000 * milliseconds
