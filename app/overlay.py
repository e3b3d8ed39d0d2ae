"""An attention map and its image -> the picture that shows where a point attends (SAGAN, figure 5)."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from app.colours import DARK, PAPER, POINT_COLOURS, RULE, Colormap, Rgb, heat, upsample
from app.pictures import Pixels, enlarge
from app.points import Floats, Point, row_of, target_of
from app.shapes import SmoothShapes, Spot
from app.sheet import Panel, draw_sheet, is_shut, strength, warn_on_panel
from jobs.job import AttentionMap

MAX_POINTS = len(POINT_COLOURS)


@dataclass(frozen=True)
class FigureStyle:
    """How a view is drawn."""

    size: int = 256  # side of one panel, pixels
    colormap: Colormap = "inferno"
    alpha: float = 0.8  # how far the hottest place covers the image: 0 not at all, 1 wholly


def figure(
    image: Pixels, attention: AttentionMap, points: Sequence[Point], style: FigureStyle, title: str
) -> Iterator[Image.Image]:
    """The paper's figure: the image with its query points, then one map a point, and the layer's numbers.

    image: [R, R, 3]. points: 1 to MAX_POINTS, each inside the image. title: a line above, ASCII. Yields the
    sheet after each panel; the last one is the whole figure.
    """
    panels = _panels(image, attention, points, style)
    return draw_sheet(panels, 1 + len(points), style.size, attention, style.colormap, title)


def _panels(
    image: Pixels, attention: AttentionMap, points: Sequence[Point], style: FigureStyle
) -> Iterator[Panel]:
    resolution = image.shape[0]
    numbered = list(zip(points, POINT_COLOURS, map(str, range(1, 1 + len(points))), strict=False))
    marked = enlarge(image, style.size)
    for point, colour, number in numbered:
        _mark(marked, _on_panel(point, resolution, style.size), colour, number)
    yield Panel(marked, f"{resolution} x {resolution} px", RULE)
    for point, colour, number in numbered:
        row = row_of(attention, point, resolution)
        # every panel is scaled to its own peak, so its caption says how strong that is
        caption = f"({point[0]}, {point[1]})   {strength(row)}"
        yield Panel(_panel(image, row, point, style, colour, number), caption, colour)


def overlay(image: Pixels, attention: AttentionMap, point: Point, style: FigureStyle) -> Image.Image:
    """The map of one point over the image, [size, size], with the point and an arrow to its target."""
    row = row_of(attention, point, image.shape[0])
    panel = point_panel(image, row, point, style)
    if is_shut(attention):
        warn_on_panel(panel, at_top=point[1] * 2 > image.shape[0])
    return panel


def heatmap(image: Pixels, attention: AttentionMap, point: Point, style: FigureStyle) -> Image.Image:
    """The map of one point alone, [size, size], nothing drawn over it: the colormap of map / peak."""
    return heat_panel(row_of(attention, point, image.shape[0]), style)


def point_panel(image: Pixels, row: Floats, point: Point, style: FigureStyle) -> Image.Image:
    """The row of one point over the image, with the point and its arrow."""
    return _panel(image, row, point, style, POINT_COLOURS[0], "")


def heat_panel(row: Floats, style: FigureStyle) -> Image.Image:
    """A row alone: the colormap of row / peak."""
    return Image.fromarray(heat(upsample(row, style.size), style.colormap))


def paint(image: Pixels, values: Floats, style: FigureStyle) -> Image.Image:
    """`values` [size, size] of 0..1 as heat over the greyed, darkened image."""
    grey = np.asarray(enlarge(image, style.size).convert("L"), np.float32)[..., None]
    base = 18 + grey * 0.62  # dark enough that the heat is what shines
    cover = (style.alpha * values**0.7)[..., None]  # below 1: faint attention stays visible
    blend = base * (1 - cover) + heat(values, style.colormap) * cover
    return Image.fromarray(np.rint(blend).astype(np.uint8))


def _on_panel(point: Point, resolution: int, side: int) -> Spot:
    return (point[0] + 0.5) / resolution * side, (point[1] + 0.5) / resolution * side


def _panel(
    image: Pixels, row: Floats, point: Point, style: FigureStyle, colour: Rgb, label: str
) -> Image.Image:
    """One map over the greyed, darkened image; query marked; arrow to the target."""
    resolution, side = image.shape[0], style.size
    panel = paint(image, upsample(row, side), style)
    x, y = target_of(row, resolution)
    start, tip = _on_panel(point, resolution, side), (x / resolution * side, y / resolution * side)
    _arrow(panel, start, tip, colour)
    _mark(panel, start, colour, label)
    return panel


def _radius(side: int) -> float:
    return max(5.0, side * 0.032)


def _mark(panel: Image.Image, centre: Spot, colour: Rgb, label: str) -> None:
    """A disc ringed in white and in dark, so that it stands out on any ground."""
    radius = _radius(panel.width)
    with SmoothShapes(panel, [centre], radius * 2) as shapes:
        for extra, fill in ((0.42, DARK), (0.28, PAPER), (0.0, colour)):
            shapes.disc(centre, radius * (1 + extra), fill)
        if label and radius >= 6:
            shapes.text(centre, label, DARK if sum(colour) > 400 else PAPER, radius * 1.5)


def _arrow(panel: Image.Image, start: Spot, tip: Spot, colour: Rgb) -> None:
    """From the marker to `tip`. A target under the marker gets a ring instead: it attends to itself."""
    radius = _radius(panel.width)
    dx, dy = tip[0] - start[0], tip[1] - start[1]
    length = math.hypot(dx, dy)
    with SmoothShapes(panel, [start, tip], radius * 3) as shapes:
        if length < radius * 2.6:
            for width, fill in ((0.55, DARK), (0.4, PAPER), (0.2, colour)):
                shapes.ring(start, radius * (2.1 + width / 2), radius * width, fill)
            return
        ux, uy = dx / length, dy / length

        def at(along: float, aside: float) -> Spot:
            return start[0] + ux * along - uy * aside, start[1] + uy * along + ux * aside

        head = min(radius * 1.9, length - radius * 1.2)
        neck = length - head
        # widest and darkest first: a dark rim, a white one, then the colour itself, whose tip is exact
        for extra, fill in ((0.30, DARK), (0.17, PAPER), (0.0, colour)):
            half, fore = radius * (0.20 + extra), radius * extra * 1.2
            spread, back = head * 0.5 + fore, neck - fore * 0.6
            shapes.polygon([at(0, half), at(neck, half), at(neck, -half), at(0, -half)], fill)
            shapes.polygon([at(length + fore, 0), at(back, spread), at(back, -spread)], fill)
