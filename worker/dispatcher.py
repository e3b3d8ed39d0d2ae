"""What this worker has in hand: jobs go to the scheduler, and their ends to Redis."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from threading import Lock
from time import monotonic, time
from typing import Final

from pydantic import ValidationError

from imaging.spec import ImageSpec
from jobs.job import JobSpec
from jobs.records import SPEC
from jobs.worker_store import Stopping, Taken, WorkerStore
from worker.engine import Engine, UnknownLayer
from worker.result_writer import ResultWriter
from worker.scheduler import Dropped, PendingJob, Scheduler
from worker.settings import WorkerSettings

log = logging.getLogger(__name__)

# Images that are taken from Redis in one look, in as many messages. Half a forward: a look costs as much as
# some of them do, and of a burst that several idle workers see at once each is to have its share.
AT_ONCE: Final = 8


class Dispatcher:
    """What the tasks of one worker share."""

    def __init__(
        self,
        settings: WorkerSettings,
        store: WorkerStore,
        scheduler: Scheduler[Engine],
        engines: Mapping[str, Engine],
        writer: ResultWriter,
    ) -> None:
        self._settings = settings
        self._store = store
        self._scheduler = scheduler
        self._engines = engines
        self._writer = writer
        self._lock = Lock()
        self._in_hand: dict[str, PendingJob | None] = {}
        self._given_back: list[str] = []
        self._images_a_job = 1

    def in_hand(self) -> tuple[str, ...]:
        """Ids of the jobs that are being worked on here."""
        with self._lock:
            return tuple(self._in_hand)

    def room(self) -> int:
        """Jobs to take in one look: fewer where they are long, going by the last; 0: enough are in hand."""
        with self._lock:
            left = max(0, self._settings.concurrency - len(self._in_hand))
            return min(left, max(1, AT_ONCE // self._images_a_job))

    def begin(self, job_id: str, spec: str, sent_at: float, done: Callable[[], None]) -> bool:
        """Make a new job, without waiting for anything. False: not so; `generate` can.

        spec: as JSON. sent_at: seconds since 1970, by the clock of whoever sent it. done: called from some
        thread when the job has ended, or is no longer ours to make; not at all if the worker stops before.
        """
        try:
            taken = Taken(job_id, SPEC.validate_json(spec), 0, frozenset())
        except ValidationError:
            return False
        if self._refusal(taken):
            return False
        pending = self._pending(taken)
        pending.wanted_at = monotonic() - max(0.0, time() - sent_at)
        with self._lock:
            known = job_id in self._in_hand
            if not known:
                self._in_hand[job_id] = pending
                self._images_a_job = taken.spec.count
        if known:
            done()  # a second message for what is being done
            return True
        pending.done.add_done_callback(lambda _: self._ended(pending, done))
        self._scheduler.submit(pending)
        return True

    def generate(self, job_id: str) -> None:
        """Make what is missing of a job. Raises Stopping if the worker stops before it is done."""
        with self._lock:
            if job_id in self._in_hand:
                return  # a second message for what is being done
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
        except Exception as error:  # whatever it is, the caller must hear of it  # noqa: BLE001
            self._fail(job_id, error)
        finally:
            self._let_go(job_id)

    def stop(self) -> None:
        """Give back what is not done, once nothing more will be made or stored."""
        with self._lock:
            pending_jobs = [pending for pending in self._in_hand.values() if pending is not None]
        for pending in pending_jobs:
            pending.end(Stopping("the worker is being stopped"))
        try:
            for job_id in self._given_back:
                self._store.release(job_id)
        except Stopping:
            log.warning("Redis is away: it will miss the jobs in hand by itself.")

    def attend(self, job_id: str, image: int, layer: str) -> None:
        """Make one attention map: the one forward of that image again, with the map taken out."""
        job = self._store.job(job_id)
        if job is None:
            return
        engine = self._engines.get(job.spec.model)
        if reason := self._mismatch(engine, job.spec.model, job.spec.model_hash, job.spec.precision):
            self._store.save_attention(job_id, image, layer, reason)
            return
        wanted = image_spec(job.spec, image)
        try:
            made = self._scheduler.call(
                job.spec.model, lambda engine: engine.attention(wanted, layer)
            ).result()
        except UnknownLayer as error:
            self._store.save_attention(job_id, image, layer, str(error))
        else:
            self._store.save_attention(job_id, image, layer, made[1])

    def _ended(self, pending: PendingJob, done: Callable[[], None]) -> None:
        """What follows the end of a pending that nobody waits for; in the thread that ended it."""
        error = pending.done.exception()
        if isinstance(error, Stopping):
            self._given_back.append(pending.job_id)  # it stays in hand, and its message unacknowledged
        elif error is None or isinstance(error, Dropped):
            self._let_go(pending.job_id)
            done()
        else:
            self._writer.do(partial(self._end_failed, pending.job_id, error, done))

    def _end_failed(self, job_id: str, error: BaseException, done: Callable[[], None]) -> None:
        try:
            self._fail(job_id, error)
        except Stopping:
            self._given_back.append(job_id)
            return
        except Exception:  # the sweeper finds that nobody has it in hand
            log.exception("the end of job %s could not be stored", job_id)
        self._let_go(job_id)
        done()

    def _fail(self, job_id: str, error: BaseException) -> None:
        log.error("job %s failed", job_id, exc_info=error)
        self._store.fail(job_id, f"The model could not make this image: {error}")

    def _let_go(self, job_id: str) -> None:
        with self._lock:
            self._in_hand.pop(job_id)

    def _make(self, taken: Taken) -> None:
        if reason := self._refusal(taken):
            log.error("job %s failed: %s", taken.job_id, reason)
            self._store.fail(taken.job_id, reason)
            return
        pending = self._pending(taken)
        with self._lock:
            self._in_hand[taken.job_id] = pending
        self._scheduler.submit(pending)
        pending.done.result()

    def _pending(self, taken: Taken) -> PendingJob:
        spec = taken.spec
        return PendingJob(
            job_id=taken.job_id,
            model=spec.model,
            priority=spec.priority,
            specs=[image_spec(spec, index) for index in range(spec.count) if index not in taken.made],
            about=spec,
            alone=taken.attempts > 0,
        )

    def _refusal(self, taken: Taken) -> str | None:
        """Why a job is not made; None: it is."""
        if taken.attempts >= self._settings.max_attempts:
            return (
                f"The worker died {taken.attempts} times in a row while making it, so it is not tried again."
            )
        spec = taken.spec
        return self._mismatch(self._engines.get(spec.model), spec.model, spec.model_hash, spec.precision)

    def _mismatch(self, engine: Engine | None, model: str, model_hash: str, precision: str) -> str | None:
        """Why the loaded model is not the one a job was made for; None: it is."""
        if engine is None:
            return f"No model {model!r} is loaded in this worker. Ask again with a model it has."
        info = engine.info
        if info.hash != model_hash:
            return (
                f"Model {model!r} was replaced since the job was made ({model_hash[:12]} then, "
                f"{info.hash[:12]} now). Ask again to have it made by the new one."
            )
        if info.precision != precision:
            return (
                f"Model {model!r} runs in {info.precision} now, the job was made for {precision}. Ask again."
            )
        return None


def image_spec(spec: JobSpec, index: int) -> ImageSpec:
    """The spec of image `index` of a job."""
    return ImageSpec(spec.class_id, spec.seed, index, spec.truncation)
