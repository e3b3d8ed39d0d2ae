"""The two Celery tasks; and the clerk, who encodes and stores what the forwards make.

A new job comes with its spec, and Redis need not be asked before it can be made: Celery's consumer hands it
to the batcher, and its message is acknowledged when it has ended. What may have to wait for Redis has a
thread of Celery's pool: a job that comes a second time, and attention maps.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import inf
from queue import SimpleQueue
from threading import Lock, Thread
from time import monotonic, time
from typing import Any, Final

from celery import Celery
from celery.exceptions import InvalidTaskError, Reject
from celery.worker.strategy import default as on_a_pool_thread
from pydantic import ValidationError

from worker.batcher import Batcher, Dropped, Made, Ticket
from worker.encode import png, recipe_json
from worker.engine import Engine, UnknownLayer
from worker.jobs import recipe
from worker.message import ATTENTION, GENERATE
from worker.settings import WorkerSettings
from worker.wire import SPEC
from worker.worker_store import Stopping, Taken, WorkerStore

log = logging.getLogger(__name__)

# Images that are taken from Redis in one look, in as many messages. Half a forward: a look costs as much as
# some of them do, and of a burst that several idle workers see at once each is to have its share.
AT_ONCE: Final = 8


class Desk:
    """What the tasks of one worker share."""

    def __init__(
        self,
        settings: WorkerSettings,
        store: WorkerStore,
        batcher: Batcher[Engine],
        engines: Mapping[str, Engine],
        clerk: Clerk,
    ) -> None:
        self._settings = settings
        self._store = store
        self._batcher = batcher
        self._engines = engines
        self._clerk = clerk
        self._lock = Lock()
        self._in_hand: dict[str, Ticket | None] = {}
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
        ticket = self._ticket(taken)
        ticket.wanted_at = monotonic() - max(0.0, time() - sent_at)
        with self._lock:
            known = job_id in self._in_hand
            if not known:
                self._in_hand[job_id] = ticket
                self._images_a_job = taken.spec.count
        if known:
            done()  # a second message for what is being done
            return True
        ticket.done.add_done_callback(lambda _: self._ended(ticket, done))
        self._batcher.submit(ticket)
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
            tickets = [ticket for ticket in self._in_hand.values() if ticket is not None]
        for ticket in tickets:
            ticket.end(Stopping("the worker is being stopped"))
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
        wanted = job.recipe(image)
        try:
            made = self._batcher.call(job.spec.model, lambda engine: engine.attention(wanted, layer)).result()
        except UnknownLayer as error:
            self._store.save_attention(job_id, image, layer, str(error))
        else:
            self._store.save_attention(job_id, image, layer, made[1])

    def _ended(self, ticket: Ticket, done: Callable[[], None]) -> None:
        """What follows the end of a ticket that nobody waits for; in the thread that ended it."""
        error = ticket.done.exception()
        if isinstance(error, Stopping):
            self._given_back.append(ticket.job_id)  # it stays in hand, and its message unacknowledged
        elif error is None or isinstance(error, Dropped):
            self._let_go(ticket.job_id)
            done()
        else:
            self._clerk.do(partial(self._end_failed, ticket.job_id, error, done))

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
        ticket = self._ticket(taken)
        with self._lock:
            self._in_hand[taken.job_id] = ticket
        self._batcher.submit(ticket)
        ticket.done.result()

    def _ticket(self, taken: Taken) -> Ticket:
        spec = taken.spec
        return Ticket(
            job_id=taken.job_id,
            model=spec.model,
            priority=spec.priority,
            recipes=[recipe(spec, index) for index in range(spec.count) if index not in taken.made],
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


class Clerk:
    """Encodes images and stores them, as many as there are in one round trip, so that no forward waits."""

    def __init__(self, store: WorkerStore) -> None:
        self._store = store
        self._work: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = Thread(target=self._run, name="clerk", daemon=True)
        self._thread.start()

    def take(self, images: Sequence[Made]) -> None:
        """The images of a forward; their tickets end when the last is stored."""
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
        now = monotonic()
        for made, still in zip(by_job, goes_on, strict=True):
            made.ticket.stored += 1
            made.ticket.wanted_at = now if still else -inf
            # the job has ended, or the rest of it is another worker's
            if not still or made.ticket.stored == len(made.ticket.recipes):
                made.ticket.end()


def _end(images: Sequence[Made], error: Exception) -> None:
    for made in images:
        made.ticket.end(error)


def register(celery: Celery, desk: Desk) -> None:
    """Make the tasks known to the Celery app of this worker."""

    def strategy(task: Any, app: Celery, consumer: Any) -> Callable[..., None]:
        """What Celery's consumer does with a message for `generate`."""
        long_way = on_a_pool_thread(task, app, consumer)

        def receive(message: Any, body: Any, ack: Any, reject: Any, callbacks: Any) -> None:
            new = _new_job(message)
            # message.ack and not Celery's ack, which goes through the consumer's thread and wakes it for each
            # message: for worker.transport one thread is as good as another.
            if new is None or not desk.begin(*new, done=message.ack):
                long_way(message, body, ack, reject, callbacks)

        return receive

    # static, or the class of the task makes a method of it
    @celery.task(name=GENERATE, Strategy=staticmethod(strategy))  # type: ignore[untyped-decorator]
    def generate(job_id: str, spec: str | None = None) -> None:
        try:
            desk.generate(job_id)  # what the record says: the spec is older
        except Stopping:
            raise Reject("the worker is being stopped", requeue=True) from None

    @celery.task(name=ATTENTION)  # type: ignore[untyped-decorator]
    def attention(job_id: str, image: int, layer: str) -> None:
        try:
            desk.attend(job_id, image, layer)
        except Stopping:
            raise Reject("the worker is being stopped", requeue=True) from None


def _new_job(message: Any) -> tuple[str, str, float] | None:
    """Id and spec of a job that comes for the first time, and when it was sent; None: it comes again.

    Raises InvalidTaskError.
    """
    try:
        (job_id, spec), _, _ = json.loads(message.body)
    except (TypeError, ValueError):
        job_id = spec = None
    if not isinstance(job_id, str) or not isinstance(spec, str | None):
        raise InvalidTaskError("this is not the body of a job's message")
    if spec is None or message.delivery_info.get("redelivered"):
        return None
    sent_at = message.properties.get("timestamp")
    return job_id, spec, sent_at if isinstance(sent_at, float) else 0.0
