"""The queue in figures, for Prometheus, and which of several API processes publishes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from redis.exceptions import NoPermissionError, ResponseError

from jobs.job import State, as_state
from jobs.keys import Keys

PRIORITIES: Final = 10
STEP: Final = 1e13  # between the scores of two priorities; see jobs/lua/create.lua


@dataclass(frozen=True)
class Memory:
    """Bytes that Redis has taken, and that it may take: maxmemory, or without one its machine's memory."""

    used: int
    allowed: int


@dataclass(frozen=True)
class Figures:
    """The jobs at one moment."""

    jobs: Mapping[State, int]  # by state; an ended state counts all jobs that ever ended in it
    oldest: float = 0.0  # seconds that the oldest waiting job has waited; 0: none waits
    memory: Memory | None = None  # None: this user of Redis may not ask


async def read_counts(redis: Any, keys: Keys) -> dict[State, int]:
    """Numbers of jobs: queued and running now, and ever ended in each other state."""
    async with redis.pipeline(transaction=True) as pipe:
        pipe.zcard(keys.queued)
        pipe.scard(keys.open)
        pipe.hgetall(keys.ended)
        queued, unfinished, ended = await pipe.execute()
    known: dict[State, int] = {"queued": int(queued), "running": max(0, int(unfinished) - int(queued))}
    known |= {"succeeded": 0, "failed": 0, "cancelled": 0}
    return known | {as_state(state.decode()): int(count) for state, count in ended.items()}


async def read_figures(redis: Any, keys: Keys) -> Figures:
    """Counts, the oldest waiting job and Redis' memory."""
    return Figures(await read_counts(redis, keys), await _oldest(redis, keys), await _memory(redis))


async def _oldest(redis: Any, keys: Keys) -> float:
    """Seconds since the oldest waiting job was created; those of one priority stand in that order."""
    async with redis.pipeline(transaction=False) as pipe:
        pipe.time()
        for step in range(PRIORITIES):
            low, high = f"{step * STEP:.0f}", f"({(step + 1) * STEP:.0f}"
            pipe.zrange(keys.queued, low, high, byscore=True, offset=0, num=1, withscores=True)
        (seconds, micros), *fronts = await pipe.execute()
    first = [job for front in fronts for job in front]
    if not first:
        return 0.0
    job_id, _ = min(first, key=lambda job: job[1] % STEP)
    created_at = await redis.hget(keys.job(job_id.decode()), "created_at")
    return max(0.0, seconds + micros / 1e6 - float(created_at)) if created_at else 0.0


async def _memory(redis: Any) -> Memory | None:
    try:
        told = await redis.info("memory")
    except (NoPermissionError, ResponseError):  # a hosted Redis may keep it to itself
        return None
    allowed = int(told.get("maxmemory", 0)) or int(told.get("total_system_memory", 0))
    return Memory(int(told["used_memory"]), allowed)


async def hold(redis: Any, keys: Keys, holder: str, seconds: float) -> bool:
    """Whether `holder` publishes the figures for the next so many seconds: nobody else does."""
    lifetime = int(seconds * 1000)
    if await redis.set(keys.exporter, holder, nx=True, px=lifetime):
        return True
    ours = await redis.get(keys.exporter) == holder.encode()
    return ours and bool(await redis.pexpire(keys.exporter, lifetime))


async def let_go(redis: Any, keys: Keys, holder: str) -> None:
    """Another one may publish the figures from now on."""
    if await redis.get(keys.exporter) == holder.encode():
        await redis.delete(keys.exporter)
