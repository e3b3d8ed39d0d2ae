"""What a worker's log and spans tell of a job, whatever becomes of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from collector import collecting

from jobs import tracing
from jobs.job import Context, JobSpec
from jobs.worker_store import Stopping
from worker import trail
from worker.pending import Dropped, PendingJob

TRACE = "0af7651916cd43dd8448eb211c80319c"
CONTEXT = Context("r1", "k1", f"00-{TRACE}-b7ad6b7169203331-01")


def job(name: str = "job-1", count: int = 2, context: Context = CONTEXT) -> PendingJob:
    spec = JobSpec("tiny", "0" * 64, "float32", 0, "cat", count, 7, 1.0)
    return PendingJob(name, spec, range(count), context, sent_at=1.0)


@pytest.fixture(autouse=True)
def told(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level("INFO", "sagan.jobs"):
        yield caplog


def test_each_line_says_whose_job_it_is(told: pytest.LogCaptureFixture) -> None:
    pending = job()
    trail.taken(pending)
    trail.begun([pending])()
    trail.begun([pending])()  # its second forward
    for image in (0, 1):
        forward = trail.Forward([(pending, image), (job("other"), 0)])
        assert forward.ended() >= 0
        forward.tell()
        trail.storing([pending])()
        pending.stored += 1
    pending.end()
    ours = [record for record in told.records if record.job_id == "job-1"]  # type: ignore[attr-defined]
    assert [record.message for record in ours] == [
        *("job taken", "job begun", "job in forward", "job stored", "job in forward", "job ended")
    ]
    fields = {"request_id": "r1", "key": "k1", "trace_id": TRACE, "model": "tiny", "class": "cat", "count": 2}
    assert all(vars(record).items() >= fields.items() for record in ours)
    assert (ours[2].images, ours[2].batch) == (1, 2)  # type: ignore[attr-defined]
    assert ours[-1].images == 2  # type: ignore[attr-defined]
    assert min(ours[0].queued, ours[2].forward, ours[3].stored, ours[-1].stored, ours[-1].seconds) >= 0  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("error", "event", "level"),
    [
        (Dropped(), "job dropped", "INFO"),
        (Stopping("the worker is being stopped"), "job handed back", "INFO"),
        (ValueError("no such network"), "job failed", "ERROR"),
    ],
    ids=lambda value: str(value),
)
def test_every_end_is_told_once(
    told: pytest.LogCaptureFixture, error: Exception, event: str, level: str
) -> None:
    pending = job()
    trail.taken(pending)
    pending.end(error)
    pending.end()  # the first outcome stands
    _, end = told.records
    assert (end.message, end.levelname, end.request_id) == (event, level, "r1")  # type: ignore[attr-defined]
    assert (end.exc_info is not None) is (level == "ERROR")


def test_a_forward_is_one_span_with_links_to_and_from_all_its_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    unsampled = Context(traceparent=CONTEXT.traceparent[:-2] + "00")
    jobs = [job("left-out", context=unsampled), job("first"), job("second", context=Context("r2"))]
    with collecting() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        tracing.start("sagan-worker")
        try:
            for pending in jobs:
                trail.taken(pending)
            trail.begun(jobs)
            forward = trail.Forward([(pending, image) for pending in jobs for image in (0, 1)])
            forward.ended()
            stored = trail.storing([pending for pending in jobs for _ in range(2)])
            stored()
            jobs[1].end()
            jobs[2].end(ValueError("no luck"))
            jobs[0].end()
        finally:
            tracing.stop()
    spans = collector.spans
    [forward_span] = [span for span in spans if span.name == "forward"]
    first, second = (
        next(
            span
            for span in spans
            if span.name == "process generate" and span.attributes["sagan.job_id"] == name
        )
        for name in ("first", "second")
    )
    assert (forward_span.trace, forward_span.parent) == (TRACE, first.id)
    assert forward_span.links == [first.id, second.id]
    assert second.links == [forward_span.id]
    assert second.trace != TRACE
    assert (first.failed, second.failed) == (False, True)
    assert forward_span.attributes == {"sagan.model": "tiny", "sagan.images": 6, "sagan.jobs": 3}
    assert sorted(span.parent for span in spans if span.name == "store") == sorted([first.id, second.id])
    assert "left-out" not in {span.attributes.get("sagan.job_id") for span in spans}
