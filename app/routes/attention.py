"""GET /attention: where the network looked while it made an image, drawn or as numbers."""

import math
import re
from collections.abc import Iterator, Sequence
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from pydantic import Field

from app import map_formats, negotiation, overlay, pictures, rate, sights, views
from app.colours import Colormap
from app.deps import Found, Store, charge, payer_of, state
from app.docs import PNG, problems
from app.drawing import Drawn, DrawnResponse, Place
from app.errors import Conflict, Invalid, NotFound
from app.overlay import FigureStyle
from app.points import DEFAULT_POINTS, Point, default_points
from app.schemas import MapOut
from app.security import KeyedRoute
from app.sights import Sight, Which
from app.views import View
from jobs.job import AttentionMap

router = APIRouter(prefix="/attention", tags=["attention"], route_class=KeyedRoute)

_NUMBER = r" *(-?[0-9]{1,6}(?:\.[0-9]{1,6})?) *"
PAIR = f"{_NUMBER},{_NUMBER}"
_POINT = re.compile(PAIR)
_NUMPY = "application/x-npy"


class Reading(Which):
    """Which map, and how exactly."""

    rounded: bool = Field(
        False,
        description="Rows as records of `peak` (float32), `at` (uint32: its key) and `levels` (uint8 a key) "
        "instead of float16: peak * level / 255 is off by 1/510 of the peak at most. Half the bytes.",
    )


Alpha = Annotated[float, Field(ge=0, le=1, description="How far the hottest place covers the image.")]


class Drawing(Which):
    """Which map, and how it is drawn."""

    layer: str | None = Field(
        None,
        max_length=100,
        description="One of the model's sites; absent: the first. all: every one, one below the other.",
    )
    view: View = Field(
        "figure",
        description="figure: all points; overlay, heatmap: one point. Without points: mean: what all queries "
        "attend to on average; all: the map of each query, small, at its place; received: what each region "
        "receives, and the strongest flows between regions.",
    )
    points: str | None = Field(
        None,
        max_length=400,
        description="x,y;x,y in pixels of the image, x right and y down. Absent: five that differ.",
        examples=["8,12;20,16"],
        json_schema_extra={"pattern": f"^{PAIR}(;{PAIR}){{0,{overlay.MAX_POINTS - 1}}};?$"},
    )
    colormap: Colormap = "inferno"
    alpha: Alpha = 0.8
    size: int = Field(256, ge=64, le=1024, description="Side of one panel, pixels.")


@router.get("/{job_id}", response_class=Response, responses=PNG | problems(401, 404, 409, 410, 422, 429, 503))
async def draw_attention(
    asked: Annotated[Drawing, Query()], request: Request, job: Found, store: Store
) -> Response:
    """The attention figure of an image; the map of one point; or a view of all its queries."""
    points = None if asked.points is None else parse_points(asked.points)
    caller = payer_of(request)
    state(request).drawings.check(caller)
    layers = await sights.sights_of(store, job, asked)
    sight = layers[0]
    check_points(asked.view, points, pictures.resolution(sight.png))
    style = FigureStyle(asked.size, asked.colormap, asked.alpha)
    tag = sights.etag(layers, asked.view, points, style, views.VERSION)
    name = f"{job.spec.class_name}-{job.spec.seed}-{sight.index}-{asked.view}"
    headers = negotiation.png_headers(tag, name)
    if negotiation.knows(request, tag):
        return negotiation.not_modified(headers)
    count = DEFAULT_POINTS if points is None else len(points)
    pixels = views.pixels_of(asked.view, asked.size, count, len(layers))
    await charge(request, rate.cost_of(pixels))
    for one in layers:
        await sights.see(request, one)

    async def begin(place: Place) -> Drawn:
        seen = [await sights.read(request, one) for one in layers]
        shown: list[Point] = []
        told = sights.facts(seen)
        if asked.view not in views.WHOLE:
            finest = max(seen, key=lambda one: len(one.map))
            chosen = points
            if chosen is None:
                chosen = await place.run(default_points, finest, pictures.resolution(sight.png))
            shown = chosen if asked.view == "figure" else chosen[:1]
            told["X-Attention-Points"] = ";".join(f"{x},{y}" for x, y in shown)
        return Drawn(_draw(sight, seen, asked.view, shown, style), told)

    drawings = state(request).drawings
    memory = sum(one.memory for one in layers) + views.memory_of(asked.view, asked.size, count, len(layers))
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
    caller = payer_of(request)
    state(request).drawings.check(caller)
    sight, *others = await sights.sights_of(store, job, asked)
    if others:
        raise Invalid("layer=all is for drawings: read the maps of a model's layers one by one.")
    headers = {
        "ETag": sights.etag([sight], "map", as_json, asked.rounded, gzipped),
        "Cache-Control": "private, max-age=31536000, immutable",
        "Vary": "Accept, Accept-Encoding",
    }
    if negotiation.knows(request, headers["ETag"]):
        return negotiation.not_modified(headers)
    await charge(request)
    await sights.see(request, sight)
    if gzipped:
        headers["Content-Encoding"] = "gzip"

    async def begin(_: Place) -> Drawn:
        seen = await sights.read(request, sight)
        as_bytes = map_formats.as_records if asked.rounded else map_formats.as_npy
        pieces = map_formats.as_json(job.id, sight.index, seen) if as_json else as_bytes(seen)
        return Drawn(map_formats.gzipped(pieces) if gzipped else pieces, sights.facts([seen]))

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


def check_points(view: View, points: list[Point] | None, resolution: int) -> None:
    """Raises Conflict, NotFound."""
    if view in views.WHOLE and points is not None:
        raise Conflict(f"view={view} shows all queries at once; leave points out, or ask for view=overlay.")
    for x, y in points or ():
        if not (0 <= x < resolution and 0 <= y < resolution):
            raise NotFound(
                f"The point {x},{y} lies outside the image: x and y go from 0 to {resolution - 1}."
            )
    if view != "figure" and points is not None and len(points) > 1:
        raise Conflict(f"view={view} shows one point; {len(points)} were given. view=figure shows several.")


def _draw(
    sight: Sight, seen: Sequence[AttentionMap], view: View, points: list[Point], style: FigureStyle
) -> Iterator[bytes]:
    """The pieces of the picture."""
    spec = sight.job.spec
    between = len(spec.ends) > 1
    which = f"seed {spec.seed}, image {spec.start + sight.index}"
    frame = f"image {sight.index} of {spec.count}, between {len(spec.ends)} ends"
    title = f"{spec.class_name}  ·  {frame if between else which}  ·  {spec.model}"
    for drawn in views.draw(view, pictures.read(sight.png), seen, points, style, title):
        if drawn is None:
            yield b""  # a pause after each panel
        else:
            yield from pictures.written(drawn)
