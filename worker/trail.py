"""The trail of a job in this worker: its lines in the log and its spans, by which its life is followed.

Times are seconds. Queued: from the order to the first forward; forward: of the network, for a whole batch;
stored: from the end of a forward until the images are stored, in Redis or in the result store.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from time import monotonic, time, time_ns
from typing import Any

from jobs import tracing
from jobs.job import Context, Job, JobSpec
from jobs.worker_results import StoreFailed
from jobs.worker_store import Stopping
from worker.pending import Dropped, PendingJob

log = logging.getLogger("sagan.jobs")


def fields(job_id: str, context: Context, spec: JobSpec | None = None) -> dict[str, Any]:
    """A job as the API's lines have it, so that one question finds both."""
    told = {
        "job_id": job_id,
        "request_id": context.request_id,
        "key": context.key,
        "trace_id": tracing.trace_id(context.traceparent),
    }
    return (
        told if spec is None else told | {"model": spec.model, "class": spec.class_name, "count": spec.count}
    )


def _of(pending: PendingJob) -> dict[str, Any]:
    if not pending.told:
        pending.told = fields(pending.job_id, pending.context, pending.spec)
    return pending.told


def taken(pending: PendingJob) -> None:
    """It is in this worker's hand. Its end is told by itself."""
    if log.isEnabledFor(logging.INFO):
        log.info("job taken", extra=_of(pending) | {"queued": _queued(pending)})
    pending.done.add_done_callback(lambda _: _ended(pending))


def begun(jobs: Iterable[PendingJob]) -> Callable[[], None]:
    """Jobs enter a forward. What it returns tells of those that were in none before, from any thread."""
    new = [pending for pending in jobs if not pending.begun]
    for pending in new:
        pending.begun = True
        if tracing.on():
            _begin_spans(pending)
    queued = [_queued(pending) for pending in new]

    def tell() -> None:
        if log.isEnabledFor(logging.INFO):
            for pending, seconds in zip(new, queued, strict=True):
                log.info("job begun", extra=_of(pending) | {"queued": seconds})

    return tell


def _queued(pending: PendingJob) -> float | None:
    return max(0.0, time() - pending.sent_at) if pending.sent_at else None


def _begin_spans(pending: PendingJob) -> None:
    parent = pending.context.traceparent
    message = {"messaging.system": "redis", "sagan.job_id": pending.job_id}
    if pending.sent_at:
        receive = {"messaging.operation.name": "receive", "messaging.operation.type": "receive"}
        began = int(pending.sent_at * 1e9)
        tracing.span("queue", "consumer", parent, {**message, **receive}, began=min(began, time_ns())).end()
    spec = pending.spec
    process: tracing.Attributes = {
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.message.id": pending.job_id,
        "sagan.request_id": pending.context.request_id,
        "sagan.key": pending.context.key,
        "sagan.model": spec.model,
        "sagan.class": spec.class_name,
        "sagan.count": spec.count,
    }
    pending.span = tracing.span("process generate", "consumer", parent, {**message, **process})


class Forward:
    """A forward that begins now, with images of these jobs."""

    def __init__(self, batch: Sequence[tuple[PendingJob, int]]) -> None:
        self._images = Counter(pending for pending, _ in batch)
        self._began, self._took = monotonic(), 0.0
        self._span = _forward_span(list(self._images), len(batch)) if tracing.on() else tracing.NONE

    def ended(self, error: Exception | None = None) -> float:
        """Seconds that it took."""
        self._took = monotonic() - self._began
        if error is not None:
            self._span.fail(str(error))
        self._span.end()
        return self._took

    def tell(self) -> None:
        """Any thread may call it, after `ended`."""
        if log.isEnabledFor(logging.INFO):
            batch = self._images.total()
            for pending, images in self._images.items():
                told = {"forward": self._took, "images": images, "batch": batch}
                log.info("job in forward", extra=_of(pending) | told)


def _forward_span(jobs: Sequence[PendingJob], images: int) -> tracing.Span:
    """One span for all its jobs: a child of the first that is recorded, with links to and from the others."""
    recorded = [pending.span for pending in jobs if pending.span.recorded]
    if not recorded:
        return tracing.NONE
    first, *others = recorded
    told: tracing.Attributes = {
        "sagan.model": jobs[0].spec.model,
        "sagan.images": images,
        "sagan.jobs": len(jobs),
    }
    span = tracing.span(
        "forward", "internal", first.traceparent, told, links=[each.traceparent for each in recorded]
    )
    for other in others:
        other.link(span.traceparent)
    return span


def storing(jobs: Sequence[PendingJob]) -> Callable[[], None]:
    """Images of jobs, one entry an image, are being stored. Call what it returns when they are."""
    began, began_ns = monotonic(), time_ns()

    def stored() -> None:
        took = monotonic() - began
        for pending, images in Counter(jobs).items():
            pending.storing = took
            # the last images' line is that of the job's end
            if pending.stored + images < len(pending.images) and log.isEnabledFor(logging.INFO):
                log.info("job stored", extra=_of(pending) | {"stored": took, "images": images})
            if pending.span.recorded:
                attributes: tracing.Attributes = {"sagan.images": images}
                tracing.span("store", "client", pending.span.traceparent, attributes, began=began_ns).end()

    return stored


def _ended(pending: PendingJob) -> None:
    error = pending.done.exception()
    told: dict[str, Any] = {"images": pending.stored, "stored": pending.storing}
    if pending.sent_at:
        told["seconds"] = max(0.0, time() - pending.sent_at)
    match error:
        case None:
            log.info("job ended", extra=_of(pending) | told)
        case Dropped():  # cancelled, late, or with another worker
            log.info("job dropped", extra=_of(pending) | told)
        case Stopping():
            log.info("job handed back", extra=_of(pending) | told | {"reason": str(error)})
        case _:
            trace = None if isinstance(error, StoreFailed) else error  # that one says all in its sentence
            log.error("job failed", extra=_of(pending) | told | {"reason": str(error)}, exc_info=trace)
    if error is not None:
        pending.span.fail(str(error) or type(error).__name__)
    pending.span.end()


def failed(job_id: str, context: Context, spec: JobSpec | None, reason: str) -> None:
    """It fails before it is in anybody's hand."""
    log.error("job failed", extra=fields(job_id, context, spec) | {"reason": reason})


def brought_back(job: Job, holder: str) -> None:
    """It was lost, and waits again. holder: the worker that lost it; "": none had it."""
    log.warning("job brought back", extra=fields(job.id, job.context, job.spec) | {"lost_by": holder})
