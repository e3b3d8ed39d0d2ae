"""A collector of traces: it takes OTLP over HTTP and keeps every span, in memory and as a line of a file.

`python tests/support/collector.py 4318 traces.jsonl` collects until Ctrl-C.
"""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass(frozen=True)
class Collected:
    """A span as it was sent."""

    service: str
    name: str
    kind: str  # "server", "producer", ...
    trace: str
    id: str
    parent: str  # id of the span above; "": it begins its trace
    ms: float
    began: int  # nanoseconds since 1970
    failed: bool
    attributes: dict[str, str | int | float | bool] = field(default_factory=dict)
    links: list[str] = field(default_factory=list)  # ids of spans


class Collector:
    """Spans that came to http://127.0.0.1:PORT."""

    def __init__(self, port: int = 0, path: Path | None = None) -> None:
        """port: 0: a free one. path: None: no file."""
        self.spans: list[Collected] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                collector._take(body, path)
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def _take(self, body: bytes, path: Path | None) -> None:
        found = list(_read(ExportTraceServiceRequest.FromString(body)))
        self.spans += found
        if path is not None:
            with path.open("a") as file:
                file.writelines(json.dumps(asdict(span)) + "\n" for span in found)


@contextmanager
def collecting(path: Path | None = None) -> Iterator[Collector]:
    """A collector while this is open."""
    collector = Collector(path=path)
    thread = Thread(target=collector.server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield collector
    finally:
        collector.server.shutdown()
        collector.server.server_close()
        thread.join()


def _read(request: ExportTraceServiceRequest) -> Iterator[Collected]:
    for resource in request.resource_spans:
        of = {each.key: each.value.string_value for each in resource.resource.attributes}
        for scope in resource.scope_spans:
            for span in scope.spans:
                yield Collected(
                    service=of["service.name"],
                    name=span.name,
                    kind=span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_").lower(),
                    trace=span.trace_id.hex(),
                    id=span.span_id.hex(),
                    parent=span.parent_span_id.hex(),
                    ms=round((span.end_time_unix_nano - span.start_time_unix_nano) / 1e6, 3),
                    began=span.start_time_unix_nano,
                    failed=span.status.code == span.status.STATUS_CODE_ERROR,
                    attributes={
                        each.key: getattr(each.value, str(each.value.WhichOneof("value")))
                        for each in span.attributes
                    },
                    links=[link.span_id.hex() for link in span.links],
                )


if __name__ == "__main__":
    Collector(int(sys.argv[1]), Path(sys.argv[2])).server.serve_forever()
