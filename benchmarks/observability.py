"""What logs and traces cost a job, in microseconds of CPU: `python -m benchmarks.observability`.

The way that they add, alone: lines of JSON to a file, and spans to an exporter that drops them after they are
encoded. The rest of a job takes some 500 µs of an API process and 700 µs of a worker beside its forward.
"""

from __future__ import annotations

import asyncio
import logging
import os
import tempfile
from collections.abc import Callable
from time import process_time
from typing import Any

from app.access import Access
from jobs import logs, telling, tracing
from jobs.job import Context, Job, JobSpec, Terms
from jobs.scripts import NewJob
from jobs.settings import QueueSettings
from worker import trail
from worker.pending import PendingJob

JOBS = 2000
SPEC = JobSpec("cifar10", "0" * 64, "float32", 3, "cat", 1, 42, 1.0)


def cpu_of(work: Callable[[], None]) -> float:
    """Microseconds of CPU a job, all threads; the least of five rounds."""
    rounds = []
    for _ in range(5):
        began = process_time()
        work()
        rounds.append((process_time() - began) / JOBS * 1e6)
    return min(rounds)


async def _answer(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


async def _bare(app: Any) -> None:
    async def nothing(*_: Any) -> None:
        pass

    for _ in range(JOBS):
        headers = [(b"host", b"127.0.0.1:8000"), (b"user-agent", b"x"), (b"accept", b"*/*")]
        scope = {
            **{"type": "http", "method": "POST", "path": "/generate/cat", "headers": headers},
            **{
                "scheme": "http",
                "http_version": "1.1",
                "client": ("127.0.0.1", 1),
                "server": ("127.0.0.1", 2),
            },
        }
        await app(scope, nothing, nothing)


def api() -> None:
    """A request, its job's creation, and its line."""

    async def ordered(scope: Any, receive: Any, send: Any) -> None:
        context = Context(scope["request_id"], "k1", scope["sagan.traceparent"])
        job = NewJob("59o5cNpetXBjWb_AR6YmIw", "everybody", SPEC, terms=Terms(context))
        _, span = telling.sending(job)
        span.end()
        telling.created(Job(job.id, job.owner, SPEC, "queued", None), True)  # type: ignore[arg-type]
        await _answer(scope, receive, send)

    asyncio.run(_bare(Access(ordered)))


def worker() -> None:
    """A job of one image, in forwards of eight."""
    for _ in range(JOBS // 8):
        context = Context("0123456789abcdef", "k1", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
        jobs = [PendingJob(f"59o5cNpetXBjWb_AR6YmI{i}", SPEC, [0], context, sent_at=1.0) for i in range(8)]
        for job in jobs:
            trail.taken(job)
        trail.begun(jobs)()
        forward = trail.Forward([(job, 0) for job in jobs])
        forward.ended()
        forward.tell()
        trail.storing(jobs)()
        for job in jobs:
            job.end()


def trace() -> None:
    """Traces to an exporter that encodes them and sends nothing."""
    from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
    from opentelemetry.exporter.otlp.proto.http import trace_exporter
    from opentelemetry.sdk.trace.export import SpanExportResult

    def export(self: object, spans: Any) -> Any:
        encode_spans(spans).SerializeToString()
        return SpanExportResult.SUCCESS

    trace_exporter.OTLPSpanExporter.export = export  # type: ignore[method-assign]
    os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = "http://127.0.0.1:1"
    tracing.start("benchmark")


def main() -> None:
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        bare = cpu_of(lambda: asyncio.run(_bare(_answer)))
        for said, level, traced in (
            ("nothing (SAGAN_LOG_LEVEL=error)", "error", False),
            ("logs", "info", False),
            ("logs and traces", "info", True),
            ("logs and traces of which 1 in 100 is sampled", "info", True),
        ):
            logs.configure(QueueSettings(log_level=level, log_format="json"), "api")  # type: ignore[arg-type]
            if "1 in 100" in said:
                tracing.stop()
                os.environ |= {"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.01"}
            if traced:
                trace()
            found = cpu_of(api) - bare, cpu_of(worker)
            print(f"{said}: API {found[0]:.0f}, worker {found[1]:.0f} µs a job")  # noqa: T201
        logging.shutdown()
    os._exit(0)  # standard error is gone


if __name__ == "__main__":
    main()
