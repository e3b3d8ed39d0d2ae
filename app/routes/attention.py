"""GET /attention: where the network looked while it made an image, drawn or as numbers."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from app import map_formats, negotiation, overlay, pictures, rate
from app.colours import Colormap
from app.deps import Found, Store, charge, counted_as, state
from app.disconnect import while_connected
from app.docs import PNG, problems
from app.drawing import Drawn, DrawnResponse, Place
from app.errors import (
    RETRY_AFTER,
    Conflict,
    Invalid,
    ModelChanged,
    NoAttention,
    NotFinished,
    NotFound,
    NoWorker,
    QueueIsFull,
    Unavailable,
)
from app.overlay import FigureStyle, View
from app.points import DEFAULT_POINTS, Point, default_points
from app.routes.jobs import image_of
from app.schemas import MapOut
from app.security import KeyedRoute
from jobs.client import JobClient
from jobs.errors import MapsFull
from jobs.job import AttentionMap, AttentionSite, Job

router = APIRouter(prefix="/attention", tags=["attention"], route_class=KeyedRoute)

_NUMBER = r" *(-?[0-9]{1,6}(?:\.[0-9]{1,6})?) *"
_PAIR = f"{_NUMBER},{_NUMBER}"
_POINT = re.compile(_PAIR)
_NUMPY = "application/x-npy"


class Which(BaseModel):
    """Which map."""

    model_config = ConfigDict(extra="forbid")

    image: int = Field(0, description="Which image of the job.")
    layer: str | None = Field(
        None, max_length=100, description="One of the model's sites; absent: the first."
    )


class Reading(Which):
    """Which map, and how exactly."""

    rounded: bool = Field(
        False,
        description="Rows as records of `peak` (float32), `at` (uint32: its key) and `levels` (uint8 a key) "
        "instead of float16: peak * level / 255 is off by 1/510 of the peak at most. Half the bytes.",
    )


class Drawing(Which):
    """Which map, and how it is drawn."""

    view: View = Field("figure", description="figure: all points; overlay, heatmap: one point.")
    points: str | None = Field(
        None,
        max_length=400,
        description="x,y;x,y in pixels of the image, x right and y down. Absent: five that differ.",
        examples=["8,12;20,16"],
        json_schema_extra={"pattern": f"^{_PAIR}(;{_PAIR}){{0,{overlay.MAX_POINTS - 1}}};?$"},
    )
    colormap: Colormap = "inferno"
    alpha: float = Field(0.8, ge=0, le=1, description="How far the hottest place covers the image.")
    size: int = Field(256, ge=64, le=1024, description="Side of one panel, pixels.")


@dataclass(frozen=True)
class _Sight:
    """An image whose attention is asked for, and the layer."""

    job: Job
    index: int
    png: bytes
    site: AttentionSite

    @property
    def place(self) -> tuple[Job, int, str]:
        return self.job, self.index, self.site.name

    @property
    def memory(self) -> int:
        """Bytes of the map as it is read: packed, unpacked and as float32."""
        queries = self.site.resolution**2
        return 4 * 2 * queries * (queries // 4) + pictures.ALWAYS

    def etag(self, *asked: object) -> str:
        """Of the map, drawn or written as `asked`: the same spec has the same map."""
        return pictures.etag(self.png, self.job.id, self.index, self.site.name, repr(asked))


async def _sight(store: JobClient, job: Job, asked: Which) -> _Sight:
    """Raises NotFound, NotFinished, Unsuccessful, NoAttention, ModelChanged, NoWorker, Invalid."""
    if not job.ended:
        raise NotFinished(
            f"The job is {job.state}: {job.done} of {job.spec.count} images are made. Ask again shortly.",
            retry_after=1,
        )
    png = await image_of(job, asked.image, store)
    return _Sight(job, asked.image, png, await _site(store, job, asked))


async def _site(store: JobClient, job: Job, which: Which) -> AttentionSite:
    """The layer asked for, or the first one of the job's model."""
    spec, asked = job.spec, which.layer
    served = [model for worker in await store.workers() for model in worker.models]
    model = next((model for model in served if model.version == spec.version), None)
    if model is None:
        # a map that was made lives as long as its images, whatever became of its model
        others = (site.name for model in served if model.name == spec.model for site in model.attention)
        for name in [asked] if asked else list(dict.fromkeys(others)):
            side = name.partition("x")[0]
            if side.isdecimal() and await store.has_attention(job, which.image, name):
                return AttentionSite(name, int(side), 0.0)
    if model is None and any(model.name == spec.model for model in served):
        raise ModelChanged(
            f"This job was made by another version of {spec.model!r} ({spec.model_hash[:12]}). "
            "Generate again, and look at the new job."
        )
    if model is None:
        raise NoWorker(f"No worker with the model {spec.model!r} is there.", retry_after=RETRY_AFTER)
    sites = {site.name: site for site in model.attention}
    if not sites:
        raise NoAttention(
            f"The model {spec.model!r} has no attention layer. See /models for those that have."
        )
    if asked is not None and asked not in sites:
        raise NotFound(f"layer must be one of: {', '.join(sites)}.")
    return model.attention[0] if asked is None else sites[asked]


