"""/jobs: all images of a job in one file, a film or an archive."""

from collections.abc import Iterator
from typing import Annotated

import numpy as np
from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from app import archive, films, formats, negotiation, overlay, pictures, rate, recipes, sights, views
from app.deps import Found, Store, charge, payer_of, state
from app.docs import files, problems
from app.drawing import Drawn, DrawnResponse, Place
from app.errors import Conflict, Invalid
from app.films import FilmIn, Plan
from app.formats import FILMS, STILLS
from app.overlay import FigureStyle
from app.points import Point
from app.routes.attention import check_points, parse_points
from app.routes.jobs import check_size, images_of
from app.security import KeyedRoute
from app.sights import Sight
from imaging.animation import Pixels
from imaging.enlarging import enlarged
from imaging.mp4 import ffmpeg
from imaging.png import text_of
from imaging.stills import Still
from jobs.client import JobClient
from jobs.job import AttentionSite, Job

router = APIRouter(prefix="/jobs", tags=["jobs"], route_class=KeyedRoute)

_PROBLEMS = problems(401, 404, 406, 409, 410, 422, 429, 503)


class Packed(BaseModel):
    """The format of the images in an archive."""

    model_config = ConfigDict(extra="forbid")

    format: Still = "png"
    quality: int | None = Field(
        None, ge=1, le=100, description="Of lossy WebPs (absent: lossless) or JPEGs (absent: 90)."
    )


@router.get(
    "/{job_id}/archive",
    response_class=Response,
    responses=files("A ZIP of the images, stored as they are", "application/zip") | _PROBLEMS,
)
async def read_archive(asked: Annotated[Packed, Query()], request: Request, job: Found) -> Response:
    """All images of a finished job as a ZIP, each named by class, seed and index."""
    if asked.format == "png" and asked.quality is not None:
        raise Invalid(
            "quality is for webp and jpeg: a PNG keeps every pixel. Leave it out, or add format=webp."
        )
    here, caller = state(request), payer_of(request)
    here.drawings.check(caller)
    pngs = await images_of(job, here.store)
    tag = pictures.etag(*pngs, "zip", job.id, asked.format, asked.quality)
    headers = negotiation.file_headers(tag, f"{recipes.stem(job.spec)}.zip", saved=True)
    if negotiation.knows(request, tag):
        return negotiation.not_modified(headers)
    side = pictures.resolution(pngs[0])
    await charge(request, rate.cost_of(0 if asked.format == "png" else len(pngs) * side**2))
    size = pictures.memory_of_grid(side, len(pngs), side)

    async def begin(_: Place) -> Drawn:
        return Drawn(archive.zipped(_named(job, pngs, asked), job.created_at))

    return DrawnResponse(
        request, here.drawings, size, caller, begin, headers=headers, media_type="application/zip"
    )


def _named(job: Job, pngs: list[bytes], asked: Packed) -> Iterator[tuple[str, bytes]]:
    """The files of an archive, one at a time."""
    stem = recipes.stem(job.spec)
    for index, png in enumerate(pngs):
        name = formats.file_name(f"{stem}-{job.spec.start + index:04}", asked.format)
        if asked.format == "png":
            yield name, png
        else:
            yield (
                name,
                b"".join(pictures.grid([png], None, "nearest", text_of(png), asked.format, asked.quality)),
            )


