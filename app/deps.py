"""The dependencies of the routes, by type."""

import re
from typing import Annotated, Final, Protocol, cast

from fastapi import Depends, Path, Query, Request

from app import rate, security
from app.addresses import address_of
from app.drawing import Drawings
from app.errors import RETRY_AFTER, NoWorker, UnknownModel
from app.exposition import Exposition
from app.keyring import EVERYBODY
from app.metrics import Metrics
from app.pace import Pace
from app.schemas import Seeds
from app.settings import Settings
from app.streams import Streams
from app.webhooks import Webhooks
from jobs.client import JobClient
from jobs.errors import UnknownJob
from jobs.job import Job, ModelInfo

_JOB_ID = re.compile(r"[A-Za-z0-9_-]{8,64}")


class State(Protocol):
    """The state of the running app. Routes ask for its parts by the types below."""

    settings: Settings
    store: JobClient
    drawings: Drawings
    metrics: Metrics
    exposition: Exposition
    streams: Streams
    pace: Pace
    webhooks: Webhooks


def state(request: Request) -> State:
    return cast(State, request.app.state)


# Each is asynchronous: FastAPI runs any other in a thread. Each depends on the request alone: FastAPI solves
# a shared dependency again for every one that asks for it.


async def _settings(request: Request) -> Settings:
    return state(request).settings


async def _store(request: Request) -> JobClient:
    return state(request).store


UseSettings = Annotated[Settings, Depends(_settings)]
Store = Annotated[JobClient, Depends(_store)]


async def caller_of(request: Request) -> str:
    """The owner of the jobs that the request may see."""
    return security.key_of(request).owner


Caller = Annotated[str, Depends(caller_of)]


def payer_of(request: Request) -> str:
    """Who pays for what the request has computed: who asks, and of an owner's job that may be an admin.

    The owner that the key has, or without keys the client's address.
    """
    owner = security.key_of(request).owner
    return address_of(request) if owner == EVERYBODY else owner


async def charge(request: Request, cost: int = 1) -> None:
    """Count what the request has computed. Raises TooManyRequests."""
    key = security.key_of(request)
    limit, payer = state(request).settings.rate_limit, payer_of(request)
    if key.rate is not None:
        limit, payer = key.rate, f"key-{key.id}"  # a limit of its own has a count of its own
    if limit is not None:
        await rate.spend(request, state(request).store, payer, cost, limit)


async def paced(request: Request) -> str:
    """The caller, after a request of one unit is counted for them. Raises TooManyRequests."""
    caller = await caller_of(request)
    await charge(request)
    return caller


JobId = Annotated[str, Path(description="As the answer to POST /generate gave it.")]


async def _found(job_id: JobId, request: Request) -> Job:
    return await _job(job_id, request, expired=False)


async def _known(job_id: JobId, request: Request) -> Job:
    return await _job(job_id, request, expired=True)


async def _job(job_id: str, request: Request, *, expired: bool) -> Job:
    key = security.key_of(request)
    # a malformed id is unknown to everybody, and must never become part of a key in Redis
    if not _JOB_ID.fullmatch(job_id):
        raise UnknownJob(job_id[:64])
    owner = None if "admin" in key.scopes else key.owner
    return await state(request).store.get(job_id, owner, expired=expired)


# the job of the path; 404 unless it is the caller's, or theirs is the scope admin; 410 once expired
Found = Annotated[Job, Depends(_found)]
Known = Annotated[Job, Depends(_known)]  # though it has expired


async def seeds_asked(
    seeds: Annotated[
        Seeds,
        Query(description="`string`: the answer has the seed as a string, which JavaScript reads exactly."),
    ] = "number",
) -> Seeds:
    """How the answer has its seeds. A route that answers a job depends on it, and `present` follows it."""
    return seeds


ANSWERS_JOB: Final = [Depends(seeds_asked)]


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
