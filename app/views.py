"""The views of an attention map: what there is, what each costs, and which drawing it is."""

from collections.abc import Iterator, Sequence
from typing import Final, Literal

from PIL import Image

from app import overlay, overviews
from app.overlay import FigureStyle
from app.pictures import Pixels
from app.points import Point, row_of
from app.sheet import captioned, sheet_size, stacked, strength, strip_of
from jobs.job import AttentionMap

View = Literal["figure", "overlay", "heatmap", "mean", "all", "received"]
WHOLE: Final = ("mean", "all", "received")  # of all queries: they have no points

VERSION = 3  # part of every drawing's ETag: raise it when the same map would be drawn differently


def draw(
    view: View,
    image: Pixels,
    maps: Sequence[AttentionMap],
    points: Sequence[Point],
    style: FigureStyle,
    title: str,
) -> Iterator[Image.Image | None]:
    """The view of an image, of several layers one below the other: None after each step, the picture at last.

    image: [R, R, 3]. points: those of the figure; of overlay and heatmap the first; else none. title: ASCII.
    """
    drawn = []
    for attention in maps:
        steps = _of_layer(view, image, attention, points, style, title)
        sheet = next(steps)
        for more in steps:
            sheet = more
            yield None
        if len(maps) > 1 and view in ("overlay", "heatmap"):
            row = row_of(attention, points[0], image.shape[0])
            sheet = captioned(sheet, f"{attention.layer}: {strength(row)}", attention.layer)
        drawn.append(sheet)
    yield stacked(drawn)


def _of_layer(
    view: View, image: Pixels, seen: AttentionMap, points: Sequence[Point], style: FigureStyle, title: str
) -> Iterator[Image.Image]:
    match view:
        case "figure":
            yield from overlay.figure(image, seen, points, style, title)
        case "all":
            yield from overviews.every_query(image, seen, style, title)
        case "received":
            yield from overviews.received(image, seen, style, title)
        case "overlay":
            yield overlay.overlay(image, seen, points[0], style)
        case "heatmap":
            yield overlay.heatmap(image, seen, points[0], style)
        case "mean":
            yield overviews.mean(image, seen, style)


def pixels_of(view: View, size: int, points: int, layers: int = 1) -> int:
    """Pixels of a view, at most."""
    panels = {"figure": 1 + points, "all": 2, "received": 3}.get(view)
    one = size * (size + strip_of(size)) if panels is None else sheet_size(size, panels)
    return layers * one


def memory_of(view: View, size: int, points: int, layers: int = 1) -> int:
    """Bytes that a view uses at most, with the sheet that it stands on."""
    panel = 88 * size * size  # float32 of three channels, several times; measured
    # of several layers the sheets and what they stand on together
    return panel + (3 if layers == 1 else 6) * pixels_of(view, size, points, layers)
