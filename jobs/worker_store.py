"""The worker's side of the jobs: blocking calls for its threads, which wait as long as Redis is away."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
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

from jobs.job import FAILED, AttentionMap, Job, Taken, WorkerInfo, attention_channel_key
from jobs.keys import Keys
from jobs.records import WORKER, read_job
from jobs.scripts import Scripts
from jobs.settings import QueueSettings
from jobs.wire import GENERATE_QUEUE, PRIORITY_STEPS, message_list

PAGE: Final = 200  # messages read at once: between two reads Redis serves others
MAP_FAILURE_TTL: Final = 30  # seconds; then the map may be tried again


class Stopping(Exception):
    """The worker is being stopped: hand back the jobs in hand."""


class _UntilStopped(ExponentialWithJitterBackoff):
    """A pause that grows with each failure, up to a second; raises Stopping once the worker stops."""

    def __init__(self, stopping: Callable[[], bool]) -> None:
        super().__init__(cap=1.0, base=0.05)
        self._stopping = stopping

    def __deepcopy__(self, memo: object) -> _UntilStopped:
        return self  # each connection copies its retry; this has no state, and stopping() a lock

    def compute(self, failures: int) -> float:
        if self._stopping():
            raise Stopping("Redis does not answer and the worker is being stopped")
        return super().compute(min(failures, 10))  # 2^failures would overflow after an hour


class WorkerStore:
    """Jobs, maps and heartbeats. Each call retries until Redis answers, or raises Stopping."""

    def __init__(self, settings: QueueSettings, worker_id: str, stopping: Callable[[], bool]) -> None:
        self._settings = settings
        self._worker = worker_id
        self._keys = Keys(settings.namespace)
        self._scripts = Scripts(settings)
        # Any: redis-py's types allow for text and bytes everywhere; this client answers bytes.
        self._redis: Any = Redis.from_url(
            settings.redis_url,
            max_connections=1000,  # it takes one a thread
            socket_timeout=10,
            socket_connect_timeout=3,
            health_check_interval=15,
            retry=Retry(
                _UntilStopped(stopping),
                retries=-1,  # for ever: results are written when Redis is back
                # a full Redis is waited for as well: results expire and make room
                supported_errors=(RedisConnectionError, RedisTimeoutError, OSError, OutOfMemoryError),
            ),
        )

    def close(self) -> None:
        self._redis.close()

    def take(self, job_id: str) -> Taken | None:
        """Take a job in hand. None: it has ended, is unknown, or a living worker has it."""
        return self._scripts.take(job_id, self._worker).run(self._redis)

    def begin(self, entering: Sequence[str], fresh: int, survived: Sequence[str]) -> Callable[[], set[str]]:
        """Send the script `begin` (see Scripts.begin); the function returned waits for its answer.

        The command is on its way when this returns, so a forward that kills the process is counted.
        """
        if not entering and not survived:
            return set
        call = self._scripts.begin(self._worker, entering, fresh, survived)
        sent = self._send(
            call.in_full
        )  # not by digest: a new Redis does not know it, and would count nothing

        def answer() -> set[str]:
            allowed = self._receive(sent)
            return call.run(self._redis) if allowed is None else call.read(allowed)

        return answer

    def _send(self, command: tuple[Any, ...]) -> Any:
        """Send a command; the connection that its answer comes over, or None: it could not be sent."""
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
        """The answer over a connection from _send; None: there is none, or it is an error."""
        if connection is None:
            return None
        try:
            return connection.read_response()
        except (RedisError, OSError):
            return None
        finally:
            self._redis.connection_pool.release(connection)

    def save(self, images: Sequence[tuple[str, int, bytes]]) -> list[bool]:
        """Store images (job, index, PNG), those of one job side by side, in one round trip.

        The last image of a job ends it. For each image: whether its job goes on.
        """
        return self._scripts.save(images).run(self._redis)

    def fail(self, job_id: str, reason: str) -> None:
        """End a job without success. A job that has ended stays as it is."""
        self._scripts.end(job_id, "failed", reason).run(self._redis)

    def release(self, job_id: str) -> bool:
        """Let a job of this worker wait again. False: it ended or moved on."""
        return self._scripts.release(job_id, self._worker).run(self._redis)

    def bring_back(self, job: Job, holder: str) -> bool:
        """Queue a lost job again (see Scripts.bring_back). False: it ended or moved on."""
        return self._scripts.bring_back(job, holder).run(self._redis)

    def job(self, job_id: str) -> Job | None:
        """The record; None if there is none."""
        record = self._redis.hgetall(self._keys.job(job_id))
        return read_job(job_id, record) if record else None

    def wants_attention(self, job_id: str, image: int, layer: str) -> bool:
        """Whether somebody may still wait for a map, and it is not there."""
        place = (job_id, image, layer)
        claimed = self._redis.exists(self._keys.attention_claim(*place))
        return bool(claimed) and not self._redis.exists(self._keys.attention(*place))

    def save_attention(self, job_id: str, image: int, layer: str, found: AttentionMap | str) -> None:
        """Store a map as long as the job's images live, or why there is none, and tell its watchers."""
        key = self._keys.attention(job_id, image, layer)
        job = self.job(job_id)
        if job is None:
            return
        if isinstance(found, str):
            data, lifetime = FAILED + found.encode(), MAP_FAILURE_TTL
        else:
            data, lifetime = found.to_bytes(), self._settings.result_ttl
            if job.expires_at is not None:
                left = job.expires_at - datetime.now(job.expires_at.tzinfo)
                lifetime = max(1, round(left.total_seconds()))
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
        """Store a heartbeat, good for worker_ttl seconds."""
        now = time()
        with self._redis.pipeline(transaction=True) as pipe:
            lifetime = int(self._settings.worker_ttl * 1000)
            pipe.set(self._keys.worker(info.id), WORKER.dump_json(info), px=lifetime)
            pipe.zadd(self._keys.workers, {info.id: now})
            pipe.zremrangebyscore(self._keys.workers, "-inf", now - 10 * self._settings.worker_ttl)
            pipe.execute()

    def leave(self) -> None:
        """Take this worker off the list of the living."""
        with self._redis.pipeline(transaction=True) as pipe:
            pipe.delete(self._keys.worker(self._worker))
            pipe.zrem(self._keys.workers, self._worker)
            pipe.execute()

    def may_sweep(self, seconds: float) -> bool:
        """True for one worker at a time: the first to ask, while it asks again within so many seconds."""
        lifetime = int(seconds * 1000)
        if self._redis.set(self._keys.sweeper, self._worker, nx=True, px=lifetime):
            return True
        if self._redis.get(self._keys.sweeper) != self._worker.encode():
            return False
        return bool(self._redis.pexpire(self._keys.sweeper, lifetime))

    def holders(self) -> dict[str, str]:
        """Open job -> the worker that has taken it, dead or alive."""
        return {
            job_id.decode(): worker.decode()
            for job_id, worker in self._redis.hgetall(self._keys.held).items()
        }

    def in_hand(self) -> dict[str, frozenset[str]]:
        """Living worker -> the jobs in hand, by its last heartbeat."""
        ids = self._redis.zrange(self._keys.workers, 0, -1)
        beats = self._redis.mget([self._keys.worker(worker.decode()) for worker in ids]) if ids else []
        found = [WORKER.validate_json(beat) for beat in beats if beat is not None]
        return {info.id: frozenset(info.in_hand) for info in found}

    def first(self, most: int, known: Collection[str]) -> list[str]:
        """The first `most` jobs of the queue that are not in `known`."""
        front = self._redis.zrange(self._keys.queued, 0, most + len(known) - 1)
        return [job_id for job_id in (job.decode() for job in front) if job_id not in known][:most]

    def without_message(self, jobs: Collection[str], most: float = inf) -> set[str]:
        """The jobs that have no message among the next `most` of each list.

        It stops reading once every job has its message. With a job that has none it reads the lists to their
        end, which takes seconds for a long queue.
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
