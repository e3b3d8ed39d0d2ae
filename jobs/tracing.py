"""Traces of OpenTelemetry: off, and not even imported, unless an endpoint is set in its usual variables.

A span's place is told by a `traceparent` (W3C Trace Context), which goes into a job's message and record:
spans need no context of a thread or task. docs/observability.md shows a job's trace.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from threading import Thread
from typing import Any, Final, Literal

ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
# version 00, or a later one's first part; a trace or span of zeros is none
_TRACEPARENT: Final = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?"
)

Kind = Literal["internal", "server", "client", "producer", "consumer"]
Attributes = Mapping[str, str | int | float | bool | None]  # None and "" are left out

_tracer: Any = None  # OpenTelemetry's; None: nothing is traced
_provider: Any = None


class TracingError(Exception):
    """Traces are asked for and cannot be had; the message says what to do."""


class Span:
    """A step of a trace that is under way. Any thread may end it."""

    def __init__(self, span: Any = None) -> None:
        """span: OpenTelemetry's; None: nothing is traced, and nothing here does anything."""
        self._span = span
        self.traceparent = "" if span is None else _traceparent(span.get_span_context())

    @property
    def recorded(self) -> bool:
        """Whether it is written down: neither is off, nor left out by the sampler."""
        return self._span is not None and self._span.is_recording()

    def rename(self, name: str) -> None:
        if self._span is not None:
            self._span.update_name(name)

    def set(self, attributes: Attributes) -> None:
        if self.recorded:
            self._span.set_attributes(_told(attributes))

    def link(self, traceparent: str) -> None:
        """Point at a span of another trace."""
        if self.recorded and (context := _context(traceparent)) is not None:
            self._span.add_link(context)

    def fail(self, reason: str) -> None:
        if self.recorded:
            from opentelemetry.trace import Status, StatusCode

            self._span.set_status(Status(StatusCode.ERROR, reason))

    def end(self, at: int | None = None) -> None:
        """at: nanoseconds since 1970; None: now."""
        if self._span is not None:
            self._span.end(at)


NONE: Final = Span()


def start(service: str) -> None:
    """Trace what this process does, if an endpoint is set. service: its name; OTEL_SERVICE_NAME goes before.

    Raises TracingError.
    """
    global _tracer, _provider
    if _tracer is not None or not wanted():
        return
    check()
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    named = "OTEL_SERVICE_NAME" in os.environ or "service.name=" in os.environ.get(
        "OTEL_RESOURCE_ATTRIBUTES", ""
    )
    # the sampler, limits and batches are those of the SDK's own variables
    _provider = TracerProvider(
        resource=Resource.create({} if named else {"service.name": service}), shutdown_on_exit=False
    )
    # its thread sends; a collector that is away costs spans, and nobody waits for it
    _provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    _tracer = _provider.get_tracer("sagan")


def stop(seconds: float = 2.0) -> None:
    """Send what is left, for at most so many seconds, and trace no more."""
    global _tracer, _provider
    provider, _tracer, _provider = _provider, None, None
    if provider is not None:
        sending = Thread(target=provider.shutdown, name="last spans", daemon=True)
        sending.start()
        sending.join(seconds)


def wanted() -> bool:
    """Whether the environment asks for traces."""
    environment = os.environ
    off = environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    none = environment.get("OTEL_TRACES_EXPORTER", "otlp").strip().lower() == "none"
    return not off and not none and any(environment.get(name, "").strip() for name in ENDPOINTS)


def check() -> None:
    """Raises TracingError where traces are asked for and this process could not send them."""
    if not wanted():
        return
    if find_spec("opentelemetry") is None or find_spec("opentelemetry.exporter") is None:
        raise TracingError(
            "OTEL_EXPORTER_OTLP_ENDPOINT asks for traces, and OpenTelemetry is not installed here: "
            "pip install 'sagan-service[trace]', or unset it."
        )
    for name in ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        protocol = os.environ.get(name, "").strip()
        if protocol not in ("", "http/protobuf"):
            raise TracingError(
                f"{name} is {protocol[:60]!r}, and traces are sent as http/protobuf alone, which collectors "
                "take on port 4318: unset it."
            )
    for name in ENDPOINTS:
        endpoint = os.environ.get(name, "").strip()
        if endpoint and not endpoint.startswith(("http://", "https://")):
            raise TracingError(f"{name} is {endpoint[:60]!r}: write a URL, such as http://127.0.0.1:4318.")


def on() -> bool:
    return _tracer is not None


def span(
    name: str,
    kind: Kind,
    parent: str = "",
    attributes: Attributes = {},  # noqa: B006  # nobody changes it
    *,
    began: int | None = None,
    links: Iterable[str] = (),
    headers: Mapping[str, str] | None = None,
) -> Span:
    """Begin a span. NONE where nothing is traced.

    parent: a traceparent; "": it begins a trace. began: nanoseconds since 1970; None: now. links: further
    traceparents. headers: of a request, whose place in a trace they tell, instead of a parent.
    """
    if _tracer is None:
        return NONE
    from opentelemetry import propagate, trace

    if headers is not None:
        around = propagate.extract(headers)
    else:
        context = _context(parent)
        around = trace.set_span_in_context(
            trace.INVALID_SPAN if context is None else trace.NonRecordingSpan(context)
        )
    found = [trace.Link(context) for link in links if (context := _context(link)) is not None]
    kinds = trace.SpanKind
    return Span(_tracer.start_span(name, around, kinds[kind.upper()], _told(attributes), found, began))


def read(traceparent: str) -> str:
    """A traceparent that is well formed, else ""."""
    return traceparent if len(traceparent) <= 200 and _TRACEPARENT.fullmatch(traceparent) else ""


def trace_id(traceparent: str) -> str | None:
    """The trace of a traceparent, where it is recorded: for a log line, or a histogram's exemplar."""
    found = _TRACEPARENT.fullmatch(traceparent)
    return found[1] if found and int(found[3], 16) & 1 else None


def _traceparent(context: Any) -> str:
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags & 1:02x}"


def _context(traceparent: str) -> Any:
    """OpenTelemetry's SpanContext; None: it is none."""
    from opentelemetry.trace import SpanContext, TraceFlags

    found = _TRACEPARENT.fullmatch(traceparent)
    if found is None:
        return None
    # another process began it, or this one: samplers treat both alike unless told otherwise
    return SpanContext(int(found[1], 16), int(found[2], 16), True, TraceFlags(int(found[3], 16) & 1))


def _told(attributes: Attributes) -> Attributes:
    return {name: value for name, value in attributes.items() if value is not None and value != ""}
