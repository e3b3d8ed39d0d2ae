"""What API and workers export alike."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.openmetrics.exposition import generate_latest

from jobs.exposition import Families, build_info, exemplar_of, heard, tell

TRACE = "0af7651916cd43dd8448eb211c80319c"


@pytest.mark.parametrize(
    ("traceparent", "trace"),
    [
        (f"00-{TRACE}-b7ad6b7169203331-01", TRACE),
        (f"00-{TRACE}-b7ad6b7169203331-03", TRACE),
        (f"00-{TRACE}-b7ad6b7169203331-00", None),  # not sampled: there is nothing to look up
        ("", None),
        ("00-zz-b7ad6b7169203331-01", None),
        (f"00-{TRACE}-b7ad6b7169203331-01\n", None),
    ],
)
def test_an_exemplar_names_a_trace_that_is_recorded(traceparent: str, trace: str | None) -> None:
    assert exemplar_of(traceparent) == ({"trace_id": trace} if trace else None)


def test_families_come_over_a_socket_as_they_were() -> None:
    registry = CollectorRegistry()
    Counter("jobs", "Ended", ["state"], registry=registry).labels('a "quoted"\nname').inc(3)
    seconds = Histogram("seconds", "Took", buckets=(0.1, 1), registry=registry)
    seconds.observe(0.5, {"trace_id": TRACE})
    received = Families(heard(tell(registry.collect())))
    text = generate_latest(received)  # type: ignore[no-untyped-call]
    assert text == generate_latest(registry)  # type: ignore[no-untyped-call]
    assert TRACE in text.decode()


def test_what_is_cut_off_is_told_from_what_is_whole() -> None:
    with pytest.raises(ValueError, match="line 1"):
        heard(tell([build_info("worker")])[:-5])


def test_families_of_one_name_become_one() -> None:
    [family] = Families([build_info("api")], [build_info("worker")]).collect()
    assert [sample.labels["component"] for sample in family.samples] == ["api", "worker"]
