"""Every error as one tree, and its one form for the client: application/problem+json (RFC 9457).

    Problem
    ├── BadRequest          400  no HTTP
    ├── BadHost             400  no Host header, or one that names no host
    ├── Unauthorised        401  no valid key where keys are set
    ├── ForeignHost         403  asked under a name that is not ours
    ├── ForeignOrigin       403  a page of another site asked
    ├── MissingScope        403  the key may not do this
    ├── PriorityTooHigh     403  above what this caller may ask for
    ├── QuotaTooSmall       403  more images than the key may ask for in a day
    ├── NotFound            404  no such address, job, image, layer or point
    │   ├── UnknownClass
    │   └── UnknownModel
    ├── MethodNotAllowed    405
    ├── NotAcceptable       406  in no format that the client takes, or that this service can make
    ├── Conflict            409  right question, wrong moment
    │   ├── NotFinished          with Retry-After
    │   ├── Unsuccessful         the job failed or was cancelled
    │   ├── NoAttention
    │   ├── TooLarge             a drawing that this job or this service cannot have
    │   ├── NoMap                the worker could not make it
    │   └── ModelChanged
    ├── Gone                410  the result has expired
    ├── TooSlow             408  the request did not come in time
    ├── BodyTooLarge        413
    ├── HeadersTooLarge     431
    ├── Invalid             422  a value outside its bounds
    │   └── KeyReused            an Idempotency-Key with another request
    ├── TooManyRequests     429  with Retry-After
    │   ├── QueueIsFull
    │   └── QuotaSpent           the images of the day
    ├── ClientLeft          499  the connection is closed: nobody reads this, but the counts know
    └── Unavailable         503  with Retry-After
        ├── NoWorker
        ├── TooMuchAsked     of Redis, or of this process
        ├── NoBroker
        ├── NoStore          of images and maps
        ├── KeysUnread       a key that was not known before, while keys cannot be read
        ├── Busy             too many drawings wait
        ├── TooManyConnections
        └── Stopping             the server ends before the answer is there

`problem_of` gives the errors of other packages the same form.
"""

import http
import logging
from collections.abc import Sequence
from contextvars import ContextVar
from typing import ClassVar, Final

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from redis.exceptions import RedisError
from starlette.exceptions import HTTPException
from starlette.routing import Match

from app import v1
from app.findings import LONGEST_MESSAGE, cut, told
from jobs.classes import nearest_name
from jobs.errors import (
    AttentionFailed,
    ExpiredJob,
    IdempotencyConflict,
    JobError,
    NewerFormat,
    OlderWorkers,
    Overloaded,
    QueueFull,
    QuotaReached,
    ResultGone,
    StoreUnavailable,
    UnknownJob,
)

log = logging.getLogger("sagan.app")

# slug of the problem that the request of the present task was answered with; "": none. For the counts
answered_as: ContextVar[str] = ContextVar("answered_as", default="")

RETRY_AFTER = 3  # seconds that a client is asked to wait where the server knows no better
LONGEST_DETAIL: Final = 2000  # characters; see app.findings


