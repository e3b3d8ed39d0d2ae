"""Every request has an id, one line in the log and, where traces are on, a span."""

import logging
import random
import re
import time
from collections.abc import Mapping
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.answers import problem_of, respond
from app.errors import Problem
from app.security import KEY
from jobs import logs, tracing

log = logging.getLogger("sagan.access")

# as other services write it: a UUID, 32 hexadecimal digits, a traceparent, req_..., base64, Root=1-...; no
# spaces, quotes or brackets, which a reader of logs could take for something else
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9_.:/+=@~#|-]{1,128}")
METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_NOT_TRACED: Final = ("/health/", "/metrics")  # asked every few seconds, and part of nobody's work


class Access:
    """Outermost of all middleware: what any other answers has an id and a line too."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = time.perf_counter()
        headers = dict(scope["headers"])
        request_id = scope["request_id"] = id_of(headers)
        span = _span(scope, headers)
        scope["sagan.traceparent"] = span.traceparent or _asked(headers)
        added = [(b"x-request-id", request_id.encode())]
        if span.traceparent:
            added.append((b"traceresponse", span.traceparent.encode()))
        status = 0

        async def observed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], *added]
                note(scope, status, time.perf_counter() - began)
            await send(message)

        fields = {"request_id": request_id, "trace_id": tracing.trace_id(scope["sagan.traceparent"]) or ""}
        with logs.around(fields):
            try:
                await self.app(scope, receive, observed)
            except Exception as error:  # of our own middleware; those of a route end in app.unbroken
                if status:
                    raise
                log.exception("request broke")
                await respond(problem_of(error), scope["path"])(scope, receive, observed)
            finally:
                if span is not tracing.NONE:
                    _end(span, scope, status)


def note(scope: Scope, status: int, seconds: float) -> None:
    """A request's line. seconds: until its answer began."""
    if not log.isEnabledFor(logging.INFO):
        return
    client = scope.get("client")
    fields = {
        "method": scope["method"],
        "path": scope["path"],
        "status": status,
        "seconds": seconds,
        "route": getattr(scope.get("route"), "path", ""),
        "client": client[0] if client else "",
    }
    if job_id := scope.get("path_params", {}).get("job_id"):
        fields["job_id"] = job_id
    log.info("request", extra=fields)


def note_refusal(request_id: str, url: bytes, problem: Problem, client: str) -> None:
    """The line of what was no request. url: as far as it came."""
    told = {
        "request_id": request_id,
        "path": url.decode("latin-1"),
        "status": problem.status,
        "reason": problem.slug,
    }
    log.info("request refused", extra=told | {"client": client})


def id_of(headers: Mapping[bytes, bytes]) -> str:
    """The id that the client gave, or a new one: to find a line in a log, and no secret."""
    given = headers.get(b"x-request-id", b"").decode("latin-1")
    return given if _REQUEST_ID.fullmatch(given) else f"{random.getrandbits(64):016x}"


def _asked(headers: Mapping[bytes, bytes]) -> str:
    """Where the client's own trace stands; "": it has none."""
    return tracing.read(headers[b"traceparent"].decode("latin-1")) if b"traceparent" in headers else ""


def _span(scope: Scope, headers: Mapping[bytes, bytes]) -> tracing.Span:
    """The span of a request, with the attributes of OpenTelemetry's conventions for HTTP."""
    if not tracing.on() or scope["path"].startswith(_NOT_TRACED):
        return tracing.NONE
    text = {name.decode("latin-1"): value.decode("latin-1") for name, value in headers.items()}
    method = scope["method"] if scope["method"] in METHODS else "_OTHER"
    server, client = scope.get("server"), scope.get("client")
    return tracing.span(
        "HTTP" if method == "_OTHER" else method,
        "server",
        attributes={
            "http.request.method": method,
            "http.request.method_original": scope["method"] if method == "_OTHER" else None,
            "url.scheme": scope["scheme"],
            "url.path": scope["path"],
            "server.address": text.get("host", "").rpartition(":")[0] or text.get("host"),
            "server.port": server[1] if server else None,
            "client.address": client[0] if client else None,
            "network.protocol.version": scope["http_version"],
            "user_agent.original": text.get("user-agent"),
            "sagan.request_id": scope["request_id"],
        },
        headers=text,
    )


def _end(span: tracing.Span, scope: Scope, status: int) -> None:
    route = getattr(scope.get("route"), "path", "")
    if route and scope["method"] in METHODS:
        span.rename(f"{scope['method']} {route}")
    key = getattr(scope.get(KEY), "id", "")  # "": it was let in with none, or not let in
    span.set({"http.route": route, "http.response.status_code": status or None, "sagan.key": key})
    if status >= 500 or not status:
        span.fail("")
        span.set({"error.type": str(status or "no answer")})
    span.end()
