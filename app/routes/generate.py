"""POST /generate: a request becomes a job."""

import contextlib
import json
import secrets
from collections.abc import Callable, Coroutine
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request, Response
from fastapi.routing import APIRoute

from app import negotiation
from app.deps import body_as, paced, served_model, state
from app.disconnect import while_connected
from app.docs import body_example, problems
from app.errors import ClientLeft, UnknownClass
from app.routes.jobs import picture_of, present
from app.schemas import GenerateAnyIn, GenerateIn, JobOut
from jobs.classes import class_number
from jobs.errors import BrokerUnavailable, UnknownJob
from jobs.job import JobSpec, ModelInfo, new_job_id


class _Straight(APIRoute):
    """A route whose function reads the request itself: nothing of it is left to FastAPI but the docs.

    Dependencies are not solved, which took FastAPI longer than these two routes' own took.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        async def handle(request: Request) -> Response:
            answer: Response = await self.endpoint(**request.path_params, request=request)
            return answer

        return handle


router = APIRouter(tags=["generate"], route_class=_Straight)

_RESPONSES = {
    202: {
        "model": JobOut,
        "description": "Queued; `Location` says where to look.",
        "headers": {"Location": {"schema": {"type": "string"}}},
    },
    200: {
        "model": JobOut,
        "description": "`Prefer: wait` held until the end: the job, or its PNG on `Accept: image/png`.",
        "content": {"image/png": {}},
    },
    **problems(401, 403, 409, 413, 422, 429, 503),
}
_HEADERS = [
    {
        "name": "Prefer",
        "in": "header",
        "schema": {"type": "string"},
        "example": "wait=30",
        "description": "RFC 7240: hold the answer for up to n seconds (60 at most). With "
        "`on-disconnect=cancel` the job is cancelled if the client closes its connection meanwhile.",
    },
    {
        "name": "Idempotency-Key",
        "in": "header",
        "schema": {"type": "string", "maxLength": 255},
        "description": "The same key and request answer the same job.",
    },
]


async def _take(request: Request, asked_class: int | str, body: GenerateIn, caller: str) -> Response:
    here = state(request)
    model = await served_model(here.store, body.model or here.settings.default_model)
    class_id = resolve_class(asked_class, model)
    spec = JobSpec(
        model=model.name,
        model_hash=model.hash,
        precision=model.precision,
        class_id=class_id,
        class_name=model.classes[class_id],
        count=body.count,
        # below 2^53, so that a browser's numbers hold it
        seed=secrets.randbelow(2**53) if body.seed is None else body.seed,
        truncation=body.truncation,
        priority=body.priority,
    )
    key = negotiation.idempotency_key(request)
    # what was asked, before defaults and a seed were drawn
    asked = key and json.dumps(body.model_dump(exclude={"class_id"}) | {"class_id": class_id}, sort_keys=True)
    prefers = request.headers.getlist("prefer")
    wait = negotiation.preferred_wait(prefers, here.settings.max_wait)
    cancels = negotiation.cancels_on_disconnect(prefers)
    job_id, png = new_job_id(), None
    if wait:
        ordered = here.store.create_and_wait(job_id, spec, caller, wait, key, asked)
        try:
            job, png = await while_connected(request, ordered)
        except ClientLeft:
            if cancels:
                with contextlib.suppress(UnknownJob):
                    await here.store.cancel(job_id, caller)
            raise
    else:
        job, _ = await here.store.create(spec, caller, key, asked)
    headers = {"Location": f"{request.scope.get('root_path', '')}/jobs/{job.id}", "Vary": "Accept, Prefer"}
    if wait is not None:
        headers["Preference-Applied"] = f"wait={wait}" + (", on-disconnect=cancel" if cancels else "")
    if job.ended and negotiation.wants(request, "image/png", rather_than="application/json"):
        picture = png or await picture_of(job, here.store, here.drawing)
        return Response(picture, media_type="image/png", headers=headers)
    position = None
    with contextlib.suppress(BrokerUnavailable):  # the job is recorded; nobody should have to order it twice
        position = await here.store.position(job) if job.state == "queued" else None
    content = present(request, job, position).model_dump_json()
    return Response(content, 200 if job.ended else 202, headers, media_type="application/json")


def resolve_class(asked: int | str, model: ModelInfo) -> int:
    """Number of the class that `asked` names, by number or by name. Raises UnknownClass."""
    if isinstance(asked, int):
        if 0 <= asked < len(model.classes):
            return asked
        raise UnknownClass(str(asked) if abs(asked) < 10**40 else "so large a number", model.classes)
    number = class_number(asked, model.classes)
    if number is None:
        raise UnknownClass(asked, model.classes)
    return number


@router.post(
    "/generate/{class_id}",
    status_code=202,
    responses=_RESPONSES,
    openapi_extra={"requestBody": body_example(GenerateIn), "parameters": _HEADERS},
)
async def generate_class(
    class_id: Annotated[str, Path(description="Name or number of a class.", examples=["3", "cat"])],
    request: Request,
) -> Response:
    """Queue a job that makes images of one class."""
    caller = await paced(request)
    body = await body_as(GenerateIn, request)  # after the caller: 401 comes before 422
    return await _take(request, class_id, body, caller)


@router.post(
    "/generate",
    status_code=202,
    responses=_RESPONSES,
    openapi_extra={"requestBody": body_example(GenerateAnyIn), "parameters": _HEADERS},
)
async def generate(request: Request) -> Response:
    """Queue a job; the class is named in the body."""
    caller = await paced(request)
    body = await body_as(GenerateAnyIn, request)
    return await _take(request, body.class_id, body, caller)
