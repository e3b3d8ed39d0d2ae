"""POST /generate: a request becomes a job."""

import contextlib
import json
import secrets
from typing import Annotated

import anyio.to_thread
from fastapi import APIRouter, Depends, Path, Request, Response
from fastapi.responses import JSONResponse

from app import negotiation
from app.deps import Caller, Paced, Queue, Store, UseArtist, UseSettings, json_body, served_model
from app.docs import body_example, problems
from app.errors import UnknownClass
from app.routes.jobs import picture_of, present
from app.schemas import GenerateAnyIn, GenerateIn, JobOut
from worker.jobs import BrokerUnavailable, Job, JobSpec, ModelInfo
from worker.queue import publish_generate

router = APIRouter(tags=["generate"], dependencies=[Paced])

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
        "description": "RFC 7240: hold the answer for up to n seconds (60 at most).",
    },
    {
        "name": "Idempotency-Key",
        "in": "header",
        "schema": {"type": "string", "maxLength": 255},
        "description": "The same key and request answer the same job.",
    },
]


class _Desk:
    """What both routes need to take an order."""

    def __init__(
        self,
        request: Request,
        settings: UseSettings,
        store: Store,
        queue: Queue,
        artist: UseArtist,
        caller: Caller,
    ) -> None:
        self.request, self.settings, self.store = request, settings, store
        self.queue, self.artist, self.caller = queue, artist, caller

    async def take(self, asked_class: int | str, body: GenerateIn) -> Response:
        model = await served_model(self.store, body.model or self.settings.default_model)
        class_id = resolve_class(asked_class, model)
        job = await self._order(model, class_id, body)
        wait = negotiation.preferred_wait(self.request.headers.getlist("prefer"), self.settings.max_wait)
        if wait and not job.ended:
            try:
                job = await self.store.finished(job.id, self.caller, wait)
            except BrokerUnavailable:
                # the job is recorded; that Redis went away meanwhile is no reason to have it ordered twice
                return await self._answer(job, wait, None)
        position = await self.store.position(job) if job.state == "queued" else None
        return await self._answer(job, wait, position)

    async def _order(self, model: ModelInfo, class_id: int, body: GenerateIn) -> Job:
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
        asked = body.model_dump(exclude={"class_id"}) | {"class_id": class_id}
        job, is_new = await self.store.create(
            spec,
            self.caller,
            negotiation.idempotency_key(self.request),
            json.dumps(asked, sort_keys=True),
        )
        if is_new:
            # without a message the record is queued and in no queue: a worker's sweeper publishes it
            with contextlib.suppress(BrokerUnavailable):
                await anyio.to_thread.run_sync(publish_generate, self.queue, job)
        return job

    async def _answer(self, job: Job, wait: int | None, position: int | None) -> Response:
        headers = {"Vary": "Accept, Prefer"}
        if wait is not None:
            headers["Preference-Applied"] = f"wait={wait}"
        if job.ended and negotiation.wants(self.request, "image/png", rather_than="application/json"):
            picture = await picture_of(job, self.store, self.artist)
            return Response(picture, media_type="image/png", headers=headers | _location(self.request, job))
        out = present(self.request, job, position)
        return JSONResponse(
            out.model_dump(mode="json"),
            status_code=200 if job.ended else 202,
            headers=headers | _location(self.request, job),
        )


def _location(request: Request, job: Job) -> dict[str, str]:
    return {"Location": f"{request.scope.get('root_path', '')}/jobs/{job.id}"}


def resolve_class(asked: int | str, model: ModelInfo) -> int:
    """Number of the class that `asked` names, by number or by name in any case. Raises UnknownClass."""
    text = str(asked).strip() if isinstance(asked, str) or abs(asked) < 10**40 else "so large a number"
    # at most 9 digits: longer ones are out of range anyway, and int() refuses thousands of them
    if text.isascii() and text.isdecimal() and len(text) <= 9 and int(text) < len(model.classes):
        return int(text)
    names = {name.casefold(): index for index, name in enumerate(model.classes)}
    if text.casefold() in names:
        return names[text.casefold()]
    raise UnknownClass(text, model.classes)


@router.post(
    "/generate/{class_id}",
    status_code=202,
    responses=_RESPONSES,
    openapi_extra={"requestBody": body_example(GenerateIn), "parameters": _HEADERS},
)
async def generate_class(
    class_id: Annotated[str, Path(description="Number or name of a class.", examples=["3", "cat"])],
    body: Annotated[GenerateIn, Depends(json_body(GenerateIn))],
    desk: Annotated[_Desk, Depends()],
) -> Response:
    """Queue a job that makes images of one class."""
    return await desk.take(class_id, body)


@router.post(
    "/generate",
    status_code=202,
    responses=_RESPONSES,
    openapi_extra={"requestBody": body_example(GenerateAnyIn), "parameters": _HEADERS},
)
async def generate(
    body: Annotated[GenerateAnyIn, Depends(json_body(GenerateAnyIn))],
    desk: Annotated[_Desk, Depends()],
) -> Response:
    """Queue a job; the class is named in the body."""
    return await desk.take(body.class_id, body)
