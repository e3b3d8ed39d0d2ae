"""How fast the service works: when there will be room again, for Retry-After."""

import asyncio
import logging
import math
from collections import deque
from time import monotonic
from typing import Final, NamedTuple

from redis.exceptions import RedisError

from jobs.client import JobClient
from jobs.errors import JobError

log = logging.getLogger("sagan.app")

EVERY: Final = 5.0  # seconds between two looks
WINDOW: Final = 60.0  # seconds over which the pace is measured
LONGEST: Final = 600  # seconds that a client is asked to wait at most
PART: Final = 10  # of a full queue: those who come back find one place in so many free


class _Look(NamedTuple):
    at: float  # monotonic()
    jobs: int  # ended so far
    maps: int  # made so far


class Pace:
    """Jobs and attention maps a second over the last minute, of all workers together."""

    def __init__(self) -> None:
        self._looks: deque[_Look] = deque()

    async def follow(self, store: JobClient) -> None:
        """Look every few seconds, until cancelled."""
        while True:
            try:
                await self.look(store)
            except (JobError, RedisError):
                pass  # Redis is away: the next look counts what ended meanwhile
            except Exception:
                log.exception("the pace of the workers could not be read")
            await asyncio.sleep(EVERY)

    async def look(self, store: JobClient) -> None:
        """Count what has ended by now. Raises BrokerUnavailable."""
        now = monotonic()
        counts = await store.counts()
        jobs = sum(counts.get(state, 0) for state in ("succeeded", "failed", "cancelled"))
        workers = await store.workers()
        maps = sum(stats.attention_maps for worker in workers for stats in worker.stats.values())
        self._looks.append(_Look(now, jobs, maps))
        while now - self._looks[0].at > WINDOW:
            self._looks.popleft()

    def until_a_job_fits(self, waiting: int) -> int:
        """Seconds until a tenth of the waiting jobs, one at least, will have ended."""
        return self._until(waiting, [look.jobs for look in self._looks])

    def until_a_map_fits(self, waiting: int) -> int:
        """Seconds until a tenth of the waiting maps, one at least, will be made."""
        return self._until(waiting, [look.maps for look in self._looks])

    def _until(self, waiting: int, counted: list[int]) -> int:
        if len(counted) < 2:
            return math.ceil(EVERY)  # this process has only begun
        # a worker that leaves takes its count along: the sum may fall
        ended = max(0, counted[-1] - counted[0])
        seconds = self._looks[-1].at - self._looks[0].at
        needed = max(1, waiting / PART)
        # none ended: it takes at least as long again
        return min(LONGEST, max(1, math.ceil(needed * seconds / max(1, ended))))
