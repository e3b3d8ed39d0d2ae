"""The two Celery tasks, and what a task's thread does: take a job, wait for its images, store each as PNG."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from threading import Lock

from celery import Celery
from celery.exceptions import Reject

from worker.batcher import Batcher, Dropped, Ticket
from worker.encode import png, recipe_json
from worker.engine import Engine, UnknownLayer
from worker.jobs import recipe
from worker.queue import ATTENTION, GENERATE, QueueSettings
from worker.worker_store import Stopping, Taken, WorkerStore

log = logging.getLogger(__name__)


class Desk:
    """What the tasks of one worker share."""

    def __init__(
        self,
        settings: QueueSettings,
        store: WorkerStore,
        batcher: Batcher[Engine],
        engines: Mapping[str, Engine],
    ) -> None:
        self._settings = settings
        self._store = store
        self._batcher = batcher
        self._engines = engines
        self._lock = Lock()
        self._in_hand: set[str] = set()

    def in_hand(self) -> tuple[str, ...]:
        """Ids of the jobs that a thread here is working on."""
        with self._lock:
            return tuple(self._in_hand)

    def generate(self, job_id: str) -> None:
        """Make what is missing of a job. Raises Stopping if the worker stops before it is done."""
        with self._lock:
            if job_id in self._in_hand:
                return  # a second message for what is being done
            self._in_hand.add(job_id)
        try:
            taken = self._store.take(job_id)
            if taken is not None:
                self._make(taken)
        except Dropped:
            pass
        except Stopping:
            self._store.release(job_id)
            raise
        except Exception as error:  # whatever it is, the caller must hear of it
            log.exception("job %s failed", job_id)
            self._store.fail(job_id, f"The model could not make this image: {error}")
        finally:
            with self._lock:
                self._in_hand.discard(job_id)

    def attend(self, job_id: str, image: int, layer: str) -> None:
        """Make one attention map: the one forward of that image again, with the map taken out."""
        job = self._store.job(job_id)
        if job is None:
            return
        engine = self._engines.get(job.spec.model)
        if reason := self._mismatch(engine, job.spec.model, job.spec.model_hash, job.spec.precision):
            self._store.save_attention(job_id, image, layer, reason)
            return
        wanted = job.recipe(image)
        try:
            made = self._batcher.call(job.spec.model, lambda engine: engine.attention(wanted, layer)).result()
        except UnknownLayer as error:
            self._store.save_attention(job_id, image, layer, str(error))
        else:
            self._store.save_attention(job_id, image, layer, made[1])

    def _make(self, taken: Taken) -> None:
        spec = taken.spec
        reason = self._mismatch(self._engines.get(spec.model), spec.model, spec.model_hash, spec.precision)
        if taken.attempts >= self._settings.max_attempts:
            reason = (
                f"The worker died {taken.attempts} times in a row while making it, so it is not tried again."
            )
        if reason:
            log.error("job %s failed: %s", taken.job_id, reason)
            self._store.fail(taken.job_id, reason)
            return
        missing = [index for index in range(spec.count) if index not in taken.made]
        ticket = Ticket(
            job_id=taken.job_id,
            model=spec.model,
            priority=spec.priority,
            recipes=[recipe(spec, index) for index in missing],
            alone=taken.attempts > 0,
        )
        self._batcher.submit(ticket)
        for index, future in zip(missing, ticket.futures, strict=True):
            if not self._store.save(taken.job_id, index, png(future.result(), recipe_json(spec, index))):
                self._batcher.drop(ticket)  # that was the last, or the job was cancelled
                return

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


def register(celery: Celery, desk: Desk) -> None:
    """Make the tasks known to the Celery app of this worker."""

    @celery.task(name=GENERATE)  # type: ignore[untyped-decorator]
    def generate(job_id: str) -> None:
        try:
            desk.generate(job_id)
        except Stopping:
            raise Reject("the worker is being stopped", requeue=True) from None

    @celery.task(name=ATTENTION)  # type: ignore[untyped-decorator]
    def attention(job_id: str, image: int, layer: str) -> None:
        try:
            desk.attend(job_id, image, layer)
        except Stopping:
            raise Reject("the worker is being stopped", requeue=True) from None
