"""All images of a job, each painted with where the network looked, as one grid."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from PIL import Image

from app import overlay, overviews, pictures
from app.colours import PAPER
from app.overlay import FigureStyle
from app.pictures import Pixels
from app.points import Floats, Point
from app.sheet import warn_on_panel

GridView = Literal["mean", "overlay", "heatmap"]

_GAP: Final = pictures.GAP


@dataclass(frozen=True)
class Tile:
    """What is painted over one image of the grid."""

    png: bytes
    row: Floats  # where its point, or all queries on average, attend: [key rows, key columns]
    point: Point | None  # None: the mean of all queries


def grid(tiles: Sequence[Tile], view: GridView, style: FigureStyle, *, shut: bool) -> Iterator[bytes]:
    """The pieces of a PNG in which images lie as `pictures.grid` lays them; one row is painted at a time.

    style.size: side of each. shut: a strip below says that attention hardly changes these images.
    """
    side = style.size
    columns = pictures.grid_columns(len(tiles))
    rows = math.ceil(len(tiles) / columns)
    width = columns * (side + _GAP) - _GAP
    foot = _warning(width, side) if shut else None

    def strips() -> Iterator[Pixels]:
        for row in range(rows):
            strip = Image.new("RGB", (width, side + (_GAP if row else 0)), PAPER)
            for column, tile in enumerate(tiles[row * columns : (row + 1) * columns]):
                painted = _paint(tile, view, style)
                strip.paste(painted, (column * (side + _GAP), strip.height - side))
            yield from pictures.strips_of(strip)
        if foot is not None:
            yield from pictures.strips_of(foot)

    height = rows * (side + _GAP) - _GAP + (0 if foot is None else foot.height)
    return pictures.write(strips(), width, height)


def _paint(tile: Tile, view: GridView, style: FigureStyle) -> Image.Image:
    image = pictures.read(tile.png)
    if view == "heatmap":
        return overlay.heat_panel(tile.row, style)
    if tile.point is None:
        return overviews.mean_panel(image, tile.row, style)
    return overlay.point_panel(image, tile.row, tile.point, style)


def _warning(width: int, side: int) -> Image.Image:
    strip = Image.fromarray(np.full((max(14, min(28, round(side * 0.12))), width, 3), 255, np.uint8))
    warn_on_panel(strip, at_top=True, height=strip.height)
    return strip


def memory_of(resolution: int, count: int, style: FigureStyle) -> int:
    """Bytes that `grid` uses at most, with its PNGs; a map at a time is not counted."""
    side = style.size
    width = pictures.grid_columns(count) * (side + _GAP)
    return pictures.memory_of_grid(resolution, count, side) + 88 * side * side + 6 * width * (side + _GAP)
