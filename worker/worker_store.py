"""The jobs as a worker sees them: blocking calls for its threads, which wait as long as Redis is away."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from time import time
from typing import Any

from redis import Redis
from redis.backoff import ExponentialWithJitterBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import OutOfMemoryError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from worker import scripts
from worker.jobs import (
    FAILED,
    SPEC,
    WORKER,
    AttentionMap,
    Job,
    JobSpec,
    WorkerInfo,
    attention_news,
    read_job,
)
from worker.queue import GENERATE_QUEUE, PRIORITY_STEPS, QueueSettings, celery_prefix


class Stopping(Exception):
    """The worker is being stopped: give back what is in hand."""


class _UntilStopped(ExponentialWithJitterBackoff):
    """Waits longer after each failure, up to a second, and not at all once the worker stops."""

    def __init__(self, stopping: Callable[[], bool]) -> None:
        super().__init__(cap=1.0, base=0.05)
        self._stopping = stopping

    def __deepcopy__(self, memo: object) -> _UntilStopped:
        return self  # each connection copies its retry; this one has no state, and a lock behind stopping()

    def compute(self, failures: int) -> float:
        if self._stopping():
            raise Stopping("Redis does not answer and the worker is being stopped")
        return super().compute(min(failures, 10))  # 2^failures would overflow after an hour


@dataclass(frozen=True)
class Taken:
    """A job that this worker has taken in hand."""

    job_id: str
    spec: JobSpec
    attempts: int  # forwards in a row that its workers did not survive
    made: frozenset[int]  # images that an earlier attempt has already stored


@dataclass(frozen=True)
class Holding:
    """Who has an open job in hand."""

    job_id: str
    worker: str  # "": nobody


class WorkerStore:
    """Jobs, maps and signs of life. Each call retries until Redis answers, or raises Stopping."""

    def __init__(self, settings: QueueSettings, worker_id: str, stopping: Callable[[], bool]) -> None:
        self._settings = settings
        self._worker = worker_id
        self._keys = scripts.Keys(settings.namespace)
        # Any: redis-py's types allow for text and bytes everywhere; this client answers bytes.
        self._redis: Any = Redis.from_url(
            settings.redis_url,
            max_connections=1000,  # one a thread is what it takes
            socket_timeout=10,
            socket_connect_timeout=3,
            health_check_interval=15,
            retry=Retry(
                _UntilStopped(stopping),
                retries=-1,  # for ever: what is in hand is written when Redis is back
                # A full Redis is waited for like one that is away: results expire and make room.
                supported_errors=(RedisConnectionError, RedisTimeoutError, OSError, OutOfMemoryError),
            ),
        )
        self._take = self._redis.register_script(scripts.TAKE)
        self._begin = self._redis.register_script(scripts.BEGIN)
        self._save = self._redis.register_script(scripts.SAVE)
        self._end = self._redis.register_script(scripts.END)
        self._release = self._redis.register_script(scripts.RELEASE)

    def close(self) -> None:
        self._redis.close()

    def take(self, job_id: str) -> Taken | None:
        """Take a job in hand. None: it has ended, is not known, or a living worker has it."""
        answer = self._take(args=[self._keys.prefix, job_id, self._worker])
        if answer is None:
            return None
        spec, attempts, *made = answer
        return Taken(job_id, SPEC.validate_json(spec), int(attempts), frozenset(int(index) for index in made))

    def begin(self, entering: Sequence[str], survived: Sequence[str]) -> set[str]:
        """Count an attempt for jobs that enter a forward, and clear it for those that came out of the last.

        Returns the jobs that may run: not the cancelled, nor those another worker has taken over.
        """
        if not entering and not survived:
            return set()
        allowed = self._begin(args=[self._keys.prefix, self._worker, len(entering), *entering, *survived])
        return {job_id.decode() for job_id in allowed}

    def save(self, job_id: str, index: int, png: bytes) -> bool:
        """Store one image and tell; the last one ends the job. False: the job has ended."""
        settings = self._settings
        state = self._save(
            args=[self._keys.prefix, job_id, index, png, settings.result_ttl, settings.record_ttl]
        )
        return bool(state == b"running")

    def fail(self, job_id: str, reason: str) -> None:
        """End a job without success. A job that has ended stays as it is."""
        settings = self._settings
        self._end(
            args=[self._keys.prefix, job_id, "failed", reason, settings.result_ttl, settings.record_ttl]
        )

    def release(self, job_id: str, holder: str | None = None) -> bool:
        """Let a job wait again that holder (None: this worker) has in hand. False: it ended or moved on."""
        holder = self._worker if holder is None else holder
        return bool(self._release(args=[self._keys.prefix, job_id, holder]))

    def job(self, job_id: str) -> Job | None:
        """The record; None if there is none."""
        record = self._redis.hgetall(self._keys.job(job_id))
        return read_job(job_id, record) if record else None

    def save_attention(self, job_id: str, image: int, layer: str, found: AttentionMap | str) -> None:
        """Store a map for as long as the job's images live, or the reason why there is none, and tell."""
        key = self._keys.attention(job_id, image, layer)
        job = self.job(job_id)
        if job is None:
            return
        if isinstance(found, str):
            data, lifetime = FAILED + found.encode(), 30  # seconds; then it may be tried again
        else:
            data, lifetime = found.to_bytes(), self._settings.result_ttl
            if job.expires_at is not None:
                lifetime = max(
                    1, round((job.expires_at - datetime.now(job.expires_at.tzinfo)).total_seconds())
                )
        with self._redis.pipeline(transaction=True) as pipe:
            pipe.set(key, data, ex=lifetime)
            pipe.delete(self._keys.attention_claim(job_id, image, layer))
            pipe.publish(self._keys.news, attention_news(job_id, image, layer))
            pipe.execute()

    def beat(self, info: WorkerInfo) -> None:
        """A sign of life, good for worker_ttl seconds."""
        now = time()
        with self._redis.pipeline(transaction=True) as pipe:
            lifetime = int(self._settings.worker_ttl * 1000)
            pipe.set(self._keys.worker(info.id), WORKER.dump_json(info), px=lifetime)
            pipe.zadd(self._keys.workers, {info.id: now})
            pipe.zremrangebyscore(self._keys.workers, "-inf", now - 10 * self._settings.worker_ttl)
            pipe.execute()

    def leave(self) -> None:
        """The last sign of life: nothing more will be done here."""
        with self._redis.pipeline(transaction=True) as pipe:
            pipe.delete(self._keys.worker(self._worker))
            pipe.zrem(self._keys.workers, self._worker)
            pipe.execute()

    def may_sweep(self, seconds: float) -> bool:
        """True for one worker at a time; it stays the one as long as it asks again within so many seconds."""
        lifetime = int(seconds * 1000)
        if self._redis.set(self._keys.sweeper, self._worker, nx=True, px=lifetime):
            return True
        if self._redis.get(self._keys.sweeper) != self._worker.encode():
            return False
        return bool(self._redis.pexpire(self._keys.sweeper, lifetime))

    def holdings(self) -> list[Holding]:
        """Every open job and who has it in hand."""
        ids = [job_id.decode() for job_id in self._redis.smembers(self._keys.open)]
        with self._redis.pipeline(transaction=False) as pipe:
            for job_id in ids:
                pipe.hget(self._keys.job(job_id), "worker")
            workers = pipe.execute()
        return [
            Holding(job_id, worker.decode())
            for job_id, worker in zip(ids, workers, strict=True)
            if worker is not None
        ]

    def in_hand(self, worker_ids: Iterable[str]) -> dict[str, Collection[str]]:
        """What each worker that is alive says it has in hand."""
        wanted = list(worker_ids)
        beats = self._redis.mget([self._keys.worker(worker) for worker in wanted]) if wanted else []
        return {
            worker: frozenset(WORKER.validate_json(beat).in_hand)
            for worker, beat in zip(wanted, beats, strict=True)
            if beat is not None
        }

    def messages(self) -> int:
        """How many messages wait for a worker."""
        with self._redis.pipeline(transaction=False) as pipe:
            for name in self._lists():
                pipe.llen(name)
            return sum(pipe.execute())

    def waiting(self) -> set[str]:
        """The jobs whose message waits for a worker."""
        with self._redis.pipeline(transaction=False) as pipe:
            for name in self._lists():
                pipe.lrange(name, 0, -1)
            found = pipe.execute()
        return {json.loads(message)["headers"]["id"] for messages in found for message in messages}

    def _lists(self) -> list[str]:
        # kombu's naming: one list a priority, the first without a suffix
        name = celery_prefix(self._settings) + GENERATE_QUEUE
        return [name if step == 0 else f"{name}\x06\x16{step}" for step in PRIORITY_STEPS]
