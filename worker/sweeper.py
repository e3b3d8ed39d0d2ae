"""Bringing back lost jobs, and running such helpers beside a worker's jobs."""

from __future__ import annotations

import logging
from collections.abc import Callable
from threading import Event, Thread
from time import monotonic
from typing import Final

from jobs.fleet import format_for
from jobs.job import FORMAT, WorkerInfo
from jobs.settings import QueueSettings
from jobs.wire import queues_of
from jobs.worker_store import Stopping, WorkerStore
from worker import trail
from worker.metrics import NO_WORKER, WorkerMetrics

log = logging.getLogger(__name__)

FIRST: Final = 100  # jobs at the front of the queue that a pass examines
RECOUNTED_EVERY: Final = 30.0  # seconds, while workers of format 1 take jobs without counting them


class Sweeper:
    """Queues each lost job again: an open job in no worker's hand and without a message.

    Its worker died, or Redis lost its message. A job must look lost for a few heartbeats on end, since these
    may be that much out of date. An error is harmless: a worker drops a second message for a job.

    A pass reads only the front of the queue, where a job without a message ends up: the jobs behind it
    overtake it. Only for a job that has looked lost long enough does it read the whole queue.
    """

    def __init__(
        self, settings: QueueSettings, store: WorkerStore, metrics: WorkerMetrics | None = None
    ) -> None:
        """metrics: what it does is counted in."""
        self._store = store
        self._metrics = metrics or WorkerMetrics()
        self._patience = 2.5 * settings.heartbeat_period  # seconds
        self._lock_seconds = settings.worker_ttl
        self._model_patience = settings.model_patience
        self._lost_since: dict[str, float] = {}
        self._recounted_at: float | None = None  # None: another worker sweeps

    def sweep(self) -> list[str]:
        """One pass, unless another worker sweeps. Returns the jobs queued again."""
        workers = self._store.workers()
        old = {worker.id for worker in workers if worker.format < FORMAT}
        if not self._store.may_sweep(self._lock_seconds, old):
            self._lost_since.clear()
            self._recounted_at = None
            return []
        while late := self._store.expire():  # a hundred at a time
            for job_id in late:
                log.info("job expired", extra={"job_id": job_id})
        now = monotonic()
        if self._recounted_at is None or (old and now - self._recounted_at > RECOUNTED_EVERY):
            self._store.recount()
            self._recounted_at = now
        self._give_up(workers)
        suspects = self._suspects(workers)
        self._lost_since = {job_id: self._lost_since.get(job_id, now) for job_id in suspects}
        due = [job_id for job_id, since in self._lost_since.items() if now - since >= self._patience]
        for job_id in due:
            del self._lost_since[job_id]
        unheld = {job_id for job_id in due if not suspects[job_id]}
        there_after_all = unheld - self._store.without_message(unheld)
        lost = [job_id for job_id in due if job_id not in there_after_all]
        for job_id in reversed(lost):  # each goes to the front
            self._bring_back(job_id, suspects[job_id], workers)
        return lost

    def _give_up(self, workers: list[WorkerInfo]) -> None:
        """Fail the jobs whose model no living worker has had for long."""
        served = {
            queue
            for worker in workers
            for model in worker.models
            for queue in queues_of(model.version, worker.format)
        }
        for queue, seconds in self._store.unserved(served).items():
            if seconds >= self._model_patience:
                reason = (
                    f"No worker has had the version of the model that this job was made for in the last "
                    f"{self._model_patience:g} s. Ask again to have it made by the one that is served now."
                )
                failed = self._store.give_up(queue, reason)
                self._metrics.failed("", NO_WORKER, len(failed))
                for job_id in failed:
                    log.error("job failed", extra={"job_id": job_id, "queue": queue, "reason": reason})

    def _suspects(self, workers: list[WorkerInfo]) -> dict[str, str]:
        """Job that may be lost -> the worker that lost it, or "".

        Either a worker has taken it and does not report it in hand, or it stands at the front of the queue,
        has no message there, and no worker reports it.
        """
        holders = self._store.holders()
        in_hand = {worker.id: frozenset(worker.in_hand) for worker in workers}
        dropped = {job: worker for job, worker in holders.items() if job not in in_hand.get(worker, ())}
        known = holders.keys() | frozenset().union(*in_hand.values())
        first = self._store.first(FIRST, known)
        # there are more messages than jobs: that of a cancelled job stays until a worker takes it
        missing = self._store.without_message(first, most=2 * FIRST)
        return dropped | {job: "" for job in first if job in missing}

    def _bring_back(self, job_id: str, holder: str, workers: list[WorkerInfo]) -> None:
        job = self._store.job(job_id)
        if job is None or job.ended:
            return
        if not self._store.bring_back(job_id, job.spec, holder, format_for(job.spec, workers)):
            return
        self._metrics.brought_back.inc()
        trail.brought_back(job, holder)


def every(seconds: float, action: Callable[[], object], stopping: Event, name: str) -> Thread:
    """Run an action again and again on a thread of its own, with pauses, until `stopping` is set."""

    def run() -> None:
        while not stopping.is_set():
            try:
                action()
            except Stopping:
                return
            except Exception:  # the next run may succeed
                log.exception("%s", name)
            stopping.wait(seconds)

    thread = Thread(target=run, name=name, daemon=True)
    thread.start()
    return thread
