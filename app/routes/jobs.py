"""/jobs: a job's state, images and events."""

import json
import math
import re
from base64 import b64encode
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi.sse import format_sse_event
from pydantic import BaseModel, ConfigDict, Field

from app import formats, negotiation, pictures, rate, recipes
from app.deps import ANSWERS_JOB, Caller, Found, Known, Store, charge, payer_of, state
from app.docs import files, problems
from app.drawing import Drawn, DrawnResponse, Place
from app.errors import Invalid, NotFinished, NotFound, TooLarge, Unsuccessful
from app.formats import STILLS
from app.pictures import Resample
from app.schemas import JobOut, JobsOut, Seeds
from app.security import KeyedRoute
from app.streams import EventStream
from imaging.png import text_of
from imaging.recipes import with_enlargement
from imaging.stills import Still
from jobs.client import JobClient
from jobs.errors import JobError
from jobs.job import ENDED, Job

router = APIRouter(prefix="/jobs", tags=["jobs"], route_class=KeyedRoute)

PICTURE = files("PNG; WebP or JPEG by `Accept` or `format`", *STILLS.values()) | problems(
    401, 404, 406, 409, 410, 422, 429, 503
)
MAX_SHEET = 8192  # pixels of a grid's side
MAX_ENCODED = 2**23  # pixels of a WebP or JPEG: some seconds' work that nothing can end
MOST_INCLUDED = 2**24  # bytes of images in a job's answer
_EVENT_ID = re.compile(r"\d{1,18}(-\d{1,18})?")
_EVENT = 'id: 1-0\nevent: end\ndata: {"state": "succeeded", "done": 4}\n\n'
_CURSOR = re.compile(r"[0-9]{1,15}")


class Enlargement(BaseModel):
    """The size of the images; absent: unchanged."""

    model_config = ConfigDict(extra="forbid")

    size: int | None = Field(None, ge=16, description="Side of an image, pixels.")
    resample: Resample = "nearest"


class Wanted(Enlargement):
    """A picture's size and format."""

    format: Still | None = Field(None, description="Absent: as `Accept` asks, png unless it names another.")
    quality: int | None = Field(
        None, ge=1, le=100, description="Of a lossy WebP (absent: lossless) or a JPEG (absent: 90)."
    )


class WantedImage(Wanted):
    """An image's size and format, and from where."""

    redirect: bool = Field(
        False,
        description="Lead to the image in its store, where that has addresses good for some minutes (S3 and "
        "its like); else the image itself.",
    )


_AS_KEPT = Wanted.model_validate({})
Asked = Annotated[Wanted, Query()]
Included = Annotated[
    Literal["base64"] | None,
    Query(
        alias="images",
        description="base64: the answer has the job's images as PNGs, null for those not made yet.",
    ),
]

Purge = Annotated[bool, Query(description="Take the job's images and attention maps away as well.")]


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
    responses=problems(401, 404, 409, 410, 422, 503),
)
async def read_job(request: Request, job: Found, included: Included = None) -> Response:
    """The job as it is now; 410 once its images have expired."""
    position = await state(request).store.position(job) if job.state == "queued" else None
    shown = present(request, job, position)
    shown.images = await included_images(request, job, included)
    # written here: FastAPI would validate our own model once more
    return Response(shown.model_dump_json(), media_type="application/json")


async def included_images(request: Request, job: Job, included: Included) -> list[str | None] | None:
    """The job's PNGs in base64, where they are asked for. Raises TooLarge, Gone."""
    if included is None:
        return None
    pngs = await state(request).store.images(job)
    size = sum(len(png) for png in pngs if png is not None)
    if size > MOST_INCLUDED:
        raise TooLarge(
            f"These images have {size / 2**20:.0f} MB, and an answer holds {MOST_INCLUDED / 2**20:.0f} MB "
            f"at most. Leave images=base64 out, and read /jobs/{job.id}/archive."
        )
    return [None if png is None else b64encode(png).decode() for png in pngs]


@router.delete(
    "/{job_id}",
    dependencies=ANSWERS_JOB,
    responses={
        202: {
            "model": JobOut,
            "description": "Purged; a store that does not answer deletes the files later.",
        },
        **problems(401, 403, 404, 422, 503),
    },
)
async def cancel_job(
    request: Request, response: Response, job: Known, store: Store, purge: Purge = False
) -> JobOut:
    """Cancel: images that no forward has begun are never made. A job that has ended stays as it is.

    With `purge=true` its images and attention maps are taken away as well: it answers 410 from then on. A
    second time changes nothing.
    """
    if not purge:
        return present(request, await store.cancel(job.id, job.owner), None)
    purged, all_deleted = await store.purge(job.id, job.owner)
    response.status_code = 200 if all_deleted else 202
    return present(request, purged, None)


@router.get(
    "/{job_id}/images/{index}",
    response_class=Response,
    responses={302: {"description": "With `redirect=true`: the image in its store."}, **PICTURE},
)
async def read_image(
    index: int, asked: Annotated[WantedImage, Query()], request: Request, job: Found
) -> Response:
    """One image, as soon as it is made: the job may still be running. Its file says how it was made.

    PNG unless `format` or `Accept` names another; as it is kept unless `size` enlarges it. With
    `redirect=true` it comes from the store of the images itself, where that gives such addresses.
    """
    here = state(request)
    if asked.redirect and (elsewhere := await _elsewhere(request, job, index, asked)):
        return elsewhere
    kind = formats.still_of(request, asked.format, asked.quality)
    check_size(asked.size, here.settings.max_side)
    as_kept = kind == "png" and asked.size is None
    if not as_kept:
        here.drawings.check(payer_of(request))
    png = await image_of(job, index, here.store)
    tag = pictures.etag(png, *(() if as_kept else (asked.size, asked.resample, kind, asked.quality)))
    number = index if len(job.spec.ends) > 1 else job.spec.start + index
    name = formats.file_name(f"{job.spec.class_name}-{job.spec.seed}-{number}", kind)
    headers = formats.varied(negotiation.file_headers(tag, name), asked.format)
    if negotiation.knows(request, tag):
        return negotiation.not_modified(headers)
    if as_kept:
        return Response(png, media_type="image/png", headers=headers)
    side = asked.size or pictures.resolution(png)
    _check_pixels(kind, side * side, side)
    await charge(request, rate.cost_of(side * side))
    text = text_of(png)
    if text is not None and asked.size is not None:
        text = with_enlargement(text, asked.size, asked.resample)
    return _drawn(request, job, [png], asked, kind, text, headers)