async def _see(request: Request, sight: _Sight) -> None:
    """Return when the map is there; a worker makes it if need be.

    Raises NoMap, QueueIsFull, TooManyRequests, ClientLeft, Unavailable.
    """
    here, timeout = state(request), state(request).settings.attention_timeout
    if await here.store.has_attention(*sight.place):
        return
    await charge(request, sight.job.owner)
    caller = counted_as(request, sight.job.owner)
    try:
        await here.store.ask_for_attention(*sight.place, caller, math.ceil(timeout))
    except MapsFull as full:
        raise QueueIsFull(str(full), retry_after=here.pace.until_a_map_fits(full.waiting)) from full
    made = await while_connected(request, here.store.attention_made(*sight.place, timeout))
    if not made:
        raise _late(timeout)


async def _read(request: Request, sight: _Sight) -> AttentionMap:
    """The map, which is there. Raises NoMap, or Unavailable if it has just expired."""
    here = state(request)
    found = await here.store.attention(*sight.place)
    if found is None:
        raise _late(here.settings.attention_timeout)
    return found


def _late(timeout: float) -> Unavailable:
    return Unavailable(
        f"No worker made the map within {timeout:g} s. Ask again: it may be there by then.",
        retry_after=RETRY_AFTER,
    )


@router.get("/{job_id}", response_class=Response, responses=PNG | problems(401, 404, 409, 410, 422, 429, 503))
async def draw_attention(
    asked: Annotated[Drawing, Query()], request: Request, job: Found, store: Store
) -> Response:
    """The attention figure of an image; or the map of one point over the image, or alone."""
    points = None if asked.points is None else parse_points(asked.points)
    caller = counted_as(request, job.owner)
    state(request).drawings.check(caller)
    sight = await _sight(store, job, asked)
    _check_points(asked.view, points, pictures.resolution(sight.png))
    style = FigureStyle(asked.size, asked.colormap, asked.alpha)
    tag = sight.etag(asked.view, points, style, overlay.VERSION)
    name = f"{job.spec.class_name}-{job.spec.seed}-{sight.index}-{asked.view}"
    headers = negotiation.png_headers(tag, name)
    if negotiation.knows(request, tag):
        return negotiation.not_modified(headers)
    count = DEFAULT_POINTS if points is None else len(points)
    await charge(request, job.owner, rate.cost_of(overlay.pixels_of(asked.view, asked.size, count)))
    await _see(request, sight)

    async def begin(place: Place) -> Drawn:
        seen = await _read(request, sight)
        side = pictures.resolution(sight.png)
        chosen = points
        if chosen is None:
            chosen = await place.run(default_points, seen, side)
        shown = chosen if asked.view == "figure" else chosen[:1]
        told = {"X-Attention-Points": ";".join(f"{x},{y}" for x, y in shown)}
        return Drawn(_draw(sight, seen, asked.view, shown, style), _facts(seen) | told)

    drawings = state(request).drawings
    memory = sight.memory + overlay.memory_of(asked.view, asked.size, count)
    return DrawnResponse(request, drawings, memory, caller, begin, headers=headers)


