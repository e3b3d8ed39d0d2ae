"""GET /attention: where the network looked while it made an image, drawn or as numbers."""

import math
import re
from dataclasses import dataclass
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from app import map_formats, negotiation, overlay, pictures
from app.colours import Colormap
from app.deps import Found, Store, UseDrawingPool, state
from app.disconnect import while_connected
from app.docs import PNG, problems
from app.errors import RETRY_AFTER, Invalid, ModelChanged, NoAttention, NotFinished, NoWorker, Unavailable
from app.overlay import FigureStyle, View
from app.points import Point, default_points
from app.routes.jobs import image_of
from app.schemas import MapOut
from app.security import KeyedRoute
from jobs.client import JobClient
from jobs.job import AttentionMap, Job, JobSpec

router = APIRouter(prefix="/attention", tags=["attention"], route_class=KeyedRoute)

_POINT = re.compile(r"\s*(-?\d{1,6}(?:\.\d{1,6})?)\s*,\s*(-?\d{1,6}(?:\.\d{1,6})?)\s*")
_NUMPY = "application/x-npy"


class Place(BaseModel):
    """Which map."""

    model_config = ConfigDict(extra="forbid")

    image: int = Field(0, description="Which image of the job.")
    layer: str | None = Field(
        None, max_length=100, description="One of the model's sites; absent: the first."
    )


class Reading(Place):
    """Which map, and how exactly."""

    rounded: bool = Field(
        False,
        description="Rows as records of `peak` (float32), `at` (uint32: its key) and `levels` (uint8 a key) "
        "instead of float16: peak * level / 255 is off by 1/510 of the peak at most. Half the bytes.",
    )


