"""The two Celery tasks; and the clerk, who encodes and stores what the forwards make."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Any

from celery import Celery
from celery.exceptions import Reject

from worker.batcher import Batcher, Dropped, Made, Ticket
from worker.encode import png, recipe_json
from worker.engine import Engine, UnknownLayer
from worker.jobs import SPEC, recipe
from worker.message import ATTENTION, GENERATE
from worker.settings import QueueSettings
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
        self._in_hand: dict[str, Ticket | None] = {}

    def in_hand(self) -> tuple[str, ...]:
        """Ids of the jobs that a thread here is working on."""
        with self._lock:
            return tuple(self._in_hand)

    def generate(self, job_id: str, spec: str | None) -> None:
        """Make what is missing of a job. Raises Stopping if the worker stops before it is done.

        spec: as JSON, where this is the first message for a job and nobody can have begun it.
        """
        with self._lock:
            if job_id in self._in_hand:
                return  # a second message for what is being done
            self._in_hand[job_id] = None
        try:
            if spec is not None:
                taken: Taken | None = Taken(job_id, SPEC.validate_json(spec), 0, frozenset())
            else:
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
                self._in_hand.pop(job_id)

    def stop(self) -> None:
        """Give back what is not done, once nothing more will be made or stored."""
        with self._lock:
            tickets = [ticket for ticket in self._in_hand.values() if ticket is not None]
        for ticket in tickets:
            ticket.end(Stopping("the worker is being stopped"))

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
            about=spec,
            alone=taken.attempts > 0,
        )
        with self._lock:
            self._in_hand[taken.job_id] = ticket
        self._batcher.submit(ticket)
        ticket.done.result()

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


class Clerk:
    """Encodes images and stores them, as many as there are in one round trip, so that no forward waits."""

    def __init__(self, store: WorkerStore) -> None:
        self._store = store
        self._made: SimpleQueue[Sequence[Made] | None] = SimpleQueue()
        self._thread = Thread(target=self._run, name="clerk", daemon=True)
        self._thread.start()

    def take(self, images: Sequence[Made]) -> None:
        """The images of a forward; their tickets end when the last is stored."""
        self._made.put(images)

    def close(self, seconds: float) -> None:
        """Store what was taken, and end."""
        self._made.put(None)
        self._thread.join(seconds)

    def _run(self) -> None:
        while (images := self._made.get()) is not None:
            try:
                self._store_all(images)
            except Stopping as stopping:
                _end(images, stopping)
            except Exception as error:  # the thread must go on for the others
                log.exception("images could not be stored")
                _end(images, error)

    def _store_all(self, images: Sequence[Made]) -> None:
        by_job = sorted(images, key=lambda made: made.ticket.job_id)
        goes_on = self._store.save(
            [
                (
                    made.ticket.job_id,
                    made.recipe.index,
                    png(made.pixels, recipe_json(made.ticket.about, made.recipe.index)),
                )
                for made in by_job
            ]
        )
        for made, still in zip(by_job, goes_on, strict=True):
            made.ticket.stored += 1
            # the job has ended, or the rest of it is another worker's
            if not still or made.ticket.stored == len(made.ticket.recipes):
                made.ticket.end()


def _end(images: Sequence[Made], error: Exception) -> None:
    for made in images:
        made.ticket.end(error)


def register(celery: Celery, desk: Desk) -> None:
    """Make the tasks known to the Celery app of this worker."""

    @celery.task(name=GENERATE, bind=True)  # type: ignore[untyped-decorator]
    def generate(self: Any, job_id: str, spec: str | None = None) -> None:
        again = self.request.delivery_info.get("redelivered")
        try:
            desk.generate(job_id, None if again else spec)
        except Stopping:
            raise Reject("the worker is being stopped", requeue=True) from None

    @celery.task(name=ATTENTION)  # type: ignore[untyped-decorator]
    def attention(job_id: str, image: int, layer: str) -> None:
        try:
            desk.attend(job_id, image, layer)
        except Stopping:
            raise Reject("the worker is being stopped", requeue=True) from None