class Problem(Exception):
    """Root of everything that this package raises on purpose. `detail` says what to do."""

    status: ClassVar[int] = 500
    slug: ClassVar[str] = "internal-error"
    title: ClassVar[str] = "Internal error"

    def __init__(
        self, detail: str, *, retry_after: int | None = None, errors: list[dict[str, str]] | None = None
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.retry_after = retry_after  # seconds; None: trying again will not help
        self.errors = errors  # {"at", "message"} of each wrong field; None: not about fields

    def headers(self) -> dict[str, str]:
        return {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}


class Unauthorised(Problem):
    status, slug, title = 401, "unauthorised", "A key is needed"

    def __init__(self, detail: str, *, reason: str, key: str = "") -> None:
        super().__init__(detail)
        self.reason = reason  # absent, unknown, expired, revoked
        self.key = key  # its id; "": not known

    def headers(self) -> dict[str, str]:
        return {"WWW-Authenticate": "Bearer"}


class BadHost(Problem):
    status, slug, title = 400, "bad-host", "No usable Host header"


class BadRequest(Problem):
    status, slug, title = 400, "bad-request", "Not HTTP"


class ForeignHost(Problem):
    status, slug, title = 403, "foreign-host", "Asked under a foreign name"


class ForeignOrigin(Problem):
    status, slug, title = 403, "foreign-origin", "Asked by a page of another site"


class MissingScope(Problem):
    """The key is valid, and may not do this."""

    status, slug, title = 403, "missing-scope", "Not within the scopes of the key"

    def __init__(self, needed: str, scopes: Sequence[str]) -> None:
        super().__init__(
            f"This needs a key with the scope {needed}, and this one has {', '.join(scopes)}. "
            "Ask whoever made it for another."
        )


class PriorityTooHigh(Problem):
    status, slug, title = 403, "priority-too-high", "Priority above your ceiling"


class QuotaTooSmall(Problem):
    status, slug, title = 403, "quota-too-small", "More images than your key has in a day"


class NotFound(Problem):
    status, slug, title = 404, "not-found", "Not found"


class UnknownClass(NotFound):
    """No class of that name or number in this model."""

    slug, title = "unknown-class", "Unknown class"

    def __init__(self, asked: str, known: Sequence[str]) -> None:
        near = nearest_name(asked, known)
        hint = f"Did you mean {near!r}?" if near else f"It has 0 to {len(known) - 1}; see /classes."
        super().__init__(f"This model has no class {shorten(asked)}. {hint}")


class UnknownModel(NotFound):
    """No live worker has a model of that name."""

    slug, title = "unknown-model", "Unknown model"

    def __init__(self, asked: str, known: Sequence[str]) -> None:
        super().__init__(f"No worker serves a model {shorten(asked)}. Served now: {', '.join(known)}.")


class MethodNotAllowed(Problem):
    status, slug, title = 405, "method-not-allowed", "Method not allowed"

    def __init__(self, allowed: str) -> None:
        super().__init__(f"Use {allowed} here. See /docs.")
        self.allowed = allowed

    def headers(self) -> dict[str, str]:
        return {"Allow": self.allowed}


class NotAcceptable(Problem):
    status, slug, title = 406, "not-acceptable", "Not to be had in this format"


class Conflict(Problem):
    status, slug, title = 409, "conflict", "Not possible in this state"


class NotFinished(Conflict):
    slug, title = "not-finished", "The job is not done yet"


class Unsuccessful(Conflict):
    slug, title = "unsuccessful", "The job ended without a result"


class NoAttention(Conflict):
    slug, title = "no-attention", "The model has no attention"


class TooLarge(Conflict):
    slug, title = "too-large", "The drawing is too large"


class NoMap(Conflict):
    slug, title = "no-map", "The attention map could not be made"


class ModelChanged(Conflict):
    slug, title = "model-changed", "The model that made this job is no longer served"


class Gone(Problem):
    status, slug, title = 410, "expired", "The result has expired"


class BodyTooLarge(Problem):
    status, slug, title = 413, "body-too-large", "Request body too large"

    def headers(self) -> dict[str, str]:
        # the rest of the body is not read: the connection cannot carry another request
        return {"Connection": "close"}


class TooSlow(Problem):
    status, slug, title = 408, "too-slow", "The request did not come in time"


class HeadersTooLarge(Problem):
    status, slug, title = 431, "headers-too-large", "Request headers too large"


class Invalid(Problem):
    status, slug, title = 422, "invalid", "Not valid"


class KeyReused(Invalid):
    slug, title = "key-reused", "Idempotency-Key used before"


class TooManyRequests(Problem):
    status, slug, title = 429, "too-many-requests", "Too many requests"


class QueueIsFull(TooManyRequests):
    slug, title = "queue-full", "The queue is full"


class QuotaSpent(TooManyRequests):
    slug, title = "quota-spent", "The images of the day are spent"


class ClientLeft(Problem):
    status, slug, title = 499, "client-left", "The client went away"


class Unavailable(Problem):
    status, slug, title = 503, "unavailable", "Not available just now"


class NoWorker(Unavailable):
    slug, title = "no-worker", "No worker"


class TooMuchAsked(Unavailable):
    slug, title = "overloaded", "Too much is asked at once"


class NoBroker(Unavailable):
    slug, title = "no-broker", "The broker does not answer"


class NoStore(Unavailable):
    slug, title = "no-store", "The store of the results does not answer"


class KeysUnread(Unavailable):
    slug, title = "keys-unread", "Keys cannot be read just now"


class TooManyConnections(Unavailable):
    slug, title = "too-many-connections", "Too many connections"


class Stopping(Unavailable):
    slug, title = "stopping", "The server stops"


class Busy(Unavailable):
    slug, title = "busy", "Too much is being drawn"


def shorten(text: str) -> str:
    """`text` quoted for a message, at most 40 characters of it."""
    return repr(text if len(text) <= 40 else f"{text[:37]}...")


def problem_of(error: Exception) -> Problem:
    """The problem that `error` is to a client."""
    match error:
        case Problem():
            return error
        case RequestValidationError():
            said, found = told(error)
            return Invalid(f"{said} See /docs for the bounds.", errors=found)
        case HTTPException():
            return _of_http(error)
        case UnknownJob():
            return NotFound(str(error))
        case ExpiredJob() | ResultGone():
            return Gone(str(error))
        case StoreUnavailable():
            return NoStore(str(error), retry_after=RETRY_AFTER)
        case QueueFull():
            return QueueIsFull(str(error), retry_after=RETRY_AFTER)
        case QuotaReached():
            if not error.ever:
                return QuotaTooSmall(str(error))
            return QuotaSpent(str(error), retry_after=error.today.resets_in)
        case IdempotencyConflict():
            return KeyReused(str(error))
        case AttentionFailed():
            return NoMap(str(error))
        case Overloaded():
            return TooMuchAsked(str(error), retry_after=1)
        case NewerFormat() | OlderWorkers():
            return Unavailable(str(error))
        case JobError():
            return NoBroker(str(error), retry_after=RETRY_AFTER)
        case RedisError():
            return NoBroker("The broker does not answer. Try again shortly.", retry_after=RETRY_AFTER)
        case _:
            return Problem("Something broke on our side; the server's log has it under this request's id.")


def _of_http(error: HTTPException) -> Problem:
    """What Starlette and FastAPI raise before a route is reached."""
    match error.status_code:
        case 400:  # json.loads refused the bytes of a body for another reason than their syntax
            reason = "not JSON in UTF-8, or a number or depth beyond reason"
            return Invalid(f"body: {reason}.", errors=[{"at": "body", "message": reason}])
        case 404:
            return NotFound("There is nothing at this address. See /docs for what there is.")
        case status:
            problem = Problem(str(error.detail))
            problem.status = status  # type: ignore[misc]
            problem.slug = f"http-{status}"  # type: ignore[misc]
            problem.title = http.HTTPStatus(status).phrase  # type: ignore[misc]
            return problem


def document(problem: Problem, path: str) -> dict[str, object]:
    """The problem document of a request for `path`: a screenful at most, whatever was asked."""
    found: dict[str, object] = {
        "type": f"urn:sagan:problem:{problem.slug}",
        "title": problem.title,
        "status": problem.status,
        "detail": cut(problem.detail, LONGEST_DETAIL),
        "instance": cut(path, LONGEST_MESSAGE),
    }
    return found | {"errors": problem.errors} if problem.errors else found


def respond(problem: Problem, path: str) -> JSONResponse:
    """The answer to a request for `path`."""
    answered_as.set(problem.slug)
    headers = {"Cache-Control": "no-store", **problem.headers()}
    if v1.speaks_openai(path):
        at = problem.errors[0]["at"] if problem.errors else ""
        detail = cut(problem.detail, LONGEST_DETAIL)
        status, content = v1.openai_error(problem.status, problem.slug, detail, at)
        return JSONResponse(content, status, headers)
    return JSONResponse(
        document(problem, path),
        status_code=problem.status,
        headers=headers,
        media_type="application/problem+json",
    )


def handle_errors(app: FastAPI) -> None:
    """Every way to fail answers application/problem+json; OPTIONS says what is allowed."""

    async def answer(request: Request, error: Exception) -> Response:
        if isinstance(error, RedisError):
            log.warning("broker: %s", error)
        if isinstance(error, HTTPException) and error.status_code == 405:
            allowed = _allowed(request)
            if request.method == "OPTIONS":
                return Response(status_code=204, headers={"Allow": allowed})
            error = MethodNotAllowed(allowed)
        return respond(problem_of(error), request.url.path)

    # Exception: of our own middleware; those of a route end in app.unbroken.Unbroken
    for kind in (Problem, RequestValidationError, HTTPException, JobError, RedisError, Exception):
        app.add_exception_handler(kind, answer)


def _allowed(request: Request) -> str:
    """The methods of all routes at the request's address, such as "DELETE, GET, HEAD, OPTIONS"."""
    # a mounted app has made its own place the root
    scope = {**request.scope, "root_path": request.scope.get("app_root_path", request.scope["root_path"])}
    methods = {"OPTIONS"}
    for route in request.app.routes:
        if route.matches(scope)[0] is not Match.NONE:
            methods |= getattr(route, "methods", None) or {"GET", "HEAD"}  # a mount has files
    return ", ".join(sorted(methods))