@router.get(
    "/{job_id}/map",
    response_class=Response,
    responses={
        200: {
            "model": MapOut,
            "description": ".npy of float16 [queries, keys]; JSON on `Accept: application/json`. Gzipped "
            "where `Accept-Encoding` has it. Grids, gamma and share are in X-Attention-* headers as well.",
            "content": {_NUMPY: {}},
        },
        **problems(401, 404, 409, 410, 422, 429, 503),
    },
)
async def read_map(
    asked: Annotated[Reading, Query()], request: Request, job: Found, store: Store
) -> Response:
    """The map itself: rows are queries, row by row (y * width + x), each sums to 1."""
    as_json = negotiation.wants(request, "application/json", rather_than=_NUMPY)
    if as_json and asked.rounded:
        raise Invalid("rounded=true is for .npy; leave it out to read JSON.")
    gzipped = negotiation.takes_gzip(request)
    caller = counted_as(request, job.owner)
    state(request).drawings.check(caller)
    sight = await _sight(store, job, asked)
    headers = {
        "ETag": sight.etag("map", as_json, asked.rounded, gzipped),
        "Cache-Control": "private, max-age=31536000, immutable",
        "Vary": "Accept, Accept-Encoding",
    }
    if negotiation.knows(request, headers["ETag"]):
        return negotiation.not_modified(headers)
    await charge(request, job.owner)
    await _see(request, sight)
    if gzipped:
        headers["Content-Encoding"] = "gzip"

    async def begin(_: Place) -> Drawn:
        seen = await _read(request, sight)
        as_bytes = map_formats.as_records if asked.rounded else map_formats.as_npy
        pieces = map_formats.as_json(job.id, sight.index, seen) if as_json else as_bytes(seen)
        return Drawn(map_formats.gzipped(pieces) if gzipped else pieces, _facts(seen))

    drawings, kind = state(request).drawings, "application/json" if as_json else _NUMPY
    return DrawnResponse(request, drawings, sight.memory, caller, begin, headers=headers, media_type=kind)


def parse_points(text: str) -> list[Point]:
    """ "x,y;x,y" -> pixels; a fraction lies in the pixel it falls into. Raises Invalid."""
    points: list[Point] = []
    for part in text.removesuffix(";").split(";"):
        found = _POINT.fullmatch(part)
        if found is None:
            raise Invalid("points must read x,y;x,y in pixels of the image, such as 8,12;20,16.")
        points.append((math.floor(float(found[1])), math.floor(float(found[2]))))
    if len(points) > overlay.MAX_POINTS:
        raise Invalid(f"points may be {overlay.MAX_POINTS} at most; {len(points)} were given.")
    return points


def _check_points(view: View, points: list[Point] | None, resolution: int) -> None:
    for x, y in points or ():
        if not (0 <= x < resolution and 0 <= y < resolution):
            raise NotFound(
                f"The point {x},{y} lies outside the image: x and y go from 0 to {resolution - 1}."
            )
    if view != "figure" and points is not None and len(points) > 1:
        raise Conflict(f"view={view} shows one point; {len(points)} were given. view=figure shows several.")


def _facts(attention: AttentionMap) -> dict[str, str]:
    return {
        "X-Attention-Layer": attention.layer,
        "X-Attention-Query-Grid": "x".join(map(str, attention.query_grid)),
        "X-Attention-Key-Grid": "x".join(map(str, attention.key_grid)),
        "X-Attention-Gamma": f"{attention.gamma:.6g}",
        "X-Attention-Share": f"{attention.share:.6g}",
    }


def _draw(
    sight: _Sight, seen: AttentionMap, view: View, points: list[Point], style: FigureStyle
) -> Iterator[bytes]:
    """The pieces of the picture."""
    image = pictures.read(sight.png)
    match view:
        case "figure":
            spec = sight.job.spec
            title = f"{spec.class_name}  ·  seed {spec.seed}, image {sight.index}  ·  {spec.model}"
            for sheet in overlay.figure(image, seen, points, style, title):
                drawn = sheet
                yield b""  # a pause after each panel
        case "overlay":
            drawn = overlay.overlay(image, seen, points[0], style)
        case "heatmap":
            drawn = overlay.heatmap(image, seen, points[0], style)
    yield from pictures.written(drawn)