@router.get("/{job_id}/grid", response_class=Response, responses=PICTURE)
async def read_grid(asked: Asked, request: Request, job: Found) -> Response:
    """All images of a finished job side by side, with the job's recipe; `size` is the side of each."""
    here = state(request)
    kind = formats.still_of(request, asked.format, asked.quality)
    here.drawings.check(payer_of(request))
    check_size(asked.size, here.settings.max_side)
    columns = pictures.grid_columns(job.spec.count)
    if asked.size is not None and asked.size * columns > MAX_SHEET:
        most = MAX_SHEET // columns
        raise TooLarge(f"size must be at most {most} for a grid of {job.spec.count} images.")
    pngs = await images_of(job, here.store)
    tag = pictures.etag(*pngs, asked.size, asked.resample, kind, asked.quality)
    name = formats.file_name(f"{job.spec.class_name}-{job.spec.seed}-grid", kind)
    headers = formats.varied(negotiation.file_headers(tag, name), asked.format)
    if negotiation.knows(request, tag):
        return negotiation.not_modified(headers)
    side = asked.size or pictures.resolution(pngs[0])
    pixels = pictures.grid_size(len(pngs), side)
    _check_pixels(kind, pixels, side)
    await charge(request, rate.cost_of(pixels))
    return _drawn(request, job, pngs, asked, kind, _grid_recipe(job, asked), headers)


async def _elsewhere(request: Request, job: Job, index: int, asked: WantedImage) -> Response | None:
    """The way to the image in its store; None: the store has none. Raises Invalid."""
    if asked.size is not None or asked.format not in (None, "png"):
        raise Invalid("redirect=true leads to the PNG as it is kept: leave size and format out.")
    seconds: float = state(request).settings.result_url_ttl
    if job.expires_at is not None:
        seconds = min(seconds, (job.expires_at - datetime.now(UTC)).total_seconds())
    if seconds < 1 or not 0 <= index < job.spec.count:
        return None
    address = await state(request).store.address(job, index, request.method, seconds)
    if address is None:
        return None
    return Response(status_code=302, headers={"Location": address, "Cache-Control": "private, no-store"})


def _grid_recipe(job: Job, asked: Enlargement) -> str:
    resample = None if asked.size is None else asked.resample
    return recipes.of_job(job.spec, "grid", size=asked.size, resample=resample)


def _check_pixels(kind: Still, pixels: int, side: int) -> None:
    """Raises TooLarge for a WebP or JPEG that could only be made in one long step."""
    if kind != "png" and pixels > MAX_ENCODED:
        most = math.isqrt(MAX_ENCODED * side * side // pixels)
        raise TooLarge(f"As {kind}, size must be at most {most} here; as png it may be larger.")


def _drawn(
    request: Request,
    job: Job,
    pngs: list[bytes],
    asked: Wanted,
    kind: Still,
    text: str | None,
    headers: dict[str, str],
) -> DrawnResponse:
    """The images of a job as one picture. text: the recipe in its file."""
    resolution = pictures.resolution(pngs[0])
    size = pictures.memory_of_grid(resolution, len(pngs), asked.size or resolution, kind)

    async def begin(_: Place) -> Drawn:
        return Drawn(pictures.grid(pngs, asked.size, asked.resample, text, kind, asked.quality))

    here, caller = state(request), payer_of(request)
    return DrawnResponse(
        request, here.drawings, size, caller, begin, headers=headers, media_type=formats.STILLS[kind]
    )


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
    return EventStream(_stream(store, job, last_id), state(request).streams, payer_of(request))


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


def check_size(size: int | None, max_side: int) -> None:
    """Raises Invalid."""
    if size is not None and size > max_side:
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
    """PNGs of all images of a finished job. Raises NotFinished, Unsuccessful."""
    pngs = [png for png in await store.images(job) if png is not None]
    if len(pngs) < job.spec.count:
        raise _not_there(job)
    return pngs


def _not_there(job: Job) -> NotFinished | Unsuccessful:
    if job.state in ("failed", "cancelled"):
        return Unsuccessful(f"This job was {job.state}: {job.error or 'by request'}. Ask for a new one.")
    done = f"{job.done} of {job.spec.count} images are made."
    return NotFinished(f"{done} Ask again shortly, or follow its events.", retry_after=1)


async def picture_of(request: Request, job: Job, kind: Still, headers: dict[str, str]) -> Response:
    """A finished job as one picture: its only image, or the grid."""
    pngs = await images_of(job, state(request).store)
    if len(pngs) > 1:
        return _drawn(request, job, pngs, _AS_KEPT, kind, _grid_recipe(job, _AS_KEPT), headers)
    if kind == "png":
        return Response(pngs[0], media_type="image/png", headers=headers)
    return _drawn(request, job, pngs, _AS_KEPT, kind, text_of(pngs[0]), headers)
