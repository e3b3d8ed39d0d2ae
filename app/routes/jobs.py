"""/jobs: a job's state, images and events."""

import json
import re
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from fastapi.sse import format_sse_event
from pydantic import BaseModel, ConfigDict, Field

from app import negotiation, pictures, rate
from app.addresses import address_of
from app.deps import ANSWERS_JOB, Caller, Found, Store, charge, counted_as, state
from app.docs import PNG, problems
from app.drawing import Drawn, DrawnResponse, Place
from app.errors import Invalid, NotFinished, NotFound, TooLarge, Unsuccessful
from app.pictures import Resample
from app.schemas import JobOut, JobsOut, Seeds
from app.security import EVERYBODY, KeyedRoute
from app.streams import EventStream
from jobs.client import JobClient
from jobs.errors import JobError
from jobs.job import ENDED, Job

router = APIRouter(prefix="/jobs", tags=["jobs"], route_class=KeyedRoute)

_PICTURE = PNG | problems(401, 404, 409, 410, 422, 429, 503)
MAX_SHEET = 8192  # pixels of a grid's side
_EVENT_ID = re.compile(r"\d{1,18}(-\d{1,18})?")
_EVENT = 'id: 1-0\nevent: end\ndata: {"state": "succeeded", "done": 4}\n\n'
_CURSOR = re.compile(r"[0-9]{1,15}")


class Enlargement(BaseModel):
    """The size of the images; absent: unchanged."""

    model_config = ConfigDict(extra="forbid")

    size: int | None = Field(None, ge=16, description="Side of an image, pixels.")
    resample: Resample = "nearest"


Enlarged = Annotated[Enlargement, Query()]


def present(request: Request, job: Job, position: int | None) -> JobOut:
    """`job` in the shape that clients rely on."""
    seeds: Seeds = "string" if request.query_params.get("seeds") == "string" else "number"
    return JobOut.of(job, position, request.scope.get("root_path", ""), seeds)


@router.get("", dependencies=ANSWERS_JOB, responses=problems(401, 422, 503))
async def list_jobs(
    request: Request,
    store: Store,
    caller: Caller,
    limit: Annotated[int, Query(ge=1, le=100, description="Jobs on a page.")] = 20,
    cursor: Annotated[
        str | None,
        Query(
            description="`next` of the page before.", json_schema_extra={"pattern": f"^{_CURSOR.pattern}$"}
        ),
    ] = None,
) -> JobsOut:
    """The caller's recent jobs, newest first, without the expired."""
    if cursor is not None and not _CURSOR.fullmatch(cursor):
        raise Invalid(
            "cursor must be the `next` of an earlier page; leave it out to begin at the newest job."
        )
    found, following = await store.recent(caller, limit, cursor)
    positions = [await store.position(job) if job.state == "queued" else None for job in found]
    shown = [present(request, job, place) for job, place in zip(found, positions, strict=True)]
    return JobsOut(jobs=shown, next=following)


@router.get(
    "/{job_id}",
    response_model=JobOut,
    dependencies=ANSWERS_JOB,
    responses=problems(401, 404, 410, 422, 503),
)
async def read_job(request: Request, job: Found) -> Response:
    """The job as it is now; 410 once its images have expired."""
    position = await state(request).store.position(job) if job.state == "queued" else None
    # written here: FastAPI would validate our own model once more
    return Response(present(request, job, position).model_dump_json(), media_type="application/json")


@router.delete("/{job_id}", dependencies=ANSWERS_JOB, responses=problems(401, 403, 404, 410, 422, 503))
async def cancel_job(request: Request, job: Found, store: Store, caller: Caller) -> JobOut:
    """Cancel: images that no forward has begun are never made. A job that has ended stays as it is."""
    return present(request, await store.cancel(job.id, caller), None)


@router.get("/{job_id}/images/{index}", response_class=Response, responses=_PICTURE)
async def read_image(index: int, asked: Enlarged, request: Request, job: Found) -> Response:
    """One image, as soon as it is made: the job may still be running."""
    here = state(request)
    _check_size(asked, here.settings.max_side)
    if asked.size is not None:
        here.drawings.check(counted_as(request, job.owner))
    png = await image_of(job, index, here.store)
    tag = pictures.etag(png, *(() if asked.size is None else (asked.size, asked.resample)))
    headers = negotiation.png_headers(tag, f"{job.spec.class_name}-{job.spec.seed}-{index}")
    if negotiation.knows(request, tag):
        return negotiation.not_modified(headers)
    if asked.size is None:
        return Response(png, media_type="image/png", headers=headers)
    await charge(request, job.owner, rate.cost_of(asked.size**2))
    return _drawn(request, job, [png], asked.size, asked.resample, headers)


