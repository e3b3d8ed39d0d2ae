"""Encodes what the forwards make and stores it, so that no forward waits for a PNG or for Redis."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from math import inf
from queue import SimpleQueue
from threading import Thread
from time import monotonic

from imaging.png import png
from imaging.spec import ImageSpec, Provenance
from jobs.job import JobSpec
from jobs.worker_store import Stopping, WorkerStore
from worker.scheduler import Made

log = logging.getLogger(__name__)


class ResultWriter:
    """Encodes images and stores them, as many as there are in one round trip, so that no forward waits."""

    def __init__(self, store: WorkerStore) -> None:
        self._store = store
        self._work: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = Thread(target=self._run, name="writer", daemon=True)
        self._thread.start()

    def take(self, images: Sequence[Made]) -> None:
        """The images of a forward; their pending_jobs end when the last is stored."""
        self._work.put(partial(self._store_all, images))

    def do(self, work: Callable[[], None]) -> None:
        """Call something that may wait for Redis and raises nothing, after all that was taken before."""
        self._work.put(work)

    def close(self, seconds: float) -> None:
        """Store what was taken, and end."""
        self._work.put(None)
        self._thread.join(seconds)

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            work()

    def _store_all(self, images: Sequence[Made]) -> None:
        try:
            self._save(images)
        except Stopping as stopping:
            _end(images, stopping)
        except Exception as error:  # the thread must go on for the others
            log.exception("images could not be stored")
            _end(images, error)

    def _save(self, images: Sequence[Made]) -> None:
        by_job = sorted(images, key=lambda made: made.pending.job_id)
        goes_on = self._store.save(
            [
                (
                    made.pending.job_id,
                    made.spec.index,
                    png(made.pixels, _provenance(made.pending.about, made.spec).to_json()),
                )
                for made in by_job
            ]
        )
        now = monotonic()
        for made, still in zip(by_job, goes_on, strict=True):
            made.pending.stored += 1
            made.pending.wanted_at = now if still else -inf
            # the job has ended, or the rest of it is another worker's
            if not still or made.pending.stored == len(made.pending.specs):
                made.pending.end()


def _end(images: Sequence[Made], error: Exception) -> None:
    for made in images:
        made.pending.end(error)


def _provenance(spec: JobSpec, image: ImageSpec) -> Provenance:
    return Provenance(spec.model, spec.model_hash, spec.precision, spec.class_name, image)
