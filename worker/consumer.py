"""The two Celery tasks, and what Celery's consumer does with their messages.

A new job comes with its spec, and Redis need not be asked before it can be made: the consumer hands it to the
dispatcher, and its message is acknowledged when it has ended. What may have to wait for Redis has a thread of
Celery's pool: a job that comes a second time, and attention maps.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from celery import Celery
from celery.exceptions import InvalidTaskError, Reject
from celery.worker.strategy import default as on_a_pool_thread

from jobs.wire import ATTENTION, GENERATE
from jobs.worker_store import Stopping
from worker.dispatcher import Dispatcher


def register(celery: Celery, dispatcher: Dispatcher) -> None:
    """Make the tasks known to the Celery app of this worker."""

    def strategy(task: Any, app: Celery, consumer: Any) -> Callable[..., None]:
        """What Celery's consumer does with a message for `generate`."""
        long_way = on_a_pool_thread(task, app, consumer)

        def receive(message: Any, body: Any, ack: Any, reject: Any, callbacks: Any) -> None:
            new = _new_job(message)
            # message.ack and not Celery's ack, which goes through the consumer's thread and wakes it for each
            # message: for worker.transport one thread is as good as another.
            if new is None or not dispatcher.begin(*new, done=message.ack):
                long_way(message, body, ack, reject, callbacks)

        return receive

    # static, or the class of the task makes a method of it
    @celery.task(name=GENERATE, Strategy=staticmethod(strategy))  # type: ignore[untyped-decorator]
    def generate(job_id: str, spec: str | None = None) -> None:
        try:
            dispatcher.generate(job_id)  # what the record says: the spec is older
        except Stopping:
            raise Reject("the worker is being stopped", requeue=True) from None

    @celery.task(name=ATTENTION)  # type: ignore[untyped-decorator]
    def attention(job_id: str, image: int, layer: str) -> None:
        try:
            dispatcher.attend(job_id, image, layer)
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
