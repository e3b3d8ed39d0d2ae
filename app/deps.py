"""The dependencies of the routes, by type."""

import functools
import re
from collections.abc import Callable
from typing import Annotated, ParamSpec, Protocol, TypeVar, cast

import anyio.to_thread
from anyio import CapacityLimiter
from fastapi import Depends, Path, Request

from app import security
from app.addresses import address_of
from app.errors import RETRY_AFTER, NoWorker, UnknownModel
from app.metrics import Metrics
from app.settings import Settings
from app.streams import Streams
from jobs.client import JobClient
from jobs.errors import UnknownJob
from jobs.job import Job, ModelInfo

P = ParamSpec("P")
T = TypeVar("T")

_JOB_ID = re.compile(r"[A-Za-z0-9_-]{8,64}")


class DrawingPool:
    """Draws in threads, as many at once as there are cores. The event loop stays free meanwhile."""

    def __init__(self, at_once: int) -> None:
        self._limiter = CapacityLimiter(at_once)

    async def draw(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await anyio.to_thread.run_sync(
            functools.partial(function, *args, **kwargs), limiter=self._limiter
        )


class State(Protocol):
    """The state of the running app. Routes ask for its parts by the types below."""

    settings: Settings
    store: JobClient
    drawing: DrawingPool
    metrics: Metrics
    streams: Streams


def state(request: Request) -> State:
    return cast(State, request.app.state)


# Each is asynchronous: FastAPI runs any other in a thread. Each depends on the request alone: FastAPI solves
# a shared dependency again for every one that asks for it.


async def _settings(request: Request) -> Settings:
    return state(request).settings


async def _store(request: Request) -> JobClient:
    return state(request).store


async def _drawing(request: Request) -> DrawingPool:
    return state(request).drawing


async def _metrics(request: Request) -> Metrics:
    return state(request).metrics


UseSettings = Annotated[Settings, Depends(_settings)]
Store = Annotated[JobClient, Depends(_store)]
UseDrawingPool = Annotated[DrawingPool, Depends(_drawing)]
UseMetrics = Annotated[Metrics, Depends(_metrics)]


async def caller_of(request: Request) -> str:
    """The owner of the jobs that the request may see. Raises Unauthorised."""
    return security.owner_of(request, state(request).settings.api_keys)


Caller = Annotated[str, Depends(caller_of)]


async def paced(request: Request) -> str:
    """The caller, after one request is counted for them. Raises Unauthorised, TooManyRequests."""
    caller, limit = await caller_of(request), state(request).settings.rate_limit
    if limit is not None:
        # without keys all callers are one owner, and only their addresses differ
        who = caller if caller != security.EVERYBODY else address_of(request)
        await security.within_rate(state(request).store, who, limit)
    return caller


async def _found(
    job_id: Annotated[str, Path(description="As the answer to POST /generate gave it.")], request: Request
) -> Job:
    caller = await caller_of(request)
    # a malformed id is unknown to everybody, and must never become part of a key in Redis
    if not _JOB_ID.fullmatch(job_id):
        raise UnknownJob(job_id[:64])
    return await state(request).store.get(job_id, caller)


# the job of the path; 404 unless it is the caller's, 410 once expired
Found = Annotated[Job, Depends(_found)]


async def served_model(store: JobClient, name: str | None) -> ModelInfo:
    """The served model called `name`. None: the one of the largest images, then the first by name.

    Raises NoWorker, UnknownModel.
    """
    models = await store.models()
    if not models:
        raise NoWorker(
            "No worker with a loaded model is there. Start one (sagan worker), or wait until it has loaded.",
            retry_after=RETRY_AFTER,
        )
    for model in models:
        if name in (None, model.name):
            return model
    raise UnknownModel(str(name), [model.name for model in models])
