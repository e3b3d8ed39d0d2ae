"""The jobs as the API sees them: calls that never block, and news instead of asking again."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import wraps
from math import inf
from time import monotonic, time
from typing import Any, Concatenate, Final, ParamSpec, Self, TypeVar

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialWithJitterBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import OutOfMemoryError
from redis.exceptions import TimeoutError as RedisTimeoutError

from jobs import scripts
from jobs.coalesce import Coalescer
from jobs.errors import (
    AttentionFailed,
    BrokerUnavailable,
    ExpiredJob,
    IdempotencyConflict,
    QueueFull,
    UnknownJob,
)
from jobs.job import (
    ENDED,
    FAILED,
    AttentionMap,
    Job,
    JobSpec,
    ModelInfo,
    State,
    WorkerInfo,
    as_state,
    attention_channel_key,
    new_job_id,
)
from jobs.pubsub import Subscriber, Watch
from jobs.records import SPEC, WORKER, ended_job, read_job
from jobs.settings import QueueSettings
from jobs.wire import ATTENTION_QUEUE, attention_message, generate_list, generate_message, message_list

WATCHED: Final = 3600  # seconds; a wait is shorter, and looks by itself now and then

_P = ParamSpec("_P")
_T = TypeVar("_T")


def _asks_redis(
    method: Callable[Concatenate[JobClient, _P], Awaitable[_T]],
) -> Callable[Concatenate[JobClient, _P], Coroutine[Any, Any, _T]]:
    """Says BrokerUnavailable where Redis does not answer."""

    @wraps(method)
    async def asked(self: JobClient, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        try:
            return await method(self, *args, **kwargs)
        except OutOfMemoryError as error:
            raise BrokerUnavailable("Redis is full") from error
        except (RedisConnectionError, RedisTimeoutError, OSError) as error:
            raise BrokerUnavailable() from error

    return asked  # type: ignore[return-value]  # wraps() hides that it is a method like the one it wraps


class JobClient:
    """The jobs as the API sees them. Every method may raise BrokerUnavailable."""

    def __init__(self, redis: Redis, settings: QueueSettings) -> None:
        # Any: redis-py's types allow for text and bytes everywhere; this client answers bytes.
        self._redis: Any = redis
        self._settings = settings
        self._keys = scripts.Keys(settings.namespace)
        self._node = secrets.token_urlsafe(9)  # this process, among those that hear news
        self._subscriber = Subscriber(redis, self._keys.channel(self._node))
        # who is alive, what they have loaded, and when that was read
        self._alive: tuple[float, list[WorkerInfo], list[ModelInfo]] = (-inf, [], [])
        self._create = redis.register_script(scripts.CREATE)
        self._creates = Coalescer(self._create_all, most=500)  # some 30 ms of Redis
        self._end = redis.register_script(scripts.END)
        self._claim = redis.register_script(scripts.CLAIM)

    @classmethod
    def open(cls, settings: QueueSettings) -> Self:
        """A store over its own connections. Nothing is sent before the first call."""
        redis = Redis.from_url(
            settings.redis_url,
            socket_timeout=5,
            socket_connect_timeout=2,
            health_check_interval=15,
            # with 3, redis-py writes out each message of pub/sub for a log line that nobody asked for
            protocol=2,
            # Bridges a lost connection, not an outage: a caller is waiting, and 503 is its answer then.
            retry=Retry(ExponentialWithJitterBackoff(cap=0.4, base=0.05), retries=2),
        )
        return cls(redis, settings)

    async def close(self) -> None:
        await self._creates.close()
        await self._subscriber.close()
        await self._redis.aclose()

    @_asks_redis
    async def ping(self) -> None:
        """Return if Redis answers."""
        await self._redis.ping()

    async def create(
        self, spec: JobSpec, owner: str, idempotency_key: str | None = None, request: str | None = None
    ) -> tuple[Job, bool]:
        """Record a job and queue it, in one round trip (shared); the second value says that it is new.

        request: what the caller asked, before defaults and a seed were drawn; the same key must come with
        the same request. None: the spec itself. Raises QueueFull, IdempotencyConflict.
        """
        return await self._submit(new_job_id(), spec, owner, idempotency_key, request, waiter="")

    async def create_and_wait(
        self,
        job_id: str,
        spec: JobSpec,
        owner: str,
        seconds: float,
        idempotency_key: str | None = None,
        request: str | None = None,
    ) -> tuple[Job, bytes | None]:
        """`create` under a name from new_job_id, and the job when it has ended, or as it is by then.

        The second value is the PNG of a job of one image, where it came with the news of the end. One round
        trip there, one message back.
        """
        deadline = monotonic() + seconds
        with self._subscriber.watch(job_id) as watch:
            job, _ = await self._submit(job_id, spec, owner, idempotency_key, request, self._node)
            if job.id == job_id:
                try:
                    return await self._answered(job, watch, deadline)
                except BrokerUnavailable:
                    return job, None  # it is recorded: no reason to have it ordered twice
        return await self.finished(job.id, owner, deadline - monotonic()), None

    @_asks_redis
    async def _submit(
        self,
        job_id: str,
        spec: JobSpec,
        owner: str,
        idempotency_key: str | None,
        request: str | None,
        waiter: str,
    ) -> tuple[Job, bool]:
        body = SPEC.dump_json(spec).decode()
        key, asked = "", ""
        if idempotency_key is not None:
            key, asked = self._keys.idempotency(owner, idempotency_key), body if request is None else request
        outcome, detail, *record = await self._creates.ask(
            (
                *(job_id, owner, body, spec.priority, spec.count, key, asked, waiter),
                generate_list(self._settings.namespace, spec.priority),
                generate_message(job_id, body, spec.priority),
            )
        )
        match outcome:
            case b"new":
                return _new_job(job_id, owner, spec, float(detail)), True
            case b"full":
                raise QueueFull(int(detail))
            case b"conflict":
                raise IdempotencyConflict(str(idempotency_key))
            case _:
                fields = dict(zip(record[::2], record[1::2], strict=True))
                return read_job(detail.decode(), fields), outcome == b"again"

    async def _create_all(self, jobs: Sequence[tuple[Any, ...]]) -> list[list[bytes]]:
        """Each job as CREATE wants it -> what came of it."""
        settings = self._settings
        lifetime = settings.result_ttl + settings.record_ttl
        values = [value for job in jobs for value in job]
        outcomes: list[list[bytes]] = await self._create(
            args=[self._keys.prefix, settings.max_queued, lifetime, *values]
        )
        return outcomes

    async def _answered(self, job: Job, watch: Watch, deadline: float) -> tuple[Job, bytes | None]:
        while not job.ended and (left := deadline - monotonic()) > 0:
            if not await watch.wait(left):
                continue
            if watch.answer is not None:
                changes, png = watch.answer.split(b"\n", 1)
                return ended_job(job, changes), png or None
            job = await self.get(job.id, job.owner)
        return job, None

    @_asks_redis
    async def get(self, job_id: str, owner: str) -> Job:
        """The job as it is now. Raises UnknownJob, ExpiredJob."""
        record = await self._redis.hgetall(self._keys.job(job_id))
        if not record or record[b"owner"].decode() != owner:
            raise UnknownJob(job_id)
        job = read_job(job_id, record)
        if _expired(job):
            raise ExpiredJob(job_id)
        return job

    @_asks_redis
    async def position(self, job: Job) -> int | None:
        """How many jobs run before it; 0: it is next. None: it does not wait any more."""
        rank = await self._redis.zrank(self._keys.queued, job.id)
        return None if rank is None else int(rank)

    @_asks_redis
    async def image(self, job: Job, index: int) -> bytes | None:
        """PNG of one image; None while it is not made. Raises ExpiredJob."""
        png: bytes | None = await self._redis.hget(self._keys.images(job.id), str(index))
        if png is None:
            await self._still_there(job)
        return png

    @_asks_redis
    async def images(self, job: Job) -> list[bytes | None]:
        """PNG of every image; None for those that are not made. Raises ExpiredJob."""
        found = await self._redis.hgetall(self._keys.images(job.id))
        if not found:
            await self._still_there(job)
        return [found.get(str(index).encode()) for index in range(job.spec.count)]

    @_asks_redis
    async def recent(
        self, owner: str, limit: int = 20, cursor: str | None = None
    ) -> tuple[list[Job], str | None]:
        """The owner's jobs, newest first, without the expired; and where the next page starts.

        cursor: what the last page gave. Raises ValueError if it is not one.
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
        async with self._redis.pipeline(transaction=False) as pipe:
            for job_id, _ in rows:
                pipe.hgetall(self._keys.job(job_id.decode()))
            records = await pipe.execute()
        known = [
            read_job(row[0].decode(), record) for row, record in zip(rows, records, strict=True) if record
        ]
        following = str(int(rows[-1][1])) if len(rows) == limit else None
        return [job for job in known if not _expired(job)], following

    @_asks_redis
    async def cancel(self, job_id: str, owner: str) -> Job:
        """End a job; what is not yet in a forward never runs. A job that has ended stays as it is."""
        await self.get(job_id, owner)
        settings = self._settings
        await self._end(
            args=[self._keys.prefix, job_id, "cancelled", "", settings.result_ttl, settings.record_ttl]
        )
        return await self.get(job_id, owner)

    @_asks_redis
    async def events(self, job_id: str, last_id: str = "0") -> list[tuple[str, dict[str, object]]]:
        """State changes after last_id, oldest first: (id, {"state": ..., "done": images})."""
        rows = await self._redis.xrange(self._keys.events(job_id), min=f"({last_id}")
        return [
            (row_id.decode(), {"state": row[b"state"].decode(), "done": int(row[b"done"])})
            for row_id, row in rows
        ]

    async def follow(
        self, job: Job, last_id: str = "0"
    ) -> AsyncIterator[tuple[str, dict[str, object]] | None]:
        """Events after last_id as they come, up to the job's end; None every few seconds without any."""
        async with self._watched(job.id) as watch:
            while True:
                events = await self.events(job.id, last_id)
                for event in events:
                    last_id = event[0]
                    yield event
                    if event[1]["state"] in ENDED:
                        return
                if not events:
                    # Whoever asks after the end, with the last id of all, gets no more events.
                    if (await self.get(job.id, job.owner)).ended and not await self.events(job.id, last_id):
                        return
                    yield None
                await watch.wait(15.0)

    @asynccontextmanager
    async def _watched(self, key: str) -> AsyncIterator[Watch]:
        """Subscriber about a job or a map: open it, look at the state, then wait, look again."""
        with self._subscriber.watch(key) as watch:
            await self._ask_for_news(key)
            yield watch

    @_asks_redis
    async def _ask_for_news(self, key: str) -> None:
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.sadd(self._keys.watchers(key), self._node)
            pipe.expire(self._keys.watchers(key), WATCHED)
            await pipe.execute()

    async def finished(self, job_id: str, owner: str, seconds: float) -> Job:
        """The job when it has ended, or as it is after so many seconds."""
        deadline = monotonic() + seconds
        async with self._watched(job_id) as watch:
            job = await self.get(job_id, owner)
            while not job.ended and (left := deadline - monotonic()) > 0:
                await watch.wait(left)
                job = await self.get(job_id, owner)
            return job

    async def workers(self) -> list[WorkerInfo]:
        """The workers that are alive, oldest first; as they were up to half a heartbeat ago."""
        return (await self._look())[1]

    @_asks_redis
    async def _read_beats(self) -> list[WorkerInfo]:
        ids = await self._redis.zrange(self._keys.workers, 0, -1)
        if not ids:
            return []
        beats = await self._redis.mget([self._keys.worker(worker.decode()) for worker in ids])
        found = [WORKER.validate_json(beat) for beat in beats if beat is not None]
        return sorted(found, key=lambda worker: worker.started_at)

    async def models(self) -> list[ModelInfo]:
        """What the living workers have loaded, the largest images first, then by name.

        Of two of one name, the newest worker's.
        """
        return (await self._look())[2]

    async def _look(self) -> tuple[float, list[WorkerInfo], list[ModelInfo]]:
        read, workers, models = self._alive
        if monotonic() - read > self._settings.heartbeat_period / 2:
            if workers:  # one reads for all: who asks meanwhile takes what is known
                self._alive = (monotonic(), workers, models)
            workers = await self._read_beats()
            found = {model.name: model for worker in workers for model in worker.models}
            # whoever waits for the first worker shall see it at once
            read = monotonic() if workers else -inf
            models = sorted(found.values(), key=lambda model: (-model.resolution, model.name))
            self._alive = (read, workers, models)
        return self._alive

    @_asks_redis
    async def depth(self) -> int:
        """How many jobs wait."""
        return int(await self._redis.zcard(self._keys.queued))

    @_asks_redis
    async def counts(self) -> dict[State, int]:
        """How many jobs are queued and running now, and how many have ever ended in each other state."""
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.zcard(self._keys.queued)
            pipe.scard(self._keys.open)
            pipe.hgetall(self._keys.ended)
            queued, unfinished, ended = await pipe.execute()
        known: dict[State, int] = {"queued": int(queued), "running": max(0, int(unfinished) - int(queued))}
        return known | {as_state(state.decode()): int(count) for state, count in ended.items()}

    @_asks_redis
    async def count_request(self, caller: str) -> int:
        """Count one request of the caller; how many that makes in this minute."""
        key = self._keys.rate(caller, int(time() // 60))
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.incr(key)
            pipe.expire(key, 120)
            made, _ = await pipe.execute()
        return int(made)

    @_asks_redis
    async def attention(self, job: Job, image: int, layer: str) -> AttentionMap | None:
        """The map if it has been made. Raises AttentionFailed with the worker's reason if it cannot be."""
        data = await self._redis.get(self._keys.attention(job.id, image, layer))
        if data is None:
            return None
        if data.startswith(FAILED):
            raise AttentionFailed(data.removeprefix(FAILED).decode())
        return await asyncio.to_thread(AttentionMap.from_bytes, data)  # milliseconds

    @_asks_redis
    async def ask_for_attention(self, job: Job, image: int, layer: str) -> None:
        """Have a map made, unless it was asked for in the last half minute."""
        queue = message_list(self._settings.namespace, ATTENTION_QUEUE, 0)
        key = self._keys.attention_claim(job.id, image, layer)
        await self._claim(keys=[key, queue], args=[attention_message(job.id, image, layer)])

    async def attention_made(self, job: Job, image: int, layer: str, seconds: float) -> AttentionMap | None:
        """The map when it is made; None if it is not by then. Raises AttentionFailed."""
        deadline = monotonic() + seconds
        async with self._watched(attention_channel_key(job.id, image, layer)) as watch:
            found = await self.attention(job, image, layer)
            while found is None and (left := deadline - monotonic()) > 0:
                await watch.wait(left)
                found = await self.attention(job, image, layer)
            return found

    async def _still_there(self, job: Job) -> None:
        if job.expires_at is not None and job.done > 0:
            raise ExpiredJob(job.id)


def _new_job(job_id: str, owner: str, spec: JobSpec, created_at: float) -> Job:
    """A job as CREATE has just recorded it."""
    return Job(
        id=job_id,
        owner=owner,
        spec=spec,
        state="queued",
        created_at=datetime.fromtimestamp(created_at, UTC),
        started_at=None,
        finished_at=None,
        error=None,
        done=0,
        expires_at=None,
        attempts=0,
    )


def _expired(job: Job) -> bool:
    return job.expires_at is not None and job.expires_at <= datetime.now(UTC)
