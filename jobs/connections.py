"""Connections to Redis: which of its answers mean "not now", and how long who waits for what.

Some answers say that Redis takes no orders for the moment: it is a replica after a failover (READONLY), has
too few replicas (NOREPLICAS), or cannot write to its disk (MISCONF). redis-py reads them as errors of the
command. Here they become errors of the connection, as LOADING is already: redis-py and kombu then close the
connection and try again, and the next one may lead to another server.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from math import inf
from time import monotonic
from typing import Any, Final, TypeVar

from redis._parsers import BaseParser
from redis.asyncio import Redis as AsyncRedis
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import ExponentialWithJitterBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import MaxConnectionsError, OutOfMemoryError, ReadOnlyError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from jobs.errors import BrokerUnavailable, JobError, Overloaded
from jobs.settings import QueueSettings

log = logging.getLogger(__name__)

T = TypeVar("T")

ANSWERS_WITHIN: Final = 5.0  # seconds; a call of the API's to Redis takes no longer, tries and turns included
AT_ONCE: Final = 32  # calls of an API process in Redis, beside the shared ones: more wait for their turn
TOLD_EVERY: Final = 30.0  # seconds between two lines in the log while Redis is away
LATELY: Final = 1.0  # seconds; a Redis that has answered since is not away


class Refused(RedisConnectionError, ReadOnlyError):
    """Redis answers, but does not do such commands now."""

    def __init__(self, reason: str, status_code: str | None = None) -> None:
        super().__init__(f"{status_code} {reason}" if status_code else reason, status_code=status_code)


class Full(Refused, OutOfMemoryError):
    """Redis has no memory left: it is waited for as well, since results expire and make room."""


REFUSALS: Final = (
    *("READONLY", "NOREPLICAS", "MISCONF", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "LOADING"),
    "UNBLOCKED",  # a server that becomes a replica ends the calls that wait in it
    "BUSY",  # somebody's script runs for seconds
    "NOPERM",  # the operator will mend the rights: until then nothing may be lost
)
BaseParser.EXCEPTION_CLASSES.update({**dict.fromkeys(REFUSALS, Refused), "OOM": Full})


class PatientRetry(Retry):
    """A worker's retry: for ever, with a line in the log at first and every 30 s."""

    def __init__(self, backoff: ExponentialWithJitterBackoff) -> None:
        awaited = (RedisConnectionError, RedisTimeoutError, OSError)
        super().__init__(backoff, retries=-1, supported_errors=awaited)
        self._told_at = -inf

    def __deepcopy__(self, memo: object) -> PatientRetry:
        return self  # each connection copies its retry: shared, it tells once for all of them

    def call_with_retry(self, do: Callable[[], T], fail: Callable[..., Any], *args: Any, **kwargs: Any) -> T:
        def told(error: Exception, *more: Any) -> Any:
            if monotonic() - self._told_at > TOLD_EVERY:
                self._told_at = monotonic()
                log.warning("waiting for Redis: %s", error)
            return fail(error, *more)

        return super().call_with_retry(do, told, *args, **kwargs)


def open_redis(settings: QueueSettings, retries: int = 2) -> Any:
    """A client for an event loop; it sends nothing before the first call, and answers bytes."""
    return AsyncRedis.from_url(
        settings.redis_url,
        max_connections=1000,  # Turns bounds the calls far below
        socket_timeout=ANSWERS_WITHIN - 1,
        socket_connect_timeout=2,
        health_check_interval=15,
        # with 3, redis-py formats each pub/sub message for a debug log line
        protocol=2,
        # enough for a lost connection; in an outage the caller gets 503 instead of waiting
        retry=AsyncRetry(ExponentialWithJitterBackoff(cap=0.4, base=0.05), retries=retries),
    )


class Turns:
    """Bounds an API process' calls to Redis in number and time, and says what a failure is."""

    def __init__(self, at_once: int = AT_ONCE, seconds: float = ANSWERS_WITHIN) -> None:
        self._free = asyncio.Semaphore(at_once)
        self._seconds = seconds
        self._answered_at = -inf
        self._told_at = -inf

    async def take(self, call: Callable[[], Awaitable[T]], *, shared: bool = False) -> T:
        """The call's answer. shared: it is part of one call for many, and needs no turn of its own.

        Raises BrokerUnavailable; Overloaded, where Redis answers and there are too many calls for it.
        """
        try:
            async with asyncio.timeout(self._seconds):
                if shared:
                    answer = await call()
                else:
                    async with self._free:
                        answer = await call()
        except JobError:
            self._answered_at = monotonic()
            raise
        except MaxConnectionsError as error:
            raise Overloaded() from error
        except Full as error:
            raise self._outage("Redis is full", error) from error
        except Refused as error:
            raise self._outage(f"Redis takes no orders now ({error.status_code})", error) from error
        except (TimeoutError, RedisTimeoutError) as error:
            if monotonic() - self._answered_at < LATELY:
                raise Overloaded() from error
            raise self._outage("Redis does not answer", error) from error
        except (RedisConnectionError, OSError) as error:
            raise self._outage("Redis does not answer", error) from error
        self._answered_at = monotonic()
        return answer

    def _outage(self, what: str, error: Exception) -> BrokerUnavailable:
        if monotonic() - self._told_at > TOLD_EVERY:
            self._told_at = monotonic()
            log.warning("%s: %s", what, str(error) or f"no answer within {self._seconds:g} s")
        return BrokerUnavailable(what)