@router.get("/{job_id}/grid", response_class=Response, responses=_PICTURE)
async def read_grid(asked: Enlarged, request: Request, job: Found) -> Response:
    """All images of a finished job side by side; `size` is the side of each."""
    here = state(request)
    here.drawings.check(counted_as(request, job.owner))
    _check_size(asked, here.settings.max_side)
    columns = pictures.grid_columns(job.spec.count)
    if asked.size is not None and asked.size * columns > MAX_SHEET:
        most = MAX_SHEET // columns
        raise TooLarge(f"size must be at most {most} for a grid of {job.spec.count} images.")
    pngs = await images_of(job, here.store)
    tag = pictures.etag(*pngs, asked.size, asked.resample)
    headers = negotiation.png_headers(tag, f"{job.spec.class_name}-{job.spec.seed}-grid")
    if negotiation.knows(request, tag):
        return negotiation.not_modified(headers)
    side = asked.size or pictures.resolution(pngs[0])
    await charge(request, job.owner, rate.cost_of(pictures.grid_size(len(pngs), side)))
    return _drawn(request, job, pngs, asked.size, asked.resample, headers)


def _drawn(
    request: Request,
    job: Job,
    pngs: list[bytes],
    side: int | None,
    resample: Resample,
    headers: dict[str, str],
) -> DrawnResponse:
    """The images of a job as one PNG. side: of each, pixels; None: unchanged."""
    resolution = pictures.resolution(pngs[0])
    size = pictures.memory_of_grid(resolution, len(pngs), side or resolution)

    async def begin(_: Place) -> Drawn:
        return Drawn(pictures.grid(pngs, side, resample))

    caller = counted_as(request, job.owner)
    return DrawnResponse(request, state(request).drawings, size, caller, begin, headers=headers)


@router.get(
    "/{job_id}/events",
    response_class=Response,
    responses={
        200: {
            "description": "Server-sent events: `progress` at every change, `end` with the final state.",
            "content": {"text/event-stream": {"example": _EVENT}},
        },
        204: {"description": "The job has ended and `Last-Event-ID` was its last event: do not return."},
        **problems(401, 404, 410, 429, 503),
    },
)
async def read_events(request: Request, job: Found, store: Store) -> Response:
    """Every state change from the first, or from the one after `Last-Event-ID`, until the job ends."""
    last_id = request.headers.get("last-event-id", "")
    if not _EVENT_ID.fullmatch(last_id):
        last_id = "0"  # not one of ours: replay everything
    # 204 is what stops an EventSource from connecting again
    if job.ended and not await store.events(job.id, last_id):
        return Response(status_code=204)
    caller = job.owner if job.owner != EVERYBODY else address_of(request)
    return EventStream(_stream(store, job, last_id), state(request).streams, caller)


async def _stream(store: JobClient, job: Job, last_id: str) -> AsyncIterator[bytes]:
    yield b"retry: 2000\n"  # part of the first event: alone it would be one without data
    try:
        async for event in store.follow(job, last_id):
            if event is None:
                yield b": still here\n\n"
                continue
            event_id, news = event
            name = "end" if news["state"] in ENDED else "progress"
            yield format_sse_event(event=name, data_str=json.dumps(news), id=event_id)
    except JobError:
        return  # expired, or Redis is gone: the client connects again and hears the rest


def _check_size(asked: Enlargement, max_side: int) -> None:
    if asked.size is not None and asked.size > max_side:
        raise Invalid(f"size must be 16 to {max_side} pixels.")


async def image_of(job: Job, index: int, store: JobClient) -> bytes:
    """PNG of image `index`. Raises NotFound, NotFinished, Unsuccessful."""
    if not 0 <= index < job.spec.count:
        raise NotFound(f"This job has images 0 to {job.spec.count - 1}.")
    png = await store.image(job, index)
    if png is None:
        raise _not_there(job)
    return png


async def images_of(job: Job, store: JobClient) -> list[bytes]:
    """PNGs of all images. Raises NotFinished, Unsuccessful."""
    pngs = [png for png in await store.images(job) if png is not None]
    if len(pngs) < job.spec.count:
        raise _not_there(job)
    return pngs


def _not_there(job: Job) -> NotFinished | Unsuccessful:
    if job.state in ("failed", "cancelled"):
        return Unsuccessful(f"This job was {job.state}: {job.error or 'by request'}. Ask for a new one.")
    done = f"{job.done} of {job.spec.count} images are made."
    return NotFinished(f"{done} Ask again shortly, or follow its events.", retry_after=1)


async def picture_of(request: Request, job: Job, headers: dict[str, str]) -> Response:
    """A finished job as one PNG: its only image, or the grid."""
    pngs = await images_of(job, state(request).store)
    if len(pngs) == 1:
        return Response(pngs[0], media_type="image/png", headers=headers)
    return _drawn(request, job, pngs, None, "nearest", headers)
