"""The API's side of the jobs: asyncio calls, and pub/sub instead of polling."""

from __future__ import annotations

import logging
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, nullcontext
from dataclasses import replace
from datetime import datetime
from time import monotonic
from typing import Any, Final, Self

from jobs import telling
from jobs.coalesce import Coalescer
from jobs.connections import Turns, open_redis
from jobs.errors import BrokerUnavailable, ExpiredJob, JobError, OlderWorkers, PurgedJob, UnknownJob
from jobs.figures import Figures, hold, let_go, read_counts, read_figures
from jobs.fleet import FleetReader, format_for, newest_format
from jobs.job import (
    ENDED,
    FORMAT,
    PLAIN,
    USUAL,
    AttentionMap,
    Job,
    JobSpec,
    ModelInfo,
    State,
    Terms,
    WorkerInfo,
    attention_channel_key,
    new_job_id,
)
from jobs.kept import Kept
from jobs.keys import Keys
from jobs.pubsub import Subscriber, Waiting, Watch
from jobs.records import as_time, changed_job, read_job
from jobs.results import Stores
from jobs.scripts import Created, NewJob, Purged, Scripts, Spent
from jobs.settings import QueueSettings
from jobs.turns import asks_redis, shares_a_call

log = logging.getLogger(__name__)

WATCHED: Final = 3600  # seconds that Redis remembers a watcher: longer than any wait

_Question = tuple[tuple[str, ...], ...]  # commands for Redis that do the same when they are sent twice
_Reply = tuple[datetime, list[Any]]  # Redis' time, and its answers


