"""POST /generate: a request becomes a job."""

import contextlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Path, Request, Response

from app import formats, negotiation, rate
from app.blends import draw_of, heaviest, morph_spec
from app.deps import ANSWERS_JOB, paced, payer_of, served_model, state
from app.disconnect import while_connected
from app.docs import problems
from app.errors import ClientLeft, PriorityTooHigh, QueueIsFull
from app.orders import GenerateAnyIn, GenerateIn, MorphIn, OfClasses, Order
from app.routes.jobs import Included, included_images, picture_of, present
from app.schemas import JobOut
from app.security import KeyedRoute, key_of
from app.terms import terms_of
from jobs.errors import BrokerUnavailable, QueueFull, QuotaReached, UnknownJob
from jobs.job import Job, JobSpec, ModelInfo, Terms, new_job_id
from jobs.scripts import NewJob

USUAL_PRIORITY = 5

router = APIRouter(tags=["generate"], route_class=KeyedRoute)

_RESPONSES = {
    202: {
        "model": JobOut,
        "description": "Queued; `Location` says where to look.",
        "headers": {"Location": {"schema": {"type": "string"}}},
    },
    200: {
        "model": JobOut,
        "description": "`Prefer: wait` held until the end: the job, or its picture on `Accept: image/png`, "
        "image/webp or image/jpeg.",
        "content": {"image/png": {}, "image/webp": {}, "image/jpeg": {}},
    },
    **problems(401, 403, 404, 409, 410, 413, 422, 429, 503),
}
_ALL_DEFAULTS = GenerateIn.model_validate({})  # a request without a body


# of a body: what is compared, of two requests with one Idempotency-Key, as it was read
_AS_READ = {"class_id", "class_weights", "ends", "expires_in", "retention", "webhook", "webhook_events"}


@dataclass(frozen=True)
class Asker:
    """Who asks for a job, and what its headers ask for."""

    request: Request
    caller: str
    wait: int | None  # seconds to hold the answer; None: no wait was asked for
    cancels: bool  # the job ends if the client leaves while it waits
    key: str | None  # Idempotency-Key
    included: Included  # "base64": the answer holds the images


Prefer = Annotated[
    tuple[str, ...],
    Header(
        alias="Prefer",
        description="RFC 7240: hold the answer for up to n seconds (60 at most). With "
        "`on-disconnect=cancel` the job is cancelled if the client closes its connection meanwhile.",
        examples=[["wait=30"]],
    ),
]
Key = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        description="The same key and request answer the same job.",
        json_schema_extra={"pattern": f"^{negotiation.IDEMPOTENCY_KEY.pattern}$"},
    ),
]

CancelAfter = Annotated[  # for the document alone: app.terms reads it
    str | None,
    Header(
        alias="Cancel-After",
        description="As `expires_in` of the body, in its place.",
        json_schema_extra={"pattern": "^([0-9]{1,6}[hH])?([0-9]{1,6}[mM])?([0-9]{1,6}[sS]?)?$"},
        examples=["1m30s"],
    ),
]


async def _asking(
    request: Request,
    included: Included = None,
    prefer: Prefer = (),
    key: Key = None,
    cancel_after: CancelAfter = None,
) -> Asker:
    return Asker(
        request,
        await paced(request),
        negotiation.preferred_wait(prefer, state(request).settings.max_wait),
        negotiation.cancels_on_disconnect(prefer),
        negotiation.checked_key(key),
        included,
    )


Asking = Annotated[Asker, Depends(_asking)]


@router.post("/morph", status_code=202, dependencies=ANSWERS_JOB, responses=_RESPONSES)
async def morph(asking: Asking, body: MorphIn) -> Response:
    """Queue a job whose images lie between two or more: noise on a great circle, classes on a line."""
    seeds = [end.seed for end in body.ends]
    return await _take(asking, body, lambda model, priority: morph_spec(body, model, priority), seeds)


@router.post("/generate/{class_id}", status_code=202, dependencies=ANSWERS_JOB, responses=_RESPONSES)
async def generate_class(
    class_id: Annotated[str, Path(description="Name or number of a class.", examples=["3", "cat"])],
    asking: Asking,
    body: GenerateIn = _ALL_DEFAULTS,
) -> Response:
    """Queue a job that makes images of one class."""
    # not validated: a name of any length may stand in a path, and is then one that no class has
    named = OfClasses.model_construct(class_id=class_id, class_weights=None)
    return await _take(asking, body, lambda model, priority: generate_spec(body, named, model, priority))


@router.post("/generate", status_code=202, dependencies=ANSWERS_JOB, responses=_RESPONSES)
async def generate(asking: Asking, body: GenerateAnyIn) -> Response:
    """Queue a job; its class, or mixture of classes, is named in the body."""
    return await _take(asking, body, lambda model, priority: generate_spec(body, body, model, priority))


async def _take(
    asking: Asker,
    body: Order,
    spec_of: Callable[[ModelInfo, int], JobSpec],
    seeds: Sequence[int | None] = (),
) -> Response:
    job, png = await order(asking, body, spec_of, seeds)
    return await _answer(asking, job, png)


