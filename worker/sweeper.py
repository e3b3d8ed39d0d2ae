"""What a worker does beside its jobs: signs of life, and bringing back jobs that were lost."""

from __future__ import annotations

import logging
from collections.abc import Callable
from threading import Event, Thread
from time import monotonic
from typing import Final

from jobs.settings import QueueSettings
from jobs.worker_store import Stopping, WorkerStore

log = logging.getLogger(__name__)

FIRST: Final = 100  # jobs at the front of the queue that a pass looks at


class Sweeper:
    """Queues again each open job that nobody has in hand and whose message is in no list.

    That is a job whose worker died, or whose message Redis lost. A job must look lost for a few heartbeats on
    end: what was read may be that much out of date. To be wrong is harmless, since a worker drops a second
    message for a job.

    A queue can be long, and is read to its end only for a job that seems lost by all else: what has no
    message is overtaken by what is behind it, and so is found among the first.
    """

    def __init__(self, settings: QueueSettings, store: WorkerStore) -> None:
        self._store = store
        self._patience = 2.5 * settings.heartbeat_period  # seconds
        self._lock_seconds = settings.worker_ttl
        self._lost_since: dict[str, float] = {}

    def sweep(self) -> list[str]:
        """One pass, unless another worker is the one that sweeps. Returns the jobs queued again."""
        if not self._store.may_sweep(self._lock_seconds):
            self._lost_since.clear()
            return []
        now = monotonic()
        suspects = self._suspects()
        self._lost_since = {job_id: self._lost_since.get(job_id, now) for job_id in suspects}
        due = [job_id for job_id, since in self._lost_since.items() if now - since >= self._patience]
        for job_id in due:
            del self._lost_since[job_id]
        unheld = {job_id for job_id in due if not suspects[job_id]}
        there_after_all = unheld - self._store.without_message(unheld)
        lost = [job_id for job_id in due if job_id not in there_after_all]
        for job_id in reversed(lost):  # each goes to the front
            self._bring_back(job_id, suspects[job_id])
        return lost

    def _suspects(self) -> dict[str, str]:
        """Jobs that the worker which held them does not have in hand, and that worker; and jobs that should
        be taken next, have no message where messages are taken and are in nobody's hand, and "".
        """
        holders = self._store.holders()
        in_hand = self._store.in_hand()
        dropped = {job: worker for job, worker in holders.items() if job not in in_hand.get(worker, ())}
        known = holders.keys() | frozenset().union(*in_hand.values())
        first = self._store.first(FIRST, known)
        # more messages than jobs: those of cancelled jobs stay until they are taken
        missing = self._store.without_message(first, most=2 * FIRST)
        return dropped | {job: "" for job in first if job in missing}

    def _bring_back(self, job_id: str, holder: str) -> None:
        job = self._store.job(job_id)
        if job is None or job.ended or not self._store.bring_back(job, holder):
            return
        log.warning("job %s was lost%s: queued again", job_id, f" with worker {holder}" if holder else "")


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
