"""A steady load of jobs, and what became of each."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from threading import Event, Thread
from time import monotonic, sleep
from types import TracebackType
from typing import Any, Self

from imaging.png import read_provenance
from jobs.client import JobClient
from jobs.errors import JobError
from jobs.job import ENDED, JobSpec
from jobs.keys import Keys
from jobs.records import read_job
from jobs.settings import QueueSettings

OWNER = "somebody"
MakeSpec = Callable[[JobClient, int], Awaitable[JobSpec | None]]  # None: nobody can make such a job now


class Load:
    """Submits jobs at a steady rate, as the API does, while its block runs."""

    def __init__(self, settings: QueueSettings, rate: float, make: MakeSpec) -> None:
        """rate: jobs a second."""
        self.accepted: dict[str, float] = {}  # id -> monotonic()
        self.refused = 0
        self._settings, self._rate, self._make = settings, rate, make
        self._stop = Event()
        self._thread = Thread(target=lambda: asyncio.run(self._submit_all()), name="load")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    async def _submit_all(self) -> None:
        store = JobClient.open(self._settings)
        began, number, open_calls = monotonic(), 0, set()
        while not self._stop.is_set():
            call = asyncio.create_task(self._submit(store, number))
            open_calls.add(call)
            call.add_done_callback(open_calls.discard)
            number += 1
            await asyncio.sleep(max(0.0, began + number / self._rate - monotonic()))
        await asyncio.gather(*open_calls)
        await store.close()

    async def _submit(self, store: JobClient, number: int) -> None:
        try:
            spec = await self._make(store, number)
            if spec is None:
                self.refused += 1
                return
            job, _ = await store.create(spec, OWNER)
        except JobError:
            self.refused += 1
        else:
            self.accepted[job.id] = monotonic()


@dataclass(frozen=True)
class Outcome:
    """What became of the accepted jobs."""

    accepted: int
    ended: int
    failed: int
    lost: int  # neither ended nor known any more
    doubled: int  # told to have ended more than once, or with more images than asked for
    foreign: int  # with an image of another model than the record says

    @property
    def good(self) -> bool:
        return self.accepted == self.ended and not (self.failed or self.doubled or self.foreign)


def wait_for(redis: Any, settings: QueueSettings, ids: Collection[str], seconds: float) -> float:
    """Wait until all of these have ended; how long it took, infinite if they have not."""
    keys, left, began = Keys(settings.namespace), set(ids), monotonic()
    while left and monotonic() - began < seconds:
        asked = list(left)
        pipe = redis.pipeline(transaction=False)
        for job_id in asked:
            pipe.hget(keys.job(job_id), "state")
        states = [state.decode() if state else None for state in pipe.execute()]
        left = {job_id for job_id, state in zip(asked, states, strict=True) if state not in ENDED}
        sleep(0.05)
    return float("inf") if left else monotonic() - began


def outcome(redis: Any, settings: QueueSettings, ids: Collection[str]) -> Outcome:
    """Read the records, events and images of these jobs."""
    keys = Keys(settings.namespace)
    ended = failed = lost = doubled = foreign = 0
    for job_id in ids:
        record = redis.hgetall(keys.job(job_id))
        job = read_job(job_id, record) if record else None
        if job is None or not job.ended:
            lost += 1
            continue
        ended += 1
        failed += job.state != "succeeded"
        told = [event[b"state"].decode() for _, event in redis.xrange(keys.events(job_id))]
        images = redis.hvals(keys.images(job_id))
        doubled += sum(state in ENDED for state in told) != 1 or len(images) > job.spec.count
        hashes = {read_provenance(image).model_hash for image in images}
        foreign += bool(hashes - {job.spec.model_hash})
    return Outcome(len(ids), ended, failed, lost, doubled, foreign)
