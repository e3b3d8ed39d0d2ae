"""Celery's side of a worker: its two tasks, and its consumer in the main thread.

The message of a new job carries the spec, so the consumer hands the job to the dispatcher without asking
Redis, and the message is acknowledged when the job has ended. A job that comes a second time and an attention
map may have to wait for Redis: each of them gets a thread of Celery's pool.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from celery import Celery, bootsteps, signals
from celery.apps import worker as celery_worker
from celery.exceptions import InvalidTaskError, Reject, SecurityWarning
from celery.worker.strategy import default as on_a_pool_thread
from kombu.entity import Queue
from kombu.utils.scheduling import sorted_cycle

from jobs.job import NOWHERE
from jobs.records import as_context
from jobs.wire import ATTENTION, CONTEXT_HEADER, GENERATE, is_generate_queue
from jobs.worker_store import Stopping
from worker.dispatcher import Dispatcher, NewMessage
from worker.transport import wire, wired


@dataclass(frozen=True)
class Hooks:
    """What the consumer asks of the worker, and tells it."""

    wants_jobs: Callable[[], bool]  # asked before each look into Redis; False: take no jobs
    wants_maps: Callable[[], bool]  # likewise of attention maps
    on_signal: Callable[[], None]  # at SIGTERM and SIGINT, in the signal handler: no locks, no logging
    hand_back: Callable[[], None]  # returns when all results are stored and the other jobs handed back
    looked: Callable[[], None]  # called after each look into Redis that was answered


class Queues:
    """The queues that a worker takes from; `take_from` may be called from any thread, at any time."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = frozenset(names)
        self._worker: Any = None  # Celery's, once it runs

    def take_from(self, names: Iterable[str]) -> None:
        self.names = frozenset(names)
        consumer = getattr(self._worker, "consumer", None)
        if consumer is not None:
            consumer.call_soon(self._apply)

    def attach(self, worker: Any) -> None:
        self._worker = worker

    def _apply(self) -> None:
        """Runs in the consumer's thread."""
        consumer = self._worker.consumer
        known = consumer.app.amqp.queues
        if consumer.task_consumer is None:
            return
        taken = set(known.consume_from)
        for name in self.names - taken:
            known.add(Queue(name))  # type: ignore[no-untyped-call]
            consumer.add_task_queue(name)
        for name in taken - self.names:
            consumer.cancel_task_queue(name)


def register(celery: Celery, dispatcher: Dispatcher) -> None:
    """Make the tasks known to the Celery app of this worker."""
    tools = celery.conf.worker_enable_remote_control

    def strategy(task: Any, app: Celery, consumer: Any) -> Callable[..., None]:
        """How Celery's consumer handles a message for `generate`."""
        long_way = on_a_pool_thread(task, app, consumer)
        if tools:  # they know what goes Celery's own way
            return long_way  # type: ignore[no-any-return]

        def receive(message: Any, body: Any, ack: Any, reject: Any, callbacks: Any) -> None:
            new = _new_job(message)
            # message.ack may be called from any thread (see worker.transport). Celery's ack goes through the
            # consumer's thread and wakes it for each message.
            if new is None or not dispatcher.begin(new, done=message.ack):
                long_way(message, body, ack, reject, callbacks)

        return receive

    # static, or the class of the task makes a method of it
    @celery.task(name=GENERATE, Strategy=staticmethod(strategy))  # type: ignore[untyped-decorator]
    def generate(job_id: str, spec: str | None = None) -> None:
        try:
            dispatcher.generate(job_id)  # by the record: the spec in the message does not tell what is made
        except Stopping:
            raise Reject("the worker is being stopped", requeue=True) from None

    @celery.task(name=ATTENTION)  # type: ignore[untyped-decorator]
    def attention(job_id: str, image: int, layer: str) -> None:
        try:
            dispatcher.attend(job_id, image, layer)
        except Stopping:
            raise Reject("the worker is being stopped", requeue=True) from None


def consume(celery: Celery, queues: Queues, concurrency: int, room: Callable[[], int], hooks: Hooks) -> int:
    """Run Celery's consumer in this thread until a signal ends it; returns the exit code.

    concurrency: jobs in hand at once. room: jobs to take in one look.
    """
    options = celery.conf.broker_transport_options
    order = _order(hooks.wants_jobs, hooks.wants_maps)
    wiring = replace(wired(options), order=order, room=room, looked=hooks.looked)
    celery.conf.broker_transport_options = {**options, **wire(wiring)}
    celery.steps["worker"].add(_hand_back_step(hooks.hand_back))

    def on_shutdown(**_: object) -> None:
        hooks.on_signal()

    # Celery warns root because of pickles, and this worker reads JSON alone.
    warnings.filterwarnings("ignore", category=SecurityWarning)
    signals.worker_shutting_down.connect(on_shutdown, weak=False)
    signals.setup_logging.connect(_keep_our_logging, weak=False)
    tools = celery.conf.worker_enable_remote_control
    worker = celery.Worker(
        pool="threads",
        concurrency=concurrency,
        hostname=f"sagan-{os.getpid()}@{socket.gethostname()}",  # two on a machine have two names
        loglevel="WARNING",
        without_mingle=True,  # nothing to ask other workers, and no need to wait a second for their answer
        without_gossip=True,
        without_heartbeat=not tools,  # ours carries the models
        quiet=True,
    )
    queues.attach(worker)
    celery_worker.safe_say = _say_nothing  # it prints beside the log, that a signal has come
    try:
        worker.start()
    except SystemExit as end:
        return int(end.code or 0)
    return int(worker.exitcode or 0)


def _order(wants_jobs: Callable[[], bool], wants_maps: Callable[[], bool]) -> type[sorted_cycle]:
    """The order in which a look into Redis asks the queues; kombu makes one object of it."""

    class AttentionFirst(sorted_cycle):
        """By name, so "attention…" comes before "generate…"; each is left out while it is not wanted."""

        def consume(self, n: int) -> list[str]:
            names: list[str] = super().consume(n)  # type: ignore[no-untyped-call]
            maps, jobs = wants_maps(), wants_jobs()
            return [name for name in names if (jobs if is_generate_queue(name) else maps)]

    return AttentionFirst


def _hand_back_step(hand_back: Callable[[], None]) -> type[bootsteps.StartStopStep]:
    class HandBack(bootsteps.StartStopStep):  # type: ignore[misc]
        """Keeps the connection until the jobs in hand are stored or handed back."""

        requires = ("celery.worker.components:Pool",)

        def stop(self, worker: object) -> None:
            hand_back()

        terminate = stop

    return HandBack


def _say_nothing(*_: object) -> None:
    pass


def _keep_our_logging(**_: object) -> None:
    if logging.getLogger().level <= logging.DEBUG:
        return  # all is asked for
    logging.getLogger("celery").setLevel(logging.WARNING)
    # it logs a traceback for each job handed back, and the job's events tell of that already
    logging.getLogger("celery.app.trace").setLevel(logging.ERROR)
    # without a connection it logs an error in one line, after a warning with a traceback that says no more
    logging.getLogger("celery.worker.consumer.consumer").setLevel(logging.ERROR)


def _new_job(message: Any) -> NewMessage | None:
    """A job that comes for the first time; None: it comes again.

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
    context = message.headers.get(CONTEXT_HEADER)
    return NewMessage(
        job_id,
        spec,
        sent_at if isinstance(sent_at, float) else 0.0,
        as_context(context) if context else NOWHERE,
    )
