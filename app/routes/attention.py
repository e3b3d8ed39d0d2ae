"""GET /attention: where the network looked while it made an image, drawn or as figures."""

import io
import math
import re
from dataclasses import dataclass
from typing import Annotated

import anyio.to_thread
import numpy as np
from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from app import negotiation, overlay, pictures
from app.deps import Found, Queue, Store, UseArtist, UseSettings
from app.docs import PNG, problems
from app.errors import RETRY_AFTER, Invalid, ModelChanged, NoAttention, NotFinished, NoWorker, Unavailable
from app.overlay import Colormap, Look, Point, View
from app.routes.jobs import image_of
from app.schemas import MapOut
from worker.jobs import AttentionMap, Job
from worker.queue import publish_attention

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
class _Seen:
    """An image and its attention map."""

    job: Job
    index: int
    png: bytes
    attention: AttentionMap


class _Viewer:
    """Finds the map of an image, and has it made by a worker if it is not there."""

    def __init__(self, job: Found, store: Store, queue: Queue, settings: UseSettings) -> None:
        self.job, self.store, self.queue, self.settings = job, store, queue, settings

    async def see(self, place: Place) -> _Seen:
        """Raises NotFound, NotFinished, Unsuccessful, NoAttention, ModelChanged, NoWorker, Invalid."""
        if not self.job.ended:
            raise NotFinished(
                f"The job is {self.job.state}: {self.job.done} of {self.job.spec.count} images are made. "
                "Ask again shortly.",
                retry_after=1,
            )
        png = await image_of(self.job, place.image, self.store)
        layer = await self._layer(place.layer)
        found = await self.store.attention(self.job, place.image, layer)
        if found is None:
            found = await self._made(place.image, layer)
        return _Seen(self.job, place.image, png, found)

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
        if await self.store.claim_attention(self.job, index, layer):
            await anyio.to_thread.run_sync(publish_attention, self.queue, self.job.id, index, layer)
        timeout = self.settings.attention_timeout
        found = await self.store.attention_made(self.job, index, layer, timeout)
        if found is None:
            raise Unavailable(
                f"No worker made the map within {timeout:g} s. Ask again: it may be there by then.",
                retry_after=RETRY_AFTER,
            )
        return found


Viewer = Annotated[_Viewer, Depends()]


@router.get("/{job_id}", response_class=Response, responses=PNG | problems(401, 404, 409, 410, 422, 503))
async def draw_attention(
    asked: Annotated[Drawing, Query()], request: Request, viewer: Viewer, artist: UseArtist
) -> Response:
    """The attention figure of an image; or the map of one point over the image, or alone."""
    given = None if asked.points is None else parse_points(asked.points)
    seen = await viewer.see(asked)
    resolution = pictures.read(seen.png).shape[0]
    points = overlay.default_points(seen.attention, resolution) if given is None else given
    _check_inside(points, resolution)
    if asked.view != "figure" and given is not None and len(given) > 1:
        raise Invalid(
            f"view={asked.view} shows one point; {len(given)} were given. view=figure shows several."
        )
    look = Look(asked.size, asked.colormap, asked.alpha)
    drawn = repr((asked.view, points, look, overlay.VERSION))
    tag = pictures.etag(seen.png, seen.attention.to_bytes(), drawn)
    spec = seen.job.spec
    headers = negotiation.png_headers(tag, f"{spec.class_name}-{spec.seed}-{seen.index}-{asked.view}")
    headers |= _facts(seen.attention) | {"X-Attention-Points": ";".join(f"{x},{y}" for x, y in points)}
    if negotiation.knows(request, tag):
        return negotiation.not_modified(headers)
    png = await artist.draw(_draw, seen, asked.view, points, look)
    return Response(png, media_type="image/png", headers=headers)


@router.get(
    "/{job_id}/map",
    response_class=Response,
    responses={
        200: {
            "model": MapOut,
            "description": ".npy of float16 [queries, keys]; JSON on `Accept: application/json`. "
            "Grids, gamma and share are in X-Attention-* headers as well.",
            "content": {_NUMPY: {}},
        },
        **problems(401, 404, 409, 410, 422, 503),
    },
)
async def read_map(
    place: Annotated[Place, Query()], request: Request, viewer: Viewer, artist: UseArtist
) -> Response:
    """The map itself: rows are queries, row by row (y * width + x), each sums to 1."""
    seen = await viewer.see(place)
    as_json = negotiation.wants(request, "application/json", rather_than=_NUMPY)
    tag = pictures.etag(seen.attention.to_bytes(), seen.job.id, seen.index, "json" if as_json else "npy")
    headers = _facts(seen.attention) | {
        "ETag": tag,
        "Cache-Control": "private, max-age=31536000, immutable",
        "Vary": "Accept",
    }
    if negotiation.knows(request, tag):
        return negotiation.not_modified(headers)
    content = await artist.draw(_as_json if as_json else _as_npy, seen)
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


def _check_inside(points: list[Point], resolution: int) -> None:
    for x, y in points:
        if not (0 <= x < resolution and 0 <= y < resolution):
            raise Invalid(f"The point {x},{y} lies outside the image: x and y go from 0 to {resolution - 1}.")


def _facts(attention: AttentionMap) -> dict[str, str]:
    return {
        "X-Attention-Layer": attention.layer,
        "X-Attention-Query-Grid": "x".join(map(str, attention.query_grid)),
        "X-Attention-Key-Grid": "x".join(map(str, attention.key_grid)),
        "X-Attention-Gamma": f"{attention.gamma:.6g}",
        "X-Attention-Share": f"{attention.share:.6g}",
    }


def _draw(seen: _Seen, view: View, points: list[Point], look: Look) -> bytes:
    image = pictures.read(seen.png)
    match view:
        case "figure":
            spec = seen.job.spec
            title = f"{spec.class_name}  ·  seed {spec.seed}, image {seen.index}  ·  {spec.model}"
            return pictures.write(overlay.figure(image, seen.attention, points, look, title))
        case "overlay":
            return pictures.write(overlay.overlay(image, seen.attention, points[0], look))
        case "heatmap":
            return pictures.write(overlay.heatmap(image, seen.attention, points[0], look))


def _as_npy(seen: _Seen) -> bytes:
    out = io.BytesIO()
    np.save(out, seen.attention.map.astype(np.float16, copy=False), allow_pickle=False)
    return out.getvalue()


def _as_json(seen: _Seen) -> bytes:
    found = seen.attention
    out = MapOut(
        job=seen.job.id,
        image=seen.index,
        layer=found.layer,
        query_grid=found.query_grid,
        key_grid=found.key_grid,
        gamma=found.gamma,
        share=found.share,
        # 7 decimals hold what float16 does, in half the bytes
        map=np.round(found.map.astype(np.float64), 7).tolist(),
    )
    return out.model_dump_json().encode()
