"""OpenAI's way to ask for images and models: POST /v1/images/generations, GET /v1/models."""

import base64
import hashlib
import json
import math
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Generator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from time import monotonic
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Request, Response

from app import negotiation, pictures, rate
from app.deps import Caller, Store, UseSettings, charge, paced, payer_of, served_model, state
from app.disconnect import while_connected
from app.drawing import Drawn, DrawnResponse, Place
from app.errors import RETRY_AFTER, Unavailable, Unsuccessful
from app.openai import (
    ImageOut,
    ImagesOut,
    OpenAIErrorOut,
    OpenAIModelOut,
    OpenAIModelsOut,
    classes_of,
    invalid,
    side_of,
)
from app.orders import Format, GenerateAnyIn, ImagesIn
from app.routes.generate import Asker, CancelAfter, Key, Prefer, generate_spec, order
from app.routes.jobs import MAX_ENCODED, MAX_SHEET, image_of
from app.routes.models import list_models
from app.schemas import ModelOut
from app.security import KeyedRoute
from imaging.png import text_of
from imaging.recipes import with_enlargement
from jobs.client import JobClient
from jobs.errors import JobError
from jobs.job import Job, ModelInfo

router = APIRouter(prefix="/v1", tags=["openai"], route_class=KeyedRoute)


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": OpenAIErrorOut, "description": "In OpenAI's shape."} for status in statuses}


@dataclass(frozen=True)
class _Wanted:
    """What a request asks for, checked."""

    model: ModelInfo
    classes: tuple[int, ...]  # of each image
    seed: int
    side: int  # pixels
    format: Format
    quality: int | None  # of webp and jpeg, 1 to 100; None: a lossless webp, a jpeg of 90

    @property
    def drawn(self) -> bool:
        """Whether the files are others than the worker made."""
        return self.side != self.model.resolution or self.format != "png"

    @property
    def query(self) -> str:
        """What the address of an image adds to say the same."""
        asked: dict[str, object] = {}
        if self.side != self.model.resolution:
            asked |= {"size": self.side, "resample": "lanczos"}
        if self.format != "png":
            asked["format"] = self.format
            if self.quality is not None:
                asked["quality"] = self.quality
        return f"?{urlencode(asked)}" if asked else ""


async def _asking(
    request: Request, prefer: Prefer = (), key: Key = None, cancel_after: CancelAfter = None
) -> Asker:
    wait = negotiation.preferred_wait(prefer, state(request).settings.max_wait)
    return Asker(request, await paced(request), wait, False, negotiation.checked_key(key), None)


Asking = Annotated[Asker, Depends(_asking)]


@router.post("/images/generations", responses=_errors(400, 401, 403, 404, 409, 410, 413, 429, 503))
async def create_images(asking: Asking, body: ImagesIn) -> ImagesOut:
    """Images of a class, or of several, when they are made. Whoever leaves earlier has the jobs cancelled.

    With an `Idempotency-Key` they go on, and the same request finds them.
    """
    request, here = asking.request, state(asking.request)
    wanted = await _wanted(asking, body)
    with_bytes = body.response_format == "b64_json"
    if with_bytes and wanted.drawn:
        here.drawings.check(payer_of(request))
    async with _ordered(asking, body, wanted) as jobs:
        seconds = here.settings.max_wait if asking.wait is None else asking.wait
        ended = await while_connected(request, _ended(here.store, asking.caller, jobs, seconds))
    images = list(_listed(wanted, ended))
    answer = ImagesOut(
        created=int(min(job.created_at for job in ended.values()).timestamp()),
        output_format=wanted.format,
        size=f"{wanted.side}x{wanted.side}",
        model=wanted.model.name,
        seed=wanted.seed,
        data=[],
    )
    if with_bytes:
        pngs = [await image_of(ended[image.class_id], image.index, here.store) for image in images]
        return await _with_bytes(asking, wanted, answer, images, pngs)  # type: ignore[return-value]
    base = str(request.base_url).rstrip("/")
    for image in images:
        image.url = f"{base}/v1/jobs/{image.job}/images/{image.index}{wanted.query}"
    content = answer.model_copy(update={"data": images}).model_dump_json(exclude_none=True)
    return Response(content, media_type="application/json")  # type: ignore[return-value]