async def order(
    asking: Asker,
    body: Order,
    spec_of: Callable[[ModelInfo, int], JobSpec],
    seeds: Sequence[int | None] = (),
    counted: int | None = None,
) -> tuple[Job, bytes | None]:
    """The job that the body asks for, after the wait; and its PNG where that came with the news of its end.

    spec_of(model, priority): the job that the body asks for. seeds: of its ends, as they were asked.
    counted: images that are taken from the key's day; None: those of the job.
    Raises NoWorker, UnknownModel, UnknownClass, PriorityTooHigh, QueueIsFull, ClientLeft.
    """
    here = state(asking.request)
    model = await served_model(here.store, body.model or here.settings.default_model)
    ceiling = key_of(asking.request).max_priority
    priority = _priority(body, here.settings.max_priority if ceiling is None else ceiling)
    spec, terms = spec_of(model, priority), terms_of(asking.request, body)
    if terms.quota is not None and counted is not None:
        terms = replace(terms, quota=replace(terms.quota, asked=counted) if counted else None)
    asked = None
    if asking.key is not None:
        # as it was asked: without the seed that is drawn, and a class by name is the class by number
        fields = body.model_dump(exclude=_AS_READ)
        if terms.expires_in is not None:  # absent as in releases that did not know it
            fields["expires_in"] = terms.expires_in
        if terms.retention is not None:
            fields["retention"] = terms.retention
        if terms.webhook is not None:
            fields["webhook"] = terms.webhook.url, terms.webhook.events
        fields |= {"class_id": spec.class_id, "priority": priority}
        if spec.ends:
            fields["ends"] = [(end.classes, end.index) for end in spec.ends], seeds
        asked = json.dumps(fields, sort_keys=True)
    if terms.webhook is not None:
        await here.webhooks.admit(payer_of(asking.request))
    try:
        job, png = await _create(asking, spec, asked, terms)
    except QueueFull as full:
        raise QueueIsFull(str(full), retry_after=here.pace.until_a_job_fits(full.depth)) from full
    except QuotaReached as spent:
        rate.tell_of_day(asking.request, spent.quota, spent.today)
        raise
    if terms.quota is not None and job.today is not None:
        rate.tell_of_day(asking.request, terms.quota, job.today)
    return job, png


def _priority(body: Order, ceiling: int) -> int:
    """The priority asked for, or the usual one. Raises PriorityTooHigh above the caller's ceiling."""
    if body.priority is None:
        return min(USUAL_PRIORITY, ceiling)
    if body.priority > ceiling:
        raise PriorityTooHigh(
            f"You may ask for priority {ceiling} at most, and this is {body.priority}. "
            "Ask for less, or leave it out."
        )
    return body.priority


def generate_spec(body: GenerateIn, named: OfClasses, model: ModelInfo, priority: int) -> JobSpec:
    draw = draw_of(named, body.seed, body.start, model)
    return JobSpec(
        model=model.name,
        model_hash=model.hash,
        precision=model.precision,
        class_id=heaviest(draw),
        class_name=draw.name,
        count=body.count,
        seed=draw.seed,
        truncation=body.truncation,
        priority=priority,
        start=body.start,
        listed=body.listed,
        ends=(draw,) if len(draw.classes) > 1 else (),
    )


async def _create(asking: Asker, spec: JobSpec, asked: str | None, terms: Terms) -> tuple[Job, bytes | None]:
    store, caller, key = state(asking.request).store, asking.caller, asking.key
    pays = payer_of(asking.request)
    if not asking.wait:
        job, _ = await store.create(spec, caller, key, asked, pays, terms)
        return job, None
    job_id = new_job_id()
    new = NewJob(job_id, caller, spec, key, asked, caller=pays, terms=terms)
    ordered = store.create_and_wait(new, asking.wait)
    try:
        return await while_connected(asking.request, ordered)
    except ClientLeft:
        if asking.cancels:
            with contextlib.suppress(UnknownJob):  # an older job has the key: this one was never made
                await store.cancel(job_id, caller)
        raise


async def _answer(asking: Asker, job: Job, png: bytes | None) -> Response:
    request, here = asking.request, state(asking.request)
    headers = {"Location": f"{request.scope.get('root_path', '')}/jobs/{job.id}", "Vary": "Accept, Prefer"}
    if asking.wait is not None:
        headers["Preference-Applied"] = f"wait={asking.wait}" + (
            ", on-disconnect=cancel" if asking.cancels else ""
        )
    kind = formats.still_rather_than_json(request) if job.ended else None
    if kind is not None:
        if png is None or kind != "png":
            return await picture_of(request, job, kind, headers)
        return Response(png, media_type="image/png", headers=headers)
    position = None
    with contextlib.suppress(BrokerUnavailable):  # the job is recorded; nobody should have to order it twice
        position = await here.store.position(job) if job.state == "queued" else None
    shown = present(request, job, position)
    shown.images = await included_images(request, job, asking.included)
    return Response(
        shown.model_dump_json(), 200 if job.ended else 202, headers, media_type="application/json"
    )
