"""PNGs and Redis, beside the forwards: no lane waits for either."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from math import inf
from queue import SimpleQueue
from threading import Lock, Thread
from time import monotonic
from typing import Final

from imaging.png import png
from imaging.spec import Provenance
from jobs.worker_results import StoreFailed
from jobs.worker_store import Stopping, WorkerStore
from worker import trail
from worker.metrics import WorkerMetrics
from worker.pending import Made, class_name, image_spec

log = logging.getLogger(__name__)


WRITERS: Final = 4  # where an object store's answer takes longer than a forward


class ResultWriter:
    """A thread that encodes the images of a forward and stores them in one round trip; several for an object
    store."""

    def __init__(self, store: WorkerStore, metrics: WorkerMetrics | None = None) -> None:
        """metrics: what finished jobs are counted in."""
        self._store = store
        self._metrics = metrics or WorkerMetrics()
        self._work: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._counting = Lock()
        count = 1 if store.keeper is None else WRITERS
        self._threads = [Thread(target=self._run, name="writer", daemon=True) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def take(self, images: Sequence[Made]) -> None:
        """Store the images of a forward; a job ends when its last image is stored."""
        stored = trail.storing([made.pending for made in images])
        self._work.put(partial(self._store_all, images, monotonic(), stored))

    def do(self, work: Callable[[], None]) -> None:
        """Call a function after what was taken before. It may wait for Redis, and must not raise."""
        self._work.put(work)

    def close(self, seconds: float) -> None:
        """Store all that was taken, and end; wait at most so many seconds."""
        deadline = monotonic() + seconds
        for _ in self._threads:
            self._work.put(None)
        for thread in self._threads:
            thread.join(max(0.0, deadline - monotonic()))

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            work()

    def _store_all(self, images: Sequence[Made], since: float, stored: Callable[[], None]) -> None:
        """since: monotonic() of the forward's end. stored: tells that they are."""
        try:
            self._save(images, stored)
            self._metrics.storing.observe(monotonic() - since)
        except Stopping as stopping:
            _end(images, stopping)
        except StoreFailed as error:
            _end(images, error)
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
        ended = []
        with self._counting:
            for made, saved in zip(by_job, outcomes, strict=True):
                made.pending.stored += 1
                made.pending.wanted_at = now if saved.goes_on else -inf
                # the job has ended, or another worker has the rest of it
                if not saved.goes_on or made.pending.stored == len(made.pending.images):
                    ended.append(made.pending)
        for made, saved in zip(by_job, outcomes, strict=True):
            if saved.ended is not None:
                self._metrics.made(made.pending.spec.model, *saved.ended, made.pending.context.traceparent)
        for pending in ended:
            pending.end()


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
