"""Traces: nothing of them where no endpoint is set, and nobody waits for a collector."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from collector import collecting

from jobs import tracing
from jobs.logs import StandardError
from serve.private_redis import free_port

ROOT = Path(__file__).parents[3]
GIVEN = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture(autouse=True)
def untraced(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_SERVICE_NAME"):
        monkeypatch.delenv(name, raising=False)
    yield
    tracing.stop()


@pytest.mark.slow
@pytest.mark.parametrize("module", ["app.main", "worker.trail"])
def test_off_nothing_of_it_is_imported(module: str) -> None:
    code = (
        f"import sys, {module}; from jobs import tracing; tracing.check(); tracing.start('x');"
        "tracing.span('s', 'server').end(); print([m for m in sys.modules if m.startswith('opentelemetry')])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    # FastAPI and redis-py import the rest by themselves where it is installed
    assert "opentelemetry.sdk.trace" not in done.stdout
    assert "opentelemetry.exporter" not in done.stdout


@pytest.mark.parametrize(
    "switch", [{}, {"OTEL_SDK_DISABLED": "true"}, {"OTEL_TRACES_EXPORTER": "none"}, {"ENDPOINT": " "}]
)
def test_it_is_off_unless_an_endpoint_is_set(monkeypatch: pytest.MonkeyPatch, switch: dict[str, str]) -> None:
    monkeypatch.setenv(
        "OTEL_EXPORTER_OTLP_ENDPOINT", switch.pop("ENDPOINT", "http://127.0.0.1:1") if switch else ""
    )
    for name, value in switch.items():
        monkeypatch.setenv(name, value)
    tracing.start("x")
    span = tracing.span("s", "server", GIVEN)
    span.set({"a": 1})
    span.fail("no")
    span.end()
    assert not tracing.on()
    assert span is tracing.NONE


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", "on port 4318: unset it"),
        ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/json", "on port 4318: unset it"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4318", "write a URL, such as http://127.0.0.1:4318"),
    ],
)
def test_what_cannot_be_sent_is_told_in_a_sentence(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv(name, value)
    with pytest.raises(tracing.TracingError, match=said):
        tracing.start("x")


@pytest.mark.parametrize(
    ("given", "trace", "recorded"),
    [
        (GIVEN, "0af7651916cd43dd8448eb211c80319c", True),
        (GIVEN[:-2] + "00", "0af7651916cd43dd8448eb211c80319c", False),
        ("cc" + GIVEN[2:] + "-what-comes-later", "0af7651916cd43dd8448eb211c80319c", True),
        ("ff" + GIVEN[2:], None, False),
        (GIVEN.replace("0af7651916cd43dd8448eb211c80319c", "0" * 32), None, False),
        (GIVEN.replace("b7ad6b7169203331", "0" * 16), None, False),
        (GIVEN.upper(), None, False),
        (GIVEN + "\n", None, False),
        ("", None, False),
        ("cc" + GIVEN[2:] + "-" + "x" * 500, None, False),
    ],
    ids=ascii,
)
def test_a_traceparent_is_read_as_w3c_has_it(given: str, trace: str | None, recorded: bool) -> None:
    assert tracing.read(given) == (given if trace else "")
    assert tracing.trace_id(tracing.read(given)) == (trace if recorded else None)


def test_spans_of_one_trace_hang_together_and_are_sampled_together(monkeypatch: pytest.MonkeyPatch) -> None:
    with collecting() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
        tracing.start("sagan-test")
        above = tracing.span("above", "server", headers={"traceparent": GIVEN})
        other = tracing.span("other", "consumer")
        below = tracing.span(
            "below", "internal", above.traceparent, {"n": 1, "no": None}, links=[other.traceparent]
        )
        other.link(below.traceparent)
        other.fail("no luck")
        unsampled = tracing.span("left out", "server", GIVEN[:-2] + "00")
        for span in (below, above, other, unsampled):
            span.end()
        assert not unsampled.recorded
        assert tracing.trace_id(unsampled.traceparent) is None
        assert tracing.trace_id(above.traceparent) == GIVEN[3:35]
        tracing.stop()
    found = {span.name: span for span in collector.spans}
    assert found.keys() == {"above", "below", "other"}
    assert {span.service for span in found.values()} == {"sagan-test"}
    assert (found["above"].trace, found["above"].parent) == (GIVEN[3:35], GIVEN[36:52])
    assert (found["below"].trace, found["below"].parent) == (GIVEN[3:35], found["above"].id)
    assert (found["below"].links, found["other"].links) == ([found["other"].id], [found["below"].id])
    assert found["below"].attributes == {"n": 1}
    assert found["other"].failed
    assert found["other"].trace != GIVEN[3:35]


def test_a_collector_that_is_away_costs_a_line_and_spans(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    with log.open("w") as file:
        ours = StandardError("json", "api", file.fileno())
        logging.getLogger("opentelemetry").addHandler(ours)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{free_port()}")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.1")
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")
        tracing.start("sagan-test")
        for _ in range(6000):  # its queue holds 2048
            tracing.span("s", "server").end()
        tracing.stop()
        logging.getLogger("opentelemetry").removeHandler(ours)
    told = [json.loads(line)["event"] for line in log.read_text().splitlines()]
    assert "Failed to export spans batch due to timeout, max retries or shutdown." in told
    assert len(told) == len(set(told)) <= 4
