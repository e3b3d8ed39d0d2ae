"""The jobs as a worker sees them: blocking calls for its threads, which wait as long as Redis is away."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from math import inf
from time import time
from typing import Any, Final

from redis import Redis
from redis.backoff import ExponentialWithJitterBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import OutOfMemoryError, RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from jobs import scripts
from jobs.job import FAILED, AttentionMap, Job, JobSpec, WorkerInfo, attention_channel_key
from jobs.records import SPEC, WORKER, read_job
from jobs.settings import QueueSettings
from jobs.wire import GENERATE_QUEUE, PRIORITY_STEPS, generate_list, generate_message, message_list

PAGE: Final = 200  # messages read at once, so that Redis serves others in between


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

    def begin(self, entering: Sequence[str], fresh: int, survived: Sequence[str]) -> Callable[[], set[str]]:
        """Count an attempt for jobs that enter a forward, and clear it for those that came out of their last.

        entering: each job once; the first `fresh` of them are in no other forward of this worker. Word is on
        its way when this returns, so that a forward that kills the process is counted. What is returned waits
        for the answer: the jobs that may run, not the cancelled nor those another worker has taken over.
        """
        if not entering and not survived:
            return set
        args = [self._keys.prefix, self._worker, len(entering), fresh, *entering, *survived]
        # the script and not its digest, which a new Redis does not know
        sent = self._send("EVAL", scripts.BEGIN, 0, *args)

        def answer() -> set[str]:
            allowed = self._receive(sent)
            if allowed is None:
                allowed = self._redis.eval(scripts.BEGIN, 0, *args)
            return {job_id.decode() for job_id in allowed}

        return answer

    def _send(self, *command: Any) -> Any:
        """Send a command; the connection that its answer will come from, or None: it could not be sent."""
        pool = self._redis.connection_pool
        try:
            connection = pool.get_connection()
        except (RedisError, OSError):
            return None
        try:
            connection.send_command(*command)
        except (RedisError, OSError):
            pool.release(connection)
            return None
        return connection

    def _receive(self, connection: Any) -> Any:
        """The answer to what was sent; None: there is none, or it is an error."""
        if connection is None:
            return None
        try:
            return connection.read_response()
        except (RedisError, OSError):
            return None
        finally:
            self._redis.connection_pool.release(connection)

    def save(self, images: Sequence[tuple[str, int, bytes]]) -> list[bool]:
        """Store images (job, index, PNG), those of one job side by side, in one round trip, and tell.

        The last image of a job ends it. For each image: False when its job has ended now.
        """
        settings = self._settings
        parts = [part for image in images for part in image]
        goes_on = self._save(args=[self._keys.prefix, settings.result_ttl, settings.record_ttl, *parts])
        return [bool(one) for one in goes_on]

    def fail(self, job_id: str, reason: str) -> None:
        """End a job without success. A job that has ended stays as it is."""
        settings = self._settings
        self._end(
            args=[self._keys.prefix, job_id, "failed", reason, settings.result_ttl, settings.record_ttl]
        )

    def release(self, job_id: str, holder: str | None = None) -> bool:
        """Let a job wait again that holder (None: this worker) has in hand. False: it ended or moved on."""
        holder = self._worker if holder is None else holder
        return bool(self._release(args=[self._keys.prefix, job_id, holder, "", ""]))

    def bring_back(self, job: Job, holder: str) -> bool:
        """Queue a job once more that `holder` ("": nobody) had. False: it ended or moved on meanwhile."""
        priority = job.spec.priority
        queue = generate_list(self._settings.namespace, priority)
        message = generate_message(job.id, None, priority)
        return bool(self._release(args=[self._keys.prefix, job.id, holder, queue, message]))

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
        name = attention_channel_key(job_id, image, layer)
        with self._redis.pipeline(transaction=True) as pipe:
            pipe.set(key, data, ex=lifetime)
            pipe.delete(self._keys.attention_claim(job_id, image, layer))
            pipe.smembers(self._keys.watchers(name))
            pipe.delete(self._keys.watchers(name))
            *_, nodes, _ = pipe.execute()
        for node in nodes:
            self._redis.publish(self._keys.channel(node.decode()), name)

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

    def holders(self) -> dict[str, str]:
        """The open jobs that a worker has in hand, and that worker."""
        return {
            job_id.decode(): worker.decode()
            for job_id, worker in self._redis.hgetall(self._keys.held).items()
        }

    def in_hand(self) -> dict[str, frozenset[str]]:
        """What each worker that is alive says it has in hand."""
        ids = self._redis.zrange(self._keys.workers, 0, -1)
        beats = self._redis.mget([self._keys.worker(worker.decode()) for worker in ids]) if ids else []
        found = [WORKER.validate_json(beat) for beat in beats if beat is not None]
        return {info.id: frozenset(info.in_hand) for info in found}

    def first(self, most: int, known: Collection[str]) -> list[str]:
        """So many of the jobs at the front of the queue, those in `known` left out."""
        front = self._redis.zrange(self._keys.queued, 0, most + len(known) - 1)
        return [job_id for job_id in (job.decode() for job in front) if job_id not in known][:most]

    def without_message(self, jobs: Collection[str], most: float = inf) -> set[str]:
        """Those of the jobs that no message is for, of the `most` that will be taken next from each list.

        What is read ends where each job has its message; where one has none, all is, which is seconds for a
        long queue.
        """
        left = set(jobs)
        for name in self._lists():
            last = -1
            while left and -last <= most and (messages := self._redis.lrange(name, last - PAGE + 1, last)):
                left -= {json.loads(message)["headers"]["id"] for message in messages}
                last -= len(messages)
        return left

    def _lists(self) -> list[str]:
        return [message_list(self._settings.namespace, GENERATE_QUEUE, step) for step in PRIORITY_STEPS]
