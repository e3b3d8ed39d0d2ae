"""GET /attention/{id}/grid: all images of a job at a glance, each painted with where the network looked."""

from collections import deque
from collections.abc import Sequence
from time import monotonic
from typing import Annotated, Final

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from app import negotiation, painted, pictures, rate, sights, views
from app.colours import Colormap
from app.deps import Found, Store, charge, payer_of, state
from app.disconnect import while_connected
from app.docs import PNG, problems
from app.drawing import Drawn, DrawnResponse, Place
from app.errors import RETRY_AFTER, Conflict, QueueIsFull, TooLarge, TooManyRequests, Unavailable
from app.overlay import FigureStyle
from app.painted import GridView, Tile
from app.points import Point, default_points, mean_row, row_of
from app.routes.attention import PAIR, Alpha, check_points, parse_points
from app.routes.jobs import MAX_SHEET, images_of
from app.security import KeyedRoute
from app.sheet import is_shut
from app.sights import Sight
from jobs.errors import MapsFull
from jobs.job import AttentionMap

router = APIRouter(prefix="/attention", tags=["attention"], route_class=KeyedRoute)

AT_ONCE: Final = 4  # maps that one grid waits for: others' come between them


class Painting(BaseModel):
    """Which layer, and how the images are painted."""

    model_config = ConfigDict(extra="forbid")

    layer: str | None = Field(
        None, max_length=100, description="One of the model's sites; absent: the first."
    )
    view: GridView = Field(
        "mean", description="mean: what all queries attend to on average; overlay, heatmap: one point."
    )
    points: str | None = Field(
        None,
        max_length=40,
        description="x,y in pixels of each image. Absent: in each image the point that attends most sharply.",
        examples=["8,12"],
        json_schema_extra={"pattern": f"^{PAIR};?$"},
    )
    colormap: Colormap = "inferno"
    alpha: Alpha = 0.8
    size: int = Field(128, ge=64, le=1024, description="Side of an image, pixels.")


@router.get(
    "/{job_id}/grid", response_class=Response, responses=PNG | problems(401, 404, 409, 410, 422, 429, 503)
)
async def draw_attention_grid(
    asked: Annotated[Painting, Query()], request: Request, job: Found, store: Store
) -> Response:
    """All images of a finished job side by side, each painted with where the network looked.

    The maps that are not there yet are made, a few at a time. Where that takes too long the answer is 503 and
    says how many there are: they stay, and the next request goes on from there.
    """
    caller = payer_of(request)
    state(request).drawings.check(caller)
    points = None if asked.points is None else parse_points(asked.points)
    looked = await _sights(request, job, asked)
    resolution = pictures.resolution(looked[0].png)
    check_points(asked.view, points, resolution)
    point = points[0] if points else None
    style = FigureStyle(asked.size, asked.colormap, asked.alpha)
    tag = sights.etag(looked, "grid", asked.view, point, style, views.VERSION)
    headers = negotiation.png_headers(tag, f"{job.spec.class_name}-{job.spec.seed}-attention-{asked.view}")
    if negotiation.knows(request, tag):
        return negotiation.not_modified(headers)
    await charge(request, rate.cost_of(pictures.grid_size(len(looked), asked.size)))
    await while_connected(request, _make(request, looked))

    async def begin(place: Place) -> Drawn:
        tiles, shares, shut = [], [], False
        for sight in looked:  # one map at a time is in memory
            seen = await sights.read(request, sight)
            tiles.append(await place.run(_tile, sight, seen, asked.view, point))
            shares.append(f"{seen.share:.3g}")
            shut = shut or is_shut(seen)
        told = sights.facts([seen]) | {"X-Attention-Share": ", ".join(shares)}
        if asked.view != "mean":
            chosen = (tile.point for tile in tiles if tile.point is not None)
            told["X-Attention-Points"] = ";".join(f"{x},{y}" for x, y in chosen)
        return Drawn(painted.grid(tiles, asked.view, style, shut=shut), told)

    memory = looked[0].memory + painted.memory_of(resolution, len(looked), style)
    return DrawnResponse(request, state(request).drawings, memory, caller, begin, headers=headers)


async def _sights(request: Request, job: Found, asked: Painting) -> list[Sight]:
    """Every image of the job, by one layer. Raises TooLarge, Conflict, and what sights_of does."""
    store = state(request).store
    sights.check_ended(job)
    columns = pictures.grid_columns(job.spec.count)
    if asked.size * columns > MAX_SHEET:
        raise TooLarge(f"size must be at most {MAX_SHEET // columns} for a grid of {job.spec.count} images.")
    pngs = await images_of(job, store)
    site, *others = await sights.sites_of(store, job, 0, asked.layer)
    if others:
        raise Conflict("A grid shows one layer: name it, or leave layer out for the first.")
    return [Sight(job, index, png, site) for index, png in enumerate(pngs)]


async def _make(request: Request, looked: Sequence[Sight]) -> None:
    """Return when the maps of all images are there. Raises QueueIsFull, TooManyRequests, Unavailable."""
    here = state(request)
    deadline = monotonic() + here.settings.attention_timeout
    missing = deque([one for one in looked if not await here.store.has_attention(*one.place)])
    waiting: deque[Sight] = deque()
    paid: Sight | None = None  # of those missing

    def progress() -> str:
        return f"{len(looked) - len(missing) - len(waiting)} of {len(looked)} maps are made"

    while missing or waiting:
        if missing and len(waiting) < AT_ONCE:
            try:
                if paid is not missing[0]:
                    paid = missing[0]
                    await charge(request)
                await sights.ask_for(request, missing[0])
            except TooManyRequests as error:
                raise TooManyRequests(
                    f"{progress()}. {error.detail}", retry_after=error.retry_after
                ) from error
            except MapsFull as full:
                if not waiting:
                    after = here.pace.until_a_map_fits(full.waiting)
                    raise QueueIsFull(f"{progress()}. {full}", retry_after=after) from full
            else:
                waiting.append(missing.popleft())
                continue
        left = deadline - monotonic()
        if left <= 0 or not await here.store.attention_made(*waiting[0].place, left):
            raise Unavailable(f"{progress()}; ask again, and the others follow.", retry_after=RETRY_AFTER)
        waiting.popleft()


def _tile(sight: Sight, seen: AttentionMap, view: GridView, point: Point | None) -> Tile:
    if view == "mean":
        return Tile(sight.png, mean_row(seen), None)
    side = pictures.resolution(sight.png)
    [where] = default_points(seen, side, 1) if point is None else [point]
    return Tile(sight.png, row_of(seen, where, side), where)