async def _wanted(asking: Asker, body: ImagesIn) -> _Wanted:
    """Raises NoWorker, UnknownModel, Invalid."""
    here = state(asking.request)
    models = await here.store.models()
    named = body.model if body.model != "default" or any(m.name == "default" for m in models) else None
    model = await served_model(here.store, named or here.settings.default_model)
    classes = classes_of(body.prompt, model)
    count = body.n if body.n is not None else len(classes)
    if count < len(classes):
        raise invalid("n", f"The prompt names {len(classes)} classes: n must be {len(classes)} or more.")
    side = side_of(body.size, model.resolution, here.settings.max_side)
    if side**2 * count > MAX_SHEET**2:
        most = math.isqrt(MAX_SHEET**2 // count)
        raise invalid("size", f"{count} images of {side}x{side} are too many pixels: {most}x{most} at most.")
    if body.output_format not in (None, "png") and side**2 > MAX_ENCODED:
        most = math.isqrt(MAX_ENCODED)
        raise invalid("size", f"A {body.output_format} may have {most}x{most} pixels at most; a png more.")
    return _Wanted(
        model=model,
        classes=tuple(classes[place % len(classes)] for place in range(count)),
        seed=_seed(asking.key) if body.seed is None else body.seed,
        side=side,
        format=body.output_format or "png",
        quality=None if body.output_compression is None else max(1, body.output_compression),
    )


def _seed(key: str | None) -> int:
    """One below 2^53, so that a browser's numbers hold it; of an Idempotency-Key always the same."""
    if key is None:
        return secrets.randbelow(2**53)
    return int.from_bytes(hashlib.sha256(key.encode()).digest()) % 2**53


@asynccontextmanager
async def _ordered(asking: Asker, body: ImagesIn, wanted: _Wanted) -> AsyncIterator[list[Job]]:
    """A job for each class; they are cancelled where what is inside fails, unless a key may find them again.

    Raises what app.routes.generate.order does, and TooManyRequests.
    """
    store, jobs, ended_well = state(asking.request).store, list[Job](), False
    try:
        classes = Counter(wanted.classes)
        if len(classes) > 1:  # one unit was counted before the body was read
            await charge(asking.request, len(classes) - 1)
        for class_id, count in classes.items():
            named = GenerateAnyIn(
                class_id=class_id,
                class_weights=None,
                start=0,
                listed=body.listed,
                expires_in=body.expires_in,
                retention=body.retention,
                count=count,
                seed=wanted.seed,
                truncation=body.truncation,
                model=wanted.model.name,
                priority=body.priority,
            )
            key = (
                None
                if asking.key is None
                else hashlib.sha256(f"{class_id} {asking.key}".encode()).hexdigest()
            )
            spec_of = partial(generate_spec, named, named)
            # all at the first, so that a request that does not fit takes nothing from the key's day; with an
            # Idempotency-Key each job stays and is found again, so it counts for itself
            counted = None if asking.key else 0 if jobs else classes.total()
            job, _ = await order(replace(asking, wait=None, key=key), named, spec_of, counted=counted)
            jobs.append(job)
        yield jobs
        ended_well = True
    finally:
        if not ended_well and asking.key is None:
            for job in jobs:
                with suppress(JobError):
                    await store.cancel(job.id, asking.caller)


async def _ended(store: JobClient, caller: str, jobs: list[Job], seconds: float) -> dict[int, Job]:
    """The jobs at their end, by class. Raises Unavailable, Unsuccessful."""
    deadline, ended = monotonic() + seconds, dict[int, Job]()
    for job in jobs:
        found = await store.finished(job.id, caller, max(0.0, deadline - monotonic()))
        if not found.ended:
            raise Unavailable(
                f"The images were not made within {seconds:g} s. Try again later, or POST /generate, which "
                "does not wait.",
                retry_after=RETRY_AFTER,
            )
        if found.state != "succeeded":
            raise Unsuccessful(f"The job was {found.state}: {found.error or 'by request'}.")
        ended[found.spec.class_id] = found
    return ended


def _listed(wanted: _Wanted, jobs: dict[int, Job]) -> Iterator[ImageOut]:
    """The images in the order of the answer."""
    made: Counter[int] = Counter()
    for class_id in wanted.classes:
        job, index = jobs[class_id], made[class_id]
        made[class_id] += 1
        yield ImageOut(
            revised_prompt=job.spec.class_name,
            class_id=class_id,
            seed=job.spec.seed,
            index=index,
            job=job.id,
        )


async def _with_bytes(
    asking: Asker, wanted: _Wanted, answer: ImagesOut, images: list[ImageOut], pngs: list[bytes]
) -> Response:
    """The answer with every image in it, written image by image."""
    head = answer.model_dump_json(exclude={"data"}).removesuffix("}")

    def pieces() -> Iterator[bytes]:
        yield f'{head},"data":['.encode()
        for place, (image, png) in enumerate(zip(images, pngs, strict=True)):
            data = (yield from _file(png, wanted)) if wanted.drawn else png
            told = image.model_dump(exclude_none=True) | {"b64_json": base64.b64encode(data).decode()}
            yield b"," * (place > 0) + json.dumps(told).encode()
        yield b"]}"

    if not wanted.drawn:
        return Response(b"".join(pieces()), media_type="application/json")
    pixels = wanted.side**2
    await charge(asking.request, rate.cost_of(len(pngs) * pixels))

    async def begin(_: Place) -> Drawn:
        return Drawn(pieces())

    memory = pictures.memory_of_grid(wanted.model.resolution, len(pngs), wanted.model.resolution)
    # and one file at a time, of three bytes a pixel at most: in its parts, whole, in base64 and in JSON
    memory += pictures.memory_of_grid(wanted.model.resolution, 1, wanted.side, wanted.format) + 24 * pixels
    drawings, caller = state(asking.request).drawings, payer_of(asking.request)
    return DrawnResponse(
        asking.request, drawings, memory, caller, begin, headers={}, media_type="application/json"
    )


def _file(png: bytes, wanted: _Wanted) -> Generator[bytes, None, bytes]:
    """Pauses between the steps, and at the end the file, with its recipe."""
    text, parts = text_of(png), []
    side = wanted.side if wanted.side != wanted.model.resolution else None
    if text is not None and side is not None:
        text = with_enlargement(text, side, "lanczos")
    for piece in pictures.grid([png], side, "lanczos", text, wanted.format, wanted.quality):
        parts.append(piece)
        yield b""
    return b"".join(parts)


@router.get("/models", responses=_errors(401, 403, 503))
async def list_openai_models(store: Store, caller: Caller, settings: UseSettings) -> OpenAIModelsOut:
    """The models as OpenAI's clients list them, and as /models does."""
    told = await list_models(store, caller, settings)
    infos = {model.name: model for model in await store.models()}
    data = [OpenAIModelOut.like(infos[one.name], one) for one in told.models if one.name in infos]
    return OpenAIModelsOut(data=data, **dict(told))


@router.get("/models/{name}", responses=_errors(401, 403, 404, 503))
async def get_openai_model(name: str, store: Store, caller: Caller) -> OpenAIModelOut:
    """One model, as OpenAI's clients read it. Raises UnknownModel, NoWorker."""
    model = await served_model(store, name)
    return OpenAIModelOut.like(model, ModelOut.of(model, await store.workers()))
