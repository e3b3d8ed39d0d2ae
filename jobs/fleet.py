"""The workers that are alive and their models, by their heartbeats in Redis."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from math import inf
from time import monotonic
from typing import Any

from jobs.job import FORMAT, PLAIN, JobSpec, ModelInfo, WorkerInfo
from jobs.keys import Keys
from jobs.records import read_workers


@dataclass(frozen=True)
class Fleet:
    """What one look at the heartbeats found."""

    workers: list[WorkerInfo]  # the oldest first
    models: list[ModelInfo]  # the largest images first, then by name; of each name the version to ask for


def fleet_of(workers: list[WorkerInfo]) -> Fleet:
    """Of a model's versions the one that was loaded last gets the jobs, unless it is being dropped."""
    models: dict[str, ModelInfo] = {}
    for _, model in sorted(
        ((_age_key(worker, model), model) for worker in workers for model in worker.models),
        key=lambda pair: pair[0],
    ):
        models[model.name] = model
    return Fleet(workers, sorted(models.values(), key=lambda model: (-model.resolution, model.name)))


def _age_key(worker: WorkerInfo, model: ModelInfo) -> tuple[bool, datetime]:
    return not model.draining, model.loaded_at or worker.started_at


def newest_format(version: str, workers: Iterable[WorkerInfo]) -> int:
    """The newest format that living workers with a version of a model take; ours where there is none."""
    formats = [worker.format for worker in workers for model in worker.models if model.version == version]
    return min(FORMAT, max(formats, default=FORMAT))


def format_for(spec: JobSpec, workers: Iterable[WorkerInfo]) -> int:
    """The format in which a job is queued: its own, or that of older workers where they make it rightly."""
    return spec.format if spec.format > PLAIN else min(PLAIN, newest_format(spec.version, workers))


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
        ids = [id_.decode() for id_ in await self._redis.zrange(self._keys.workers, 0, -1)]
        beats = await self._redis.mget(list(map(self._keys.worker, ids))) if ids else []
        return fleet_of(read_workers(dict(zip(ids, beats, strict=True))))