class JobClient:
    """Submit, read, follow and cancel jobs. Every method may raise BrokerUnavailable."""

    def __init__(self, redis: Any, settings: QueueSettings, waiting: Waiting = nullcontext) -> None:
        """redis: from open_redis. Any: redis-py's types allow for text and bytes everywhere.

        waiting: entered around every wait for a worker. Raises StoreUnavailable for an object store that
        cannot be opened.
        """
        self._redis = redis
        self._settings = settings
        self.turns = Turns()
        self._keys = Keys(settings.namespace)
        self._scripts = Scripts(settings)
        stores = Stores.open(settings.result_store)
        self._kept = Kept(redis, self._keys, self.turns, stores, waiting)
        self._node = secrets.token_urlsafe(9)  # this process, among the subscribers
        self._subscriber = Subscriber(redis, self._keys.channel(self._node), waiting)
        self._fleet = FleetReader(redis, self._keys, fresh=settings.heartbeat_period / 2)
        self._creates = Coalescer(self._create_all, most=500)  # some 30 ms of Redis
        self._commands = Coalescer(self._send_all, most=500)
        self._stopping = False

    @classmethod
    def open(cls, settings: QueueSettings, waiting: Waiting = nullcontext) -> Self:
        """A client with connections of its own. It sends nothing before the first call."""
        return cls(open_redis(settings), settings, waiting)

    def stop_waiting(self) -> None:
        """End every wait now as if its time were up, and every later one at once: the process is to end."""
        self._stopping = True
        self._subscriber.wake_all()

    def _left(self, deadline: float) -> float:
        """Seconds that a wait may still take."""
        return 0.0 if self._stopping else deadline - monotonic()

    async def close(self) -> None:
        await self._creates.close()
        await self._commands.close()
        await self._subscriber.close()
        await self._redis.aclose()

    @shares_a_call
    async def ping(self) -> None:
        """Return if Redis answers."""
        await self._redis.ping()

    async def create(
        self,
        spec: JobSpec,
        owner: str,
        idempotency_key: str | None = None,
        request: str | None = None,
        caller: str | None = None,
        terms: Terms = USUAL,
    ) -> tuple[Job, bool]:
        """Record a job and queue it, in one shared round trip; the second value says that it is new.

        request: what the caller asked, before defaults and a seed were drawn; the same key must come with
        the same request. None: the spec itself. caller: whose share of the queue it takes; None: the owner's.
        Raises QueueFull, ShareFull, QuotaReached, IdempotencyConflict, OlderWorkers.
        """
        new = NewJob(new_job_id(), owner, spec, idempotency_key, request, caller=caller or "", terms=terms)
        return await self._submit(new)

    async def create_and_wait(self, new: NewJob, seconds: float) -> tuple[Job, bytes | None]:
        """`create`, then wait; the job when it has ended, or as it is by then.

        The second value is the PNG of a job of one image, where it came along with the message of the end:
        one round trip to Redis, one message back.
        """
        deadline = monotonic() + seconds
        with self._subscriber.watch(new.id) as watch:
            job, _ = await self._submit(replace(new, waiter=self._node))
            if job.id == new.id:
                try:
                    ended, png = await self._answered(job, watch, deadline)
                except BrokerUnavailable:
                    return job, None  # it is recorded: an error would have it ordered twice
                return replace(ended, today=job.today), png
        return await self.finished(job.id, new.owner, deadline - monotonic()), None

    @shares_a_call
    async def _submit(self, job: NewJob) -> tuple[Job, bool]:
        version = job.spec.version
        if job.spec.format > PLAIN and newest_format(version, (await self._fleet.look()).workers) < FORMAT:
            raise OlderWorkers
        traced, span = telling.sending(job)
        try:
            created = await self._creates.ask(traced)
        finally:
            span.end()
        if isinstance(created, JobError):
            raise created
        telling.created(*created)
        return created

    async def _create_all(self, jobs: Sequence[NewJob]) -> list[Created]:
        workers = (await self._fleet.look()).workers
        fitting = [replace(job, format=format_for(job.spec, workers)) for job in jobs]
        return await self._scripts.create(fitting).arun(self._redis)

    async def _answered(self, job: Job, watch: Watch, deadline: float) -> tuple[Job, bytes | None]:
        """The job when it has ended, or as it is at the deadline, and its PNG if that came along."""
        while not job.ended and (left := self._left(deadline)) > 0:
            if not await watch.wait(left):
                continue
            if watch.answer is not None:
                try:
                    changes, png = watch.answer.split(b"\n", 1)
                    return changed_job(job, changes), png or None
                except (ValueError, TypeError, StopIteration) as error:  # not one of ours
                    log.warning("news of job %s cannot be read: %r", job.id, error)
                    watch.answer = None
            job = await self.get(job.id, job.owner)
        return job, None

    @shares_a_call
    async def get(self, job_id: str, owner: str | None, *, expired: bool = False) -> Job:
        """The job as it is now; owner: None for whoever's it is.

        Raises UnknownJob, and ExpiredJob unless that is `expired` as well.
        """
        now, (record,) = await self._commands.ask((("HGETALL", self._keys.job(job_id)),))
        if not record or owner not in (None, record[b"owner"].decode()):
            raise UnknownJob(job_id)
        job = read_job(job_id, record)
        if job.has_expired(now) and not expired:
            raise PurgedJob(job_id) if job.purged else ExpiredJob(job_id)
        late = job.deadline is not None and not job.ended and job.deadline <= now
        # workers cancel it within a second, where there are any
        if late and await self._scripts.expire().arun(self._redis):
            return await self.get(job_id, owner)
        return job

    async def _send_all(self, questions: Sequence[_Question]) -> list[_Reply]:
        """Send all commands at once, equal ones once; for each question Redis' time and the answers."""
        commands = list(dict.fromkeys(command for question in questions for command in question))
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.time()
            for command in commands:
                pipe.execute_command(*command)
            told, *answers = await pipe.execute()
        found = dict(zip(commands, answers, strict=True))
        return [(as_time(told), [found[command] for command in question]) for question in questions]

    @shares_a_call
    async def position(self, job: Job) -> int:
        """Number of jobs that run before it; 0 too once a worker has it."""
        _, (rank,) = await self._commands.ask((("ZRANK", self._keys.queued, job.id),))
        return 0 if rank is None else int(rank)

    async def image(self, job: Job, index: int) -> bytes | None:
        """PNG of one image; None before it is made. Raises ExpiredJob, ResultGone, StoreUnavailable."""
        return await self._kept.image(job, index)

    async def images(self, job: Job) -> list[bytes | None]:
        """PNG of every image; None where it is not made yet. Raises as `image`."""
        return await self._kept.images(job)

    async def address(self, job: Job, index: int, method: str, seconds: float) -> str | None:
        """Where a store hands an image to anybody, for so long; None: nowhere (see Kept.address)."""
        return await self._kept.address(job, index, method, seconds)

    @asks_redis
    async def recent(
        self, owner: str, limit: int = 20, cursor: str | None = None
    ) -> tuple[list[Job], str | None]:
        """The owner's jobs, newest first, without the expired; and the next page's cursor, None: no more.

        cursor: of the page before. Raises ValueError for a text that is none.
        """
        highest = "+inf" if cursor is None else f"({int(cursor)}"
        rows = await self._redis.zrange(
            self._keys.recent(owner),
            highest,
            "-inf",
            desc=True,
            byscore=True,
            withscores=True,
            offset=0,
            num=limit,
        )
        question = tuple(("HGETALL", self._keys.job(job_id.decode())) for job_id, _ in rows)
        now, records = await self._commands.ask(question)
        known = [
            read_job(row[0].decode(), record) for row, record in zip(rows, records, strict=True) if record
        ]
        following = str(int(rows[-1][1])) if len(rows) == limit else None
        return [job for job in known if not job.has_expired(now)], following

    @asks_redis
    async def cancel(self, job_id: str, owner: str) -> Job:
        """End a job; no further image of it is made. A job that has ended, or expired, stays as it is."""
        await self.get(job_id, owner, expired=True)
        ended = await self._scripts.end(job_id, "cancelled").arun(self._redis)
        job = await self.get(job_id, owner, expired=True)
        if ended:
            telling.cancelled(job)
        return job

    async def purge(self, job_id: str, owner: str) -> tuple[Job, bool]:
        """Take a job's images and attention maps away; an open one is cancelled first.

        The job as it is then, and whether all files are deleted: a store that does not answer has them
        deleted by a worker when it is back. A second time changes nothing. Raises UnknownJob.
        """
        job = await self.get(job_id, owner, expired=True)
        left, ended = await self._purge(job)
        telling.purged(ended)
        return ended, await self._kept.delete(job, left)

    @asks_redis
    async def _purge(self, job: Job) -> tuple[Purged, Job]:
        left = await self._scripts.purge(job.id).arun(self._redis)
        if left is None:
            return Purged((), ()), job
        return left, read_job(job.id, await self._redis.hgetall(self._keys.job(job.id)))

    @asks_redis
    async def events(self, job_id: str, last_id: str = "0") -> list[tuple[str, dict[str, object]]]:
        """Changes of state after last_id, oldest first: (id, {"state": ..., "done": images})."""
        rows = await self._redis.xrange(self._keys.events(job_id), min=f"({last_id}")
        return [
            (row_id.decode(), {"state": row[b"state"].decode(), "done": int(row[b"done"])})
            for row_id, row in rows
        ]

    async def follow(
        self, job: Job, last_id: str = "0"
    ) -> AsyncIterator[tuple[str, dict[str, object]] | None]:
        """Events after last_id as they come, up to the job's end; None every few seconds in between.

        They also end where the process is to end: whoever listens comes back with the last id.
        """
        async with self._watched(job.id) as watch:
            while True:
                events = await self.events(job.id, last_id)
                for event in events:
                    last_id = event[0]
                    yield event
                    if event[1]["state"] in ENDED:
                        return
                if not events:
                    # a client that has seen the end already gets no more events
                    if (await self.get(job.id, job.owner)).ended and not await self.events(job.id, last_id):
                        return
                    yield None
                if self._stopping:
                    return
                await watch.wait(15.0)

    @asynccontextmanager
    async def _watched(self, key: str) -> AsyncIterator[Watch]:
        """A watch over a job or a map: open it, look at the state, then wait and look again."""
        with self._subscriber.watch(key) as watch:
            await self._subscribe(key)
            yield watch

    @shares_a_call
    async def _subscribe(self, key: str) -> None:
        watchers = self._keys.watchers(key)
        await self._commands.ask((("SADD", watchers, self._node), ("EXPIRE", watchers, str(WATCHED))))

    async def finished(self, job_id: str, owner: str, seconds: float) -> Job:
        """The job when it has ended, or as it is after so many seconds. Raises UnknownJob, ExpiredJob."""
        deadline = monotonic() + seconds
        async with self._watched(job_id) as watch:
            job = await self.get(job_id, owner)
            while not job.ended and (left := self._left(deadline)) > 0:
                await watch.wait(left)
                job = await self.get(job_id, owner)
            return job

    @shares_a_call
    async def workers(self) -> list[WorkerInfo]:
        """The workers that are alive, oldest first; as they were up to half a heartbeat ago."""
        return (await self._fleet.look()).workers

    @shares_a_call
    async def models(self) -> list[ModelInfo]:
        """The models that living workers have loaded, the largest images first, then by name."""
        return (await self._fleet.look()).models

    @asks_redis
    async def depth(self) -> int:
        """Number of jobs that wait."""
        return int(await self._redis.zcard(self._keys.queued))

    @asks_redis
    async def counts(self) -> dict[State, int]:
        """Numbers of jobs: queued and running now, and ever ended in each other state."""
        return await read_counts(self._redis, self._keys)

    @asks_redis
    async def figures(self) -> Figures:
        """The queue, for Prometheus."""
        return await read_figures(self._redis, self._keys)

    @asks_redis
    async def may_publish(self, holder: str, seconds: float) -> bool:
        """Whether `holder` publishes the queue's figures for so many seconds: one of all does."""
        return await hold(self._redis, self._keys, holder, seconds)

    @asks_redis
    async def publish_no_more(self, holder: str) -> None:
        """Let another one publish the queue's figures."""
        await let_go(self._redis, self._keys, holder)

    @asks_redis
    async def spend(self, caller: str, cost: int, limit: int) -> Spent:
        """Take `cost` units from what the caller may spend in this minute, unless that exceeds `limit`."""
        return await self._scripts.spend(caller, cost, limit).arun(self._redis)

    async def attention(self, job: Job, image: int, layer: str) -> AttentionMap | None:
        """The map; None before it is made. Raises AttentionFailed, ResultGone, StoreUnavailable."""
        return await self._kept.map(job, image, layer)

    @asks_redis
    async def has_attention(self, job: Job, image: int, layer: str) -> bool:
        """Whether the map is there, or the reason why there is none."""
        return bool(await self._redis.exists(self._keys.attention(job.id, image, layer)))

    @asks_redis
    async def ask_for_attention(self, job: Job, image: int, layer: str, caller: str, seconds: int) -> None:
        """Queue a map for which the caller waits so many seconds, unless somebody does. Raises MapsFull."""
        format_ = format_for(job.spec, (await self._fleet.look()).workers)
        call = self._scripts.claim_attention(job, image, layer, caller, seconds, format_)
        refused = await call.arun(self._redis)
        if refused is not None:
            raise refused

    async def attention_made(self, job: Job, image: int, layer: str, seconds: float) -> bool:
        """Whether the map, or the reason why there is none, comes within so many seconds."""
        deadline = monotonic() + seconds
        async with self._watched(attention_channel_key(job.id, image, layer)) as watch:
            while not (found := await self.has_attention(job, image, layer)):
                if (left := self._left(deadline)) <= 0:
                    break
                await watch.wait(left)
            return found

    @shares_a_call
    async def previews(self, model: ModelInfo) -> bytes | None:
        """A small picture of each class, as one sheet (WebP); None: not made yet."""
        _, (sheet,) = await self._commands.ask((("GET", self._keys.previews(model.version)),))
        return sheet or None
