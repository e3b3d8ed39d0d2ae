"""What a worker does beside its jobs: signs of life, and bringing back jobs that were lost."""

from __future__ import annotations

import logging
from collections.abc import Callable
from threading import Event, Thread
from time import monotonic

from worker.jobs import Job, JobError
from worker.queue import QueueSettings
from worker.worker_store import Stopping, WorkerStore

log = logging.getLogger(__name__)


class Sweeper:
    """Publishes again each open job that nobody has in hand and whose message is in no list.

    That is a job whose worker died, whose publisher died between record and message, or whose message Redis
    lost. A job must look lost for a few heartbeats on end: what was read may be that much out of date. To be
    wrong is harmless, since a worker drops a second message for a job.
    """

    def __init__(self, settings: QueueSettings, store: WorkerStore, publish: Callable[[Job], None]) -> None:
        self._store = store
        self._publish = publish
        self._patience = 2.5 * settings.heartbeat_period  # seconds
        self._lock_seconds = settings.worker_ttl
        self._lost_since: dict[str, float] = {}

    def sweep(self) -> list[str]:
        """One pass, unless another worker is the one that sweeps. Returns the jobs published again."""
        if not self._store.may_sweep(self._lock_seconds):
            self._lost_since.clear()
            return []
        lost = self._lost()
        now = monotonic()
        self._lost_since = {job_id: self._lost_since.get(job_id, now) for job_id in lost}
        due = [job_id for job_id, since in self._lost_since.items() if now - since >= self._patience]
        for job_id in due:
            self._bring_back(job_id, lost[job_id])
            del self._lost_since[job_id]
        return due

    def _lost(self) -> dict[str, str]:
        """Jobs that look lost, and who held them last ("": nobody)."""
        holdings = self._store.holdings()
        in_hand = self._store.in_hand({holding.worker for holding in holdings if holding.worker})
        held = {
            h.job_id: h.worker for h in holdings if h.worker and h.job_id not in in_hand.get(h.worker, ())
        }
        unheld = {holding.job_id for holding in holdings if not holding.worker}
        # The lists can be long; they are read in full only if they are too short to hold all that wait.
        missing = unheld - self._store.waiting() if len(unheld) > self._store.messages() else set()
        return held | dict.fromkeys(missing, "")

    def _bring_back(self, job_id: str, holder: str) -> None:
        job = self._store.job(job_id)
        if job is None or job.ended or not self._store.release(job_id, holder):
            return
        log.warning("job %s was lost%s: published again", job_id, f" with worker {holder}" if holder else "")
        try:
            self._publish(job)
        except JobError as error:
            log.warning("job %s waits for the next sweep: %s", job_id, error)


def every(seconds: float, action: Callable[[], object], stopping: Event, name: str) -> Thread:
    """Run action on a thread of its own, again and again, until stopping is set."""

    def run() -> None:
        while not stopping.is_set():
            try:
                action()
            except Stopping:
                return
            except Exception:  # the next round may go better
                log.exception("%s", name)
            stopping.wait(seconds)

    thread = Thread(target=run, name=name, daemon=True)
    thread.start()
    return thread
