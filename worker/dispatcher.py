"""The jobs that this worker has in hand: from the queue to the scheduler, and their outcome to Redis."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from threading import Lock
from time import monotonic, time
from typing import Final

from pydantic import ValidationError

from jobs.job import NOWHERE, Context, Taken
from jobs.records import SPEC
from jobs.worker_results import StoreFailed
from jobs.worker_store import Stopping, WorkerStore
from worker import trail
from worker.engine import Engine, UnknownLayer
from worker.metrics import WORKER_DIED, WorkerMetrics, reason_of
from worker.pending import Dropped, PendingJob, image_spec
from worker.result_writer import ResultWriter
from worker.scheduler import Scheduler
from worker.settings import WorkerSettings

log = logging.getLogger(__name__)

# Images of the jobs taken from Redis in one look: half a forward. More would cost less a job, but this leaves
# every idle worker a share of a burst.
AT_ONCE: Final = 8

# Attention maps in hand from which on a look takes none. Each has a thread of the pool, where a job that
# comes a second time needs one as well; the others wait in Redis.
MAPS: Final = 8


@dataclass(frozen=True)
class NewMessage:
    """A job that comes for the first time."""

    job_id: str
    spec: str  # JSON
    sent_at: float  # seconds since 1970, by the sender's clock
    context: Context = NOWHERE


class Dispatcher:
    """Takes jobs and attention maps from Celery's threads and sees each through to its end."""

    def __init__(
        self,
        settings: WorkerSettings,
        store: WorkerStore,
        scheduler: Scheduler[Engine],
        engines: Callable[[], Mapping[str, Engine]],
        writer: ResultWriter,
        metrics: WorkerMetrics | None = None,
    ) -> None:
        """engines: those that are loaded now, by version. metrics: what failures are counted in."""
        self._metrics = metrics or WorkerMetrics()
        self._settings = settings
        self._store = store
        self._scheduler = scheduler
        self._engines = engines
        self._writer = writer
        self._lock = Lock()
        self._in_hand: dict[str, PendingJob | None] = {}
        self._handed_back: list[str] = []
        self._images_a_job = 1
        self._maps = 0  # in hand

    def in_hand(self) -> tuple[str, ...]:
        """Ids of the jobs that this worker works on."""
        with self._lock:
            return tuple(self._in_hand)

    def versions_in_hand(self) -> frozenset[str]:
        """Versions of models for which this worker has jobs."""
        with self._lock:
            return frozenset(job.spec.version for job in self._in_hand.values() if job is not None)

    def room(self) -> int:
        """Jobs to take in one look: fewer if the last one taken was long; 0: enough are in hand."""
        with self._lock:
            left = max(0, self._settings.concurrency - len(self._in_hand))
            return min(left, max(1, AT_ONCE // self._images_a_job))

    def wants_maps(self) -> bool:
        """Whether attention maps are to be taken as well."""
        return self._maps < min(MAPS, self._settings.concurrency)

    def begin(self, new: NewMessage, done: Callable[[], None]) -> bool:
        """Queue a new job in the scheduler without asking Redis. False: this needs `generate`.

        done: called from some thread when the job has ended or another worker has it; not called if the
        worker stops before.
        """
        job_id = new.job_id
        try:
            taken = Taken(job_id, SPEC.validate_json(new.spec), context=new.context)
        except ValidationError:
            return False
        pending = self._pending(taken)
        pending.wanted_at = monotonic() - max(0.0, time() - new.sent_at)
        pending.sent_at = new.sent_at
        with self._lock:
            known = job_id in self._in_hand
            if not known and taken.spec.version not in self._engines():
                return False
            if not known:
                self._in_hand[job_id] = pending
                self._images_a_job = taken.spec.count
        if known:
            done()  # a second message for the same job
            return True
        self._submit(pending, done)
        return True

    def take_over(self, job_id: str) -> None:
        """Make a job whose message is nowhere any more. Raises Stopping."""
        taken = self._store.take(job_id)
        if taken is None or taken.spec.version not in self._engines():
            return  # the sweeper of another worker finds it
        if reason := self._refusal(taken):
            self._give_up(taken, reason)
            return
        pending = self._pending(taken)
        with self._lock:
            if job_id in self._in_hand:
                return
            self._in_hand[job_id] = pending
        self._submit(pending, lambda: None)

    def _submit(self, pending: PendingJob, done: Callable[[], None]) -> None:
        trail.taken(pending)
        pending.done.add_done_callback(lambda _: self._ended(pending, done))
        self._scheduler.submit(pending)

    def generate(self, job_id: str) -> None:
        """Make the missing images of a job. Raises Stopping if the worker stops before the end."""
        with self._lock:
            if job_id in self._in_hand:
                return  # a second message for the same job
            self._in_hand[job_id] = None
        try:
            taken = self._store.take(job_id)
            if taken is not None:
                self._make(taken)
        except Dropped:
            pass
        except Stopping:
            self._store.release(job_id)
            raise
        except Exception as error:  # the client must hear of any error
            with self._lock:
                pending = self._in_hand[job_id]
            if pending is None:  # else its trail has told
                log.exception("job failed", extra={"job_id": job_id})
            self._fail(job_id, pending.spec.model if pending else "", error)
        finally:
            self._let_go(job_id)

    def stop(self) -> None:
        """Hand back the unfinished jobs. Call it when the scheduler and the writer have ended."""
        with self._lock:
            pending_jobs = [pending for pending in self._in_hand.values() if pending is not None]
        for pending in pending_jobs:
            pending.end(Stopping("the worker is being stopped"))
        try:
            for job_id in self._handed_back:
                self._store.release(job_id)
        except Stopping:
            log.warning("Redis is away: another worker's sweeper will bring the jobs in hand back.")

    def attend(self, job_id: str, image: int, layer: str) -> None:
        """Make one attention map: repeat the image's forward, this time with its map.

        A map that nobody waits for any more is not made.
        """
        with self._lock:
            self._maps += 1
        try:
            self._attend(job_id, image, layer)
        finally:
            with self._lock:
                self._maps -= 1

    def _attend(self, job_id: str, image: int, layer: str) -> None:
        job = self._store.job(job_id)
        if not self._store.wants_attention(job_id, image, layer):
            return
        if job is None:
            self._store.save_attention(job_id, image, layer, "Its job is gone.")
            return
        if job.spec.version not in self._engines():
            self._store.pass_on_map(job, image, layer, self._store.workers())
            return
        wanted = image_spec(job.spec, image)
        try:
            call = self._scheduler.call(job.spec, lambda engine: engine.attention(wanted, layer))
            _, attention_map = call.result()
        except UnknownLayer as error:
            self._store.save_attention(job_id, image, layer, str(error))
        except Stopping:
            raise
        except Exception as error:  # whoever waits must hear of any error
            told = {"job_id": job_id, "layer": layer, "image": image}
            log.exception("attention map failed", extra=told)
            reason = f"The model could not make this map: {error}"
            self._store.save_attention(job_id, image, layer, reason)
        else:
            try:
                self._store.save_attention(job_id, image, layer, attention_map)
            except StoreFailed as error:
                self._store.save_attention(job_id, image, layer, str(error))

    def _ended(self, pending: PendingJob, done: Callable[[], None]) -> None:
        """Runs when a job of `begin` has ended, in the thread that ended it."""
        error = pending.done.exception()
        if isinstance(error, Stopping):
            self._handed_back.append(pending.job_id)  # it stays in hand and its message unacknowledged
        elif error is None or isinstance(error, Dropped):
            self._let_go(pending.job_id)
            done()
        else:
            self._writer.do(partial(self._end_failed, pending, error, done))

    def _end_failed(self, pending: PendingJob, error: BaseException, done: Callable[[], None]) -> None:
        job_id = pending.job_id
        try:
            self._fail(job_id, pending.spec.model, error)
        except Stopping:
            self._handed_back.append(job_id)
            return
        except Exception:  # the sweeper will find it in nobody's hand
            log.exception("a job's end could not be stored", extra={"job_id": job_id})
        self._let_go(job_id)
        done()

    def _fail(self, job_id: str, model: str, error: BaseException) -> None:
        if isinstance(error, StoreFailed):
            if self._store.fail(job_id, str(error)):
                self._metrics.failed(model, reason_of(error))
            return
        if self._store.fail(job_id, f"The model could not make this image: {error}"):
            self._metrics.failed(model, reason_of(error))

    def _give_up(self, taken: Taken, reason: str) -> None:
        trail.failed(taken.job_id, taken.context, taken.spec, reason)
        if self._store.fail(taken.job_id, reason):
            self._metrics.failed(taken.spec.model, WORKER_DIED)

    def _let_go(self, job_id: str) -> None:
        with self._lock:
            self._in_hand.pop(job_id)

    def _make(self, taken: Taken) -> None:
        if reason := self._refusal(taken):
            self._give_up(taken, reason)
            return
        pending = self._pending(taken)
        with self._lock:
            self._in_hand[taken.job_id] = pending
        if taken.spec.version not in self._engines():
            self._store.pass_on(taken.job_id, taken.spec, self._store.workers())
            return
        trail.taken(pending)
        self._scheduler.submit(pending)
        pending.done.result()

    def _pending(self, taken: Taken) -> PendingJob:
        spec = taken.spec
        return PendingJob(
            job_id=taken.job_id,
            spec=spec,
            images=[image for image in range(spec.count) if image not in taken.made],
            context=taken.context,
            alone=taken.attempts > 0,
        )

    def _refusal(self, taken: Taken) -> str | None:
        """Why a job is not to be made; None: it is."""
        if (deaths := taken.attempts) >= self._settings.max_attempts:
            return f"The worker died {deaths} times in a row while making it, so it is not tried again."
        return None