class Drawing(Place):
    """Which map, and how it is drawn."""

    view: View = Field("figure", description="figure: all points; overlay, heatmap: one point.")
    points: str | None = Field(
        None,
        max_length=400,
        description="x,y;x,y in pixels of the image, x right and y down. Absent: five that differ.",
        examples=["8,12;20,16"],
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
    layer: str

    def etag(self, *asked: object) -> str:
        """Of the map, drawn or written as `asked`: the same spec has the same map."""
        return pictures.etag(self.png, self.job.id, self.index, self.layer, repr(asked))


async def _sight(store: JobClient, job: Job, place: Place) -> _Sight:
    """Raises NotFound, NotFinished, Unsuccessful, NoAttention, ModelChanged, NoWorker, Invalid."""
    if not job.ended:
        raise NotFinished(
            f"The job is {job.state}: {job.done} of {job.spec.count} images are made. Ask again shortly.",
            retry_after=1,
        )
    png = await image_of(job, place.image, store)
    return _Sight(job, place.image, png, await _layer(store, job.spec, place.layer))


async def _layer(store: JobClient, spec: JobSpec, asked: str | None) -> str:
    """`asked`, or the first layer of the job's model."""
    served = [model for worker in await store.workers() for model in worker.models]
    model = next((model for model in served if model.version == spec.version), None)
    if model is None and any(model.name == spec.model for model in served):
        raise ModelChanged(
            f"This job was made by another version of {spec.model!r} ({spec.model_hash[:12]}). "
            "Generate again, and look at the new job."
        )
    if model is None:
        raise NoWorker(f"No worker with the model {spec.model!r} is there.", retry_after=RETRY_AFTER)
    sites = [site.name for site in model.attention]
    if not sites:
        raise NoAttention(
            f"The model {spec.model!r} has no attention layer. See /models for those that have."
        )
    if asked is not None and asked not in sites:
        raise Invalid(f"layer must be one of: {', '.join(sites)}.")
    return asked or sites[0]


async def _seen(request: Request, sight: _Sight) -> AttentionMap:
    """The map, made by a worker if it is not there. Raises NoMap, ClientLeft, Unavailable."""
    here, place = state(request), (sight.job, sight.index, sight.layer)
    found = await here.store.attention(*place)
    if found is not None:
        return found
    await here.store.ask_for_attention(*place)
    timeout = here.settings.attention_timeout
    made = await while_connected(request, here.store.attention_made(*place, timeout))
    if made is None:
        raise Unavailable(
            f"No worker made the map within {timeout:g} s. Ask again: it may be there by then.",
            retry_after=RETRY_AFTER,
        )
    return made


@router.get("/{job_id}", response_class=Response, responses=PNG | problems(401, 404, 409, 410, 422, 503))
async def draw_attention(
    asked: Annotated[Drawing, Query()], request: Request, job: Found, store: Store, pool: UseDrawingPool
) -> Response:
    """The attention figure of an image; or the map of one point over the image, or alone."""
    points = None if asked.points is None else parse_points(asked.points)
    sight = await _sight(store, job, asked)
    _check_points(asked.view, points, pictures.resolution(sight.png))
    style = FigureStyle(asked.size, asked.colormap, asked.alpha)
    tag = sight.etag(asked.view, points, style, overlay.VERSION)
    name = f"{job.spec.class_name}-{job.spec.seed}-{sight.index}-{asked.view}"
    headers = negotiation.png_headers(tag, name)
    if negotiation.knows(request, tag):
        return negotiation.not_modified(headers)
    seen = await _seen(request, sight)
    png, shown = await pool.draw(_draw, sight, seen, asked.view, points, style)
    headers |= _facts(seen) | {"X-Attention-Points": ";".join(f"{x},{y}" for x, y in shown)}
    return Response(png, media_type="image/png", headers=headers)


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
        **problems(401, 404, 409, 410, 422, 503),
    },
)
async def read_map(
    asked: Annotated[Reading, Query()], request: Request, job: Found, store: Store, pool: UseDrawingPool
) -> Response:
    """The map itself: rows are queries, row by row (y * width + x), each sums to 1."""
    as_json = negotiation.wants(request, "application/json", rather_than=_NUMPY)
    if as_json and asked.rounded:
        raise Invalid("rounded=true is for .npy; leave it out to read JSON.")
    gzipped = negotiation.takes_gzip(request)
    sight = await _sight(store, job, asked)
    headers = {
        "ETag": sight.etag("map", as_json, asked.rounded, gzipped),
        "Cache-Control": "private, max-age=31536000, immutable",
        "Vary": "Accept, Accept-Encoding",
    }
    if negotiation.knows(request, headers["ETag"]):
        return negotiation.not_modified(headers)
    seen = await _seen(request, sight)
    headers |= _facts(seen) | ({"Content-Encoding": "gzip"} if gzipped else {})
    as_bytes = map_formats.as_records if asked.rounded else map_formats.as_npy
    write = partial(map_formats.as_json, job.id, sight.index) if as_json else as_bytes
    content = await pool.draw(map_formats.written, write, seen, gzipped)
    return Response(content, media_type="application/json" if as_json else _NUMPY, headers=headers)


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
            raise Invalid(f"The point {x},{y} lies outside the image: x and y go from 0 to {resolution - 1}.")
    if view != "figure" and points is not None and len(points) > 1:
        raise Invalid(f"view={view} shows one point; {len(points)} were given. view=figure shows several.")


def _facts(attention: AttentionMap) -> dict[str, str]:
    return {
        "X-Attention-Layer": attention.layer,
        "X-Attention-Query-Grid": "x".join(map(str, attention.query_grid)),
        "X-Attention-Key-Grid": "x".join(map(str, attention.key_grid)),
        "X-Attention-Gamma": f"{attention.gamma:.6g}",
        "X-Attention-Share": f"{attention.share:.6g}",
    }


def _draw(
    sight: _Sight, seen: AttentionMap, view: View, points: list[Point] | None, style: FigureStyle
) -> tuple[bytes, list[Point]]:
    """The picture, and the points that it shows."""
    image = pictures.read(sight.png)
    points = points or default_points(seen, len(image))
    match view:
        case "figure":
            spec = sight.job.spec
            title = f"{spec.class_name}  ·  seed {spec.seed}, image {sight.index}  ·  {spec.model}"
            drawn = overlay.figure(image, seen, points, style, title)
        case "overlay":
            drawn = overlay.overlay(image, seen, points[0], style)
        case "heatmap":
            drawn = overlay.heatmap(image, seen, points[0], style)
    return pictures.write(drawn), points
