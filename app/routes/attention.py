"""GET /attention: where the network looked while it made an image, drawn or as figures."""

import gzip
import io
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import numpy as np
from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from app import negotiation, overlay, pictures
from app.deps import Found, UseDrawingPool, state
from app.disconnect import while_connected
from app.docs import PNG, problems
from app.errors import RETRY_AFTER, Invalid, ModelChanged, NoAttention, NotFinished, NoWorker, Unavailable
from app.overlay import Colormap, FigureStyle, Point, View
from app.routes.jobs import image_of
from app.schemas import MapOut
from jobs.job import AttentionMap, Job

router = APIRouter(prefix="/attention", tags=["attention"])

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
        description="x,y;x,y in pixels of the image, x right and y down. Absent: five well chosen.",
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

    def etag(self, *looked: object) -> str:
        """Of the map, seen in some way: the same recipe has the same map."""
        return pictures.etag(self.png, self.job.id, self.index, self.layer, repr(looked))


class _Viewer:
    """Finds the map of an image, and has it made by a worker if it is not there."""

    def __init__(self, request: Request, job: Job) -> None:
        self.request, self.job, here = request, job, state(request)
        self.store, self.settings = here.store, here.settings

    async def find(self, place: Place) -> _Sight:
        """Raises NotFound, NotFinished, Unsuccessful, NoAttention, ModelChanged, NoWorker, Invalid."""
        if not self.job.ended:
            raise NotFinished(
                f"The job is {self.job.state}: {self.job.done} of {self.job.spec.count} images are made. "
                "Ask again shortly.",
                retry_after=1,
            )
        png = await image_of(self.job, place.image, self.store)
        return _Sight(self.job, place.image, png, await self._layer(place.layer))

    async def see(self, sight: _Sight) -> AttentionMap:
        """Raises Unavailable when no worker makes the map in time."""
        found = await self.store.attention(self.job, sight.index, sight.layer)
        return await self._made(sight.index, sight.layer) if found is None else found

    async def _layer(self, asked: str | None) -> str:
        spec = self.job.spec
        served = [model for worker in await self.store.workers() for model in worker.models]
        named = [model for model in served if model.name == spec.model]
        model = next((model for model in named if model.hash == spec.model_hash), None)
        if model is None and named:
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
        if asked is None:
            return sites[0]
        if asked not in sites:
            raise Invalid(f"layer must be one of: {', '.join(sites)}.")
        return asked

    async def _made(self, index: int, layer: str) -> AttentionMap:
        await self.store.ask_for_attention(self.job, index, layer)
        timeout = self.settings.attention_timeout
        found = await while_connected(
            self.request, self.store.attention_made(self.job, index, layer, timeout)
        )
        if found is None:
            raise Unavailable(
                f"No worker made the map within {timeout:g} s. Ask again: it may be there by then.",
                retry_after=RETRY_AFTER,
            )
        return found


async def _viewer(request: Request, job: Found) -> _Viewer:
    return _Viewer(request, job)


Viewer = Annotated[_Viewer, Depends(_viewer)]


@router.get("/{job_id}", response_class=Response, responses=PNG | problems(401, 404, 409, 410, 422, 503))
async def draw_attention(
    asked: Annotated[Drawing, Query()], request: Request, viewer: Viewer, drawing: UseDrawingPool
) -> Response:
    """The attention figure of an image; or the map of one point over the image, or alone."""
    points = None if asked.points is None else parse_points(asked.points)
    sight = await viewer.find(asked)
    _check_points(asked.view, points, pictures.resolution(sight.png))
    look = FigureStyle(asked.size, asked.colormap, asked.alpha)
    tag = sight.etag(asked.view, points, look, overlay.VERSION)
    spec = sight.job.spec
    headers = negotiation.png_headers(tag, f"{spec.class_name}-{spec.seed}-{sight.index}-{asked.view}")
    if negotiation.knows(request, tag):
        return negotiation.not_modified(headers)
    seen = await viewer.see(sight)
    png, shown = await drawing.draw(_draw, sight, seen, asked.view, points, look)
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
    asked: Annotated[Reading, Query()], request: Request, viewer: Viewer, drawing: UseDrawingPool
) -> Response:
    """The map itself: rows are queries, row by row (y * width + x), each sums to 1."""
    as_json = negotiation.wants(request, "application/json", rather_than=_NUMPY)
    if as_json and asked.rounded:
        raise Invalid("rounded=true is for .npy; leave it out to read JSON.")
    gzipped = negotiation.takes_gzip(request)
    sight = await viewer.find(asked)
    headers = {
        "ETag": sight.etag("map", as_json, asked.rounded, gzipped),
        "Cache-Control": "private, max-age=31536000, immutable",
        "Vary": "Accept, Accept-Encoding",
    }
    if negotiation.knows(request, headers["ETag"]):
        return negotiation.not_modified(headers)
    seen = await viewer.see(sight)
    headers |= _facts(seen) | ({"Content-Encoding": "gzip"} if gzipped else {})
    write = partial(_as_json, sight) if as_json else _as_records if asked.rounded else _as_npy
    content = await drawing.draw(_written, write, seen, gzipped)
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
    sight: _Sight, seen: AttentionMap, kind: View, points: list[Point] | None, look: FigureStyle
) -> tuple[bytes, list[Point]]:
    """The picture, and the points that it shows."""
    image = pictures.read(sight.png)
    points = points or overlay.default_points(seen, len(image))
    match kind:
        case "figure":
            spec = sight.job.spec
            title = f"{spec.class_name}  ·  seed {spec.seed}, image {sight.index}  ·  {spec.model}"
            drawn = overlay.figure(image, seen, points, look, title)
        case "overlay":
            drawn = overlay.overlay(image, seen, points[0], look)
        case "heatmap":
            drawn = overlay.heatmap(image, seen, points[0], look)
    return pictures.write(drawn), points


def _written(write: Callable[[AttentionMap], bytes], seen: AttentionMap, gzipped: bool) -> bytes:
    content = write(seen)
    # the lowest level: the highest saves 4 % at most and takes more than twice as long
    return gzip.compress(content, compresslevel=1, mtime=0) if gzipped else content


def _as_npy(seen: AttentionMap) -> bytes:
    return _npy(seen.map.astype(np.float16, copy=False))


def _as_records(seen: AttentionMap) -> bytes:
    values = seen.map.astype(np.float32)
    queries, keys = values.shape
    rows = np.empty(queries, [("peak", "<f4"), ("at", "<u4"), ("levels", "u1", (keys,))])
    rows["peak"], rows["at"] = values.max(axis=1), values.argmax(axis=1)
    rows["levels"] = np.rint(values * (255 / rows["peak"][:, None]))  # a row sums to 1: its peak is not 0
    return _npy(rows)


def _npy(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, array, allow_pickle=False)
    return out.getvalue()


def _as_json(sight: _Sight, seen: AttentionMap) -> bytes:
    out = MapOut(
        job=sight.job.id,
        image=sight.index,
        layer=seen.layer,
        query_grid=seen.query_grid,
        key_grid=seen.key_grid,
        gamma=seen.gamma,
        share=seen.share,
        # 7 decimals hold what float16 does, in half the bytes
        map=np.round(seen.map.astype(np.float64), 7).tolist(),
    )
    return out.model_dump_json().encode()
