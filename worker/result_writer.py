"""PNGs and Redis, beside the forwards: no lane waits for either."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from math import inf
from queue import SimpleQueue
from threading import Thread
from time import monotonic

from imaging.png import png
from imaging.spec import Provenance
from jobs.worker_store import Stopping, WorkerStore
from worker import trail
from worker.metrics import WorkerMetrics
from worker.pending import Made, class_name, image_spec

log = logging.getLogger(__name__)


class ResultWriter:
    """A thread that encodes the images of a forward and stores them in one round trip."""

    def __init__(self, store: WorkerStore, metrics: WorkerMetrics | None = None) -> None:
        """metrics: what finished jobs are counted in."""
        self._store = store
        self._metrics = metrics or WorkerMetrics()
        self._work: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = Thread(target=self._run, name="writer", daemon=True)
        self._thread.start()

    def take(self, images: Sequence[Made]) -> None:
        """Store the images of a forward; a job ends when its last image is stored."""
        stored = trail.storing([made.pending for made in images])
        self._work.put(partial(self._store_all, images, stored))

    def do(self, work: Callable[[], None]) -> None:
        """Call a function after all that was taken before. It may wait for Redis, and must not raise."""
        self._work.put(work)

    def close(self, seconds: float) -> None:
        """Store all that was taken, and end; wait at most so many seconds."""
        self._work.put(None)
        self._thread.join(seconds)

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            work()

    def _store_all(self, images: Sequence[Made], stored: Callable[[], None]) -> None:
        try:
            self._save(images, stored)
        except Stopping as stopping:
            _end(images, stopping)
        except Exception as error:  # the thread must go on for other jobs
            log.exception("images could not be stored")
            _end(images, error)

    def _save(self, images: Sequence[Made], stored: Callable[[], None]) -> None:
        by_job = sorted(images, key=lambda made: made.pending.job_id)
        for made in by_job:
            if made.map is not None:  # before its image: whoever hears of the end finds all maps
                self._store.save_attention(made.pending.job_id, made.image, made.map.layer, made.map)
        outcomes = self._store.save(
            [(made.pending.job_id, made.image, png(made.pixels, _provenance(made))) for made in by_job]
        )
        stored()
        now = monotonic()
        for made, saved in zip(by_job, outcomes, strict=True):
            made.pending.stored += 1
            made.pending.wanted_at = now if saved.goes_on else -inf
            if saved.ended is not None:
                self._metrics.made(made.pending.spec.model, *saved.ended, made.pending.context.traceparent)
            # the job has ended, or another worker has the rest of it
            if not saved.goes_on or made.pending.stored == len(made.pending.images):
                made.pending.end()


def _end(images: Sequence[Made], error: Exception) -> None:
    for made in images:
        made.pending.end(error)


def _provenance(made: Made) -> str:
    spec = made.pending.spec
    return Provenance(
        spec.model,
        spec.model_hash,
        spec.precision,
        class_name(spec, made.image),
        image_spec(spec, made.image),
    ).to_json()
