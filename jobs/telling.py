"""What the log and the trace tell of a job that is ordered, and of one that is cancelled.

Who asks, and in which request, stands in these lines already (see jobs.logs.around).
"""

from __future__ import annotations

from dataclasses import replace

from jobs import logs, tracing
from jobs.job import Job
from jobs.scripts import NewJob
from jobs.wire import generate_queue


def created(job: Job, new: bool) -> None:
    """new: False: an Idempotency-Key found it. The line of the request has the job's fields too."""
    told = _fields(job)
    logs.note(told)
    event = "job created" if new else "job asked for again"
    logs.AUDIT.info(event, extra=told | {"priority": job.spec.priority})


def cancelled(job: Job) -> None:
    logs.AUDIT.info("job cancelled", extra=_fields(job) | {"done": job.done})


def purged(job: Job) -> None:
    logs.AUDIT.info("job purged", extra=_fields(job) | {"done": job.done})


def _fields(job: Job) -> dict[str, object]:
    spec = job.spec
    return {"job_id": job.id, "model": spec.model, "class": spec.class_name, "count": spec.count}


def sending(job: NewJob) -> tuple[NewJob, tracing.Span]:
    """The job with its place in the trace, and the span of its being sent; whoever sends it ends that."""
    if not tracing.on():
        return job, tracing.NONE
    terms, queue = job.terms, generate_queue(job.spec.version, job.format)
    span = tracing.span(
        "send generate",
        "producer",
        terms.context.traceparent,
        {
            "messaging.system": "redis",
            "messaging.operation.name": "send",
            "messaging.operation.type": "send",
            "messaging.destination.name": queue,
            "messaging.message.id": job.id,
            "sagan.job_id": job.id,
            "sagan.model": job.spec.model,
            "sagan.class": job.spec.class_name,
            "sagan.count": job.spec.count,
        },
    )
    context = replace(terms.context, traceparent=span.traceparent)
    return replace(job, terms=replace(terms, context=context)), span
