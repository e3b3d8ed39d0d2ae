"""What an error is answered with: application/problem+json (RFC 9457), or OpenAI's form on its routes."""

import http
import logging
from contextvars import ContextVar
from typing import Final

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from redis.exceptions import RedisError
from starlette.exceptions import HTTPException
from starlette.routing import Match

from app import v1
from app.errors import (
    RETRY_AFTER,
    Gone,
    Invalid,
    KeyReused,
    MethodNotAllowed,
    NoBroker,
    NoMap,
    NoStore,
    NotFound,
    Problem,
    QueueIsFull,
    QuotaSpent,
    QuotaTooSmall,
    TooMuchAsked,
    Unavailable,
)
from app.findings import LONGEST_MESSAGE, cut, told
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

LONGEST_DETAIL: Final = 2000  # characters; see app.findings


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
