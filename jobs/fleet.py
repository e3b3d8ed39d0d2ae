"""The workers that are alive and their models, by their heartbeats in Redis."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from time import monotonic
from typing import Any

from jobs.job import ModelInfo, WorkerInfo
from jobs.keys import Keys
from jobs.records import WORKER


@dataclass(frozen=True)
class Fleet:
    """What one look at the heartbeats found."""

    workers: list[WorkerInfo]  # the oldest first
    models: list[ModelInfo]  # the largest images first, then by name; of two of one name the newest worker's


class FleetReader:
    """Reads the heartbeats, and answers from its last look for a while."""

    def __init__(self, redis: Any, keys: Keys, fresh: float) -> None:
        """fresh: seconds for which a look is good."""
        self._redis = redis
        self._keys = keys
        self._fresh = fresh
        self._last = Fleet([], [])
        self._looked_at = -inf

    async def look(self) -> Fleet:
        """The fleet, as it was at most `fresh` seconds ago."""
        if monotonic() - self._looked_at > self._fresh:
            if self._last.workers:  # one caller reads; those that come meanwhile get the last look
                self._looked_at = monotonic()
            self._last = await self._read()
            # an empty fleet is read at each call: whoever waits for the first worker sees it at once
            self._looked_at = monotonic() if self._last.workers else -inf
        return self._last

    async def _read(self) -> Fleet:
        ids = await self._redis.zrange(self._keys.workers, 0, -1)
        beats = await self._redis.mget([self._keys.worker(id_.decode()) for id_ in ids]) if ids else []
        workers = [WORKER.validate_json(beat) for beat in beats if beat is not None]
        workers.sort(key=lambda worker: worker.started_at)
        models = {model.name: model for worker in workers for model in worker.models}
        return Fleet(workers, sorted(models.values(), key=lambda model: (-model.resolution, model.name)))