@router.get(
    "/{job_id}/film",
    response_class=Response,
    responses=files("The film; as a strip a PNG", *FILMS.values(), STILLS["png"]) | _PROBLEMS,
)
async def read_film(
    asked: Annotated[FilmIn, Query()], request: Request, job: Found, store: Store
) -> Response:
    """The images of a finished job one after the other, with the job's recipe in the file.

    With `attention` each frame shows where one point of the image attends.
    """
    here, caller = state(request), payer_of(request)
    kind = formats.film_of(request, asked.format, with_mp4=ffmpeg() is not None)
    asked.check(kind)
    here.drawings.check(caller)
    check_size(asked.size, here.settings.max_side)
    if job.spec.count < 2:
        raise Conflict("A film needs two images or more, and this job has one. See its links.images.")
    pngs = await images_of(job, store)
    resolution = pictures.resolution(pngs[0])
    planned = films.plan(asked, kind, len(pngs), resolution)
    point = _point(asked.attention, resolution)
    site = None if point is None else await _site(store, job, asked)
    told = asked.model_dump(exclude_none=True) | {"format": kind, "layer": site and site.name}
    tag = pictures.etag(*pngs, "film", job.id, repr(told), views.VERSION)
    name = formats.file_name(f"{recipes.stem(job.spec)}-film", kind)
    headers = formats.varied(negotiation.file_headers(tag, name), asked.format)
    if negotiation.knows(request, tag):
        return negotiation.not_modified(headers)
    if site is not None:
        await _check_maps(store, job, site)
    await charge(request, rate.cost_of(planned.pixels))
    memory = planned.memory(resolution)
    if site is not None:
        memory += Sight(job, 0, pngs[0], site).memory + views.memory_of("overlay", planned.side, 1)
    text = _recipe(job, asked, planned, site)

    async def begin(place: Place) -> Drawn:
        async def plain(index: int) -> Pixels:
            return await place.run(_plain, pngs[index], planned.side, asked)

        async def painted(index: int) -> Pixels:
            assert point is not None
            assert site is not None
            seen = await store.attention(job, index, site.name)
            if seen is None:
                raise _no_map(index, site)
            style = FigureStyle(planned.side, asked.colormap, asked.alpha)
            image = await place.run(pictures.read, pngs[index])
            return np.asarray(await place.run(overlay.overlay, image, seen, point, style))

        return Drawn(films.drawn(place, planned, text, plain if site is None else painted))

    media_type = STILLS["png"] if kind == "strip" else FILMS[kind]
    return DrawnResponse(
        request, here.drawings, memory, caller, begin, headers=headers, media_type=media_type
    )


def _plain(png: bytes, side: int, asked: FilmIn) -> Pixels:
    image = pictures.read(png)
    return image if side == len(image) else enlarged(image, side, asked.resample)


def _point(attention: str | None, resolution: int) -> Point | None:
    """Raises Invalid, NotFound."""
    if attention is None:
        return None
    points = parse_points(attention)
    if len(points) > 1:
        raise Invalid("attention must be one point x,y in pixels of the image, such as 8,12.")
    check_points("overlay", points, resolution)
    return points[0]


async def _site(store: JobClient, job: Job, asked: FilmIn) -> AttentionSite:
    """Raises as sights.sites_of does, and Invalid."""
    site, *others = await sights.sites_of(store, job, 0, asked.layer or job.spec.attention or None)
    if others:
        raise Invalid("A film shows one layer: name it, or leave layer out to have the first.")
    return site


async def _check_maps(store: JobClient, job: Job, site: AttentionSite) -> None:
    """Raises Conflict for a map that is not kept: it takes a worker to make it."""
    for index in range(job.spec.count):
        if not await store.has_attention(job, index, site.name):
            raise _no_map(index, site)


def _no_map(index: int, site: AttentionSite) -> Conflict:
    return Conflict(
        f"There is no attention map of image {index} at {site.name}. Ask with POST /morph "
        f'{{"attention": true}}, or GET /attention/{{id}}?image={index}&layer={site.name} first, '
        "for every image."
    )


def _recipe(job: Job, asked: FilmIn, planned: Plan, site: AttentionSite | None) -> str:
    """Of the job, and of all that the frames' pixels depend on."""
    strip = planned.kind == "strip"
    options: dict[str, object] = {
        "size": planned.side,
        "resample": asked.resample if site is None else None,
        "bounce": asked.bounce or None,
        "columns": planned.columns if strip else None,
    }
    if site is not None:
        options |= {
            "attention": asked.attention,
            "layer": site.name,
            "colormap": asked.colormap,
            "alpha": asked.alpha,
        }
    return recipes.of_job(job.spec, "strip" if strip else "film", **options)
