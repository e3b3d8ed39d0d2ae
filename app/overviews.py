"""An attention map as a whole: its mean over all queries, every query at once, the flow between regions."""

from collections.abc import Iterator
from itertools import groupby
from typing import Final, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from app.colours import DARK, PAPER, RULE, Rgb, heat, upsample
from app.flows import Flow, Flows, flows_of, rings_of, strongest
from app.overlay import FigureStyle, paint
from app.pictures import Pixels, enlarge
from app.points import Floats, mean_row, target_of
from app.shapes import SmoothShapes, Spot, font_of
from app.sheet import Panel, captioned, draw_sheet, is_shut, percent, strength, warn_on_panel
from jobs.job import AttentionMap

LEGIBLE: Final = 24  # pixels of a small map's side, at least
BLUE: Rgb = (86, 180, 233)  # in no colormap but turbo
_GRID: Rgb = (120, 124, 130)  # lines between regions


def mean(image: Pixels, attention: AttentionMap, style: FigureStyle, label: str = "") -> Image.Image:
    """What is attended to most over all queries, over the image: [size + a line of words, size].

    label: before the words.
    """
    row = mean_row(attention)
    panel = mean_panel(image, row, style)
    if is_shut(attention):
        warn_on_panel(panel, at_top=target_of(row, 2)[1] >= 1)
    said = strength(row)
    return captioned(panel, f"{label}mean of {len(attention.map)} queries: {said}", f"{label}{said}")


def mean_panel(image: Pixels, row: Floats, style: FigureStyle) -> Image.Image:
    """The mean of all queries over the image, with a ring where its peak is."""
    panel = paint(image, upsample(row, style.size), style)
    radius = max(4.0, style.size * 0.03)
    centre = target_of(row, style.size)
    with SmoothShapes(panel, [centre], radius * 2) as shapes:
        for extra, width, fill in ((0.2, 0.55, DARK), (0.0, 0.25, PAPER)):
            shapes.ring(centre, radius * (1 + extra), radius * width, fill)
    return panel


def every_query(
    image: Pixels, attention: AttentionMap, style: FigureStyle, title: str
) -> Iterator[Image.Image]:
    """Each query's map, small, at its own place, beside the image. The last one is the whole sheet."""
    return draw_sheet(_every_query(image, attention, style), 2, style.size, attention, style.colormap, title)


def _every_query(image: Pixels, attention: AttentionMap, style: FigureStyle) -> Iterator[Panel]:
    side, step = style.size, step_of(attention.query_grid, style.size)
    cells = small_maps(attention, side)
    marked = enlarge(image, side)
    radius = max(1.6, side * 0.0045)
    for _, line in groupby(cells, lambda cell: cell.box[1]):
        _dots(marked, [(cell.at[0] * side, cell.at[1] * side) for cell in line], radius, rim=0.7)
    yield Panel(marked, f"{len(cells)} of {len(attention.map)} queries, blue", RULE)
    every = {1: "every query", 2: "every 2nd query"}.get(step, f"every {step}th query")
    yield Panel(_small_multiples(attention, cells, style), f"{every} (blue), each to its own peak", RULE)


class SmallMap(NamedTuple):
    """A query's map on the sheet of all."""

    query: int  # row of the map
    at: Spot  # the query's place, as fractions of the image's sides
    box: tuple[int, int, int, int]  # where it is drawn: left, top, past the right, past the bottom


def step_of(grid: tuple[int, int], side: int) -> int:
    """Every how many-th query is drawn, so that a small map is legible: 1, 2, 4, ..."""
    step = 1
    while step < max(grid) and side / -(-max(grid) // step) < LEGIBLE:
        step *= 2
    return step


def small_maps(attention: AttentionMap, side: int) -> list[SmallMap]:
    """The queries drawn on [side, side], and where: of each step × step cells one in the middle."""
    (height, width), step = attention.query_grid, step_of(attention.query_grid, side)
    lines, columns = -(-height // step), -(-width // step)
    gap = 1 if side / max(lines, columns) < 48 else 2
    found = []
    for line in range(lines):
        for column in range(columns):
            y, x = min(line * step + step // 2, height - 1), min(column * step + step // 2, width - 1)
            left, top = round(column * side / columns), round(line * side / lines)
            right, bottom = round((column + 1) * side / columns), round((line + 1) * side / lines)
            box = (left, top, right - gap, bottom - gap)
            found.append(SmallMap(y * width + x, ((x + 0.5) / width, (y + 0.5) / height), box))
    return found


def _small_multiples(attention: AttentionMap, cells: list[SmallMap], style: FigureStyle) -> Image.Image:
    """The maps on white, each with a dot at its query."""
    panel = Image.new("RGB", (style.size, style.size), PAPER)
    for query, _, (left, top, right, bottom) in cells:
        row = attention.map[query].astype(np.float32).reshape(attention.key_grid)
        small = Image.fromarray(heat(row / max(float(row.max()), 1e-12), style.colormap))
        # crisp: smooth, a peak of one cell would be a faint spot here
        crisp = min(right - left, bottom - top) >= max(attention.key_grid)
        how = Image.Resampling.NEAREST if crisp else Image.Resampling.BOX
        panel.paste(small.resize((right - left, bottom - top), how), (left, top))
    for _, line in groupby(cells, lambda cell: cell.box[1]):
        dots = []
        for _, (x, y), (left, top, right, bottom) in line:
            dots.append((left + x * (right - left), top + y * (bottom - top)))
        _dots(panel, dots, max(1.6, (right - left) * 0.055))
    return panel


def _dots(panel: Image.Image, centres: list[Spot], radius: float, rim: float = 0.0) -> None:
    """Blue dots, those of a line at a time: they are drawn large and averaged down."""
    with SmoothShapes(panel, centres, radius * 2) as shapes:
        for centre in centres:
            if rim:
                shapes.disc(centre, radius * (1 + rim), DARK)
            shapes.disc(centre, radius, BLUE)


def received(image: Pixels, attention: AttentionMap, style: FigureStyle, title: str) -> Iterator[Image.Image]:
    """What each region receives, and the strongest flows between them. The last one is the whole sheet."""
    return draw_sheet(_received(image, attention, style), 3, style.size, attention, style.colormap, title)


def _received(image: Pixels, attention: AttentionMap, style: FigureStyle) -> Iterator[Panel]:
    flows = flows_of(attention)
    resolution = image.shape[0]
    lines, columns = flows.grid
    yield Panel(enlarge(image, style.size), f"{resolution} x {resolution} px", RULE)
    caption = f"received, times even, {columns} x {lines} regions"
    yield Panel(_shaded(image, flows, style), caption, RULE)
    arrows, rings = strongest(flows), rings_of(flows)
    yield Panel(_arrows(image, flows, arrows, rings, style), _of_flows(arrows, rings), RULE)


def _of_flows(arrows: list[Flow], rings: list[Flow]) -> str:
    """What is drawn, in words."""
    drawn = arrows + rings
    if not drawn:
        return "no region sends much to one other"
    least, most = (percent(pick(flow.share for flow in drawn)) for pick in (min, max))
    parts = [f"{len(arrows)} strongest flows"] if arrows else []
    parts += [f"{len(rings)} kept (ring{'s' if len(rings) > 1 else ''})"] if rings else []
    return f"{', '.join(parts)}: {most if least == most else f'{least} to {most}'}"


def _shaded(image: Pixels, flows: Flows, style: FigureStyle) -> Image.Image:
    """The regions as hot as the attention that they receive, each with its number."""
    side = style.size
    times = flows.received / flows.even
    values = (times / max(float(times.max()), 1e-12)).reshape(flows.grid).astype(np.float32)
    lines, columns = (np.arange(side) * cells // side for cells in flows.grid)
    panel = paint(image, values[lines[:, None], columns[None]], style)
    _rule(panel, flows)
    across = side / flows.grid[1]
    if across < 26:
        return panel  # no room for numbers
    draw, font = ImageDraw.Draw(panel), font_of(round(min(across * 0.26, side * 0.07)))
    for region, share in enumerate(times):
        words = "0" if share < 0.05 else f"{share:.1f}x" if share < 10 else f"{share:.0f}x"
        where = _centre(flows, region, side)
        draw.text(
            where,
            words,
            fill=PAPER,
            font=font,
            anchor="mm",
            stroke_width=max(1, side // 160),
            stroke_fill=DARK,
        )
    return panel


def _arrows(
    image: Pixels, flows: Flows, arrows: list[Flow], rings: list[Flow], style: FigureStyle
) -> Image.Image:
    """The flows over the greyed image, the strongest on top; as wide as they are strong."""
    side = style.size
    panel = paint(image, np.zeros((side, side), np.float32), style)
    _rule(panel, flows)
    region = side / max(flows.grid)
    rim = max(1.0, side * 0.005)
    for flow in reversed(arrows):
        start, tip = _centre(flows, flow.source, side), _centre(flows, flow.to, side)
        with SmoothShapes(panel, [start, tip], region * 0.5) as shapes:
            for extra, fill in ((rim, DARK), (0.0, BLUE)):
                for polygon in _bent(start, tip, _width(flow, side), region, extra):
                    shapes.polygon(polygon, fill)
    for flow in reversed(rings):
        centre, width = _centre(flows, flow.to, side), _width(flow, side)
        with SmoothShapes(panel, [centre], region * 0.5) as shapes:
            shapes.ring(centre, region * 0.2 + width / 2 + rim, width + 2 * rim, DARK)
            shapes.ring(centre, region * 0.2 + width / 2, width, BLUE)
    return panel


def _width(flow: Flow, side: int) -> float:
    return side * (0.004 + 0.02 * flow.share)


def _bent(start: Spot, tip: Spot, width: float, region: float, extra: float) -> list[list[Spot]]:
    """An arrow from centre to centre, as polygons of its shaft and its head; `extra` wider all around.

    It bends to its right: one back does not cover it, nor one that goes on. It ends short of the centre, so
    that many heads have room around it. region: the side of one.
    """
    bend = 0.16
    (x0, y0), (x1, y1) = start, tip
    middle = np.array(((x0 + x1) / 2 - (y1 - y0) * bend, (y0 + y1) / 2 + (x1 - x0) * bend))
    t = np.linspace(0, 1, 256)[:, None]
    points = (1 - t) ** 2 * np.array(start) + 2 * t * (1 - t) * middle + t**2 * np.array(tip)
    gone, left = np.linalg.norm(points - start, axis=1), np.linalg.norm(points - tip, axis=1)
    end = points[left >= region * 0.3][-1]
    head = region * 0.2
    shaft = points[(gone >= region * 0.12) & (left >= region * 0.3 + head * 0.9)]
    along = (end - shaft[-1]) / np.linalg.norm(end - shaft[-1])
    aside = np.array((-along[1], along[0]))
    steps = np.gradient(shaft, axis=0)
    normals = np.stack([-steps[:, 1], steps[:, 0]], axis=1) / np.linalg.norm(steps, axis=1, keepdims=True)
    half = width / 2 * np.linspace(0.4, 1, len(shaft))[:, None] + extra  # thin where it begins
    outline = [*(shaft + normals * half), *(shaft - normals * half)[::-1]]
    spread = max(head * 0.45, width) + extra * 1.4
    neck = end - along * (head + extra)
    point = [end + along * extra * 1.6, neck + aside * spread, neck - aside * spread]
    return [[(float(x), float(y)) for x, y in polygon] for polygon in (outline, point)]


def _centre(flows: Flows, region: int, side: int) -> Spot:
    line, column = divmod(region, flows.grid[1])
    return (column + 0.5) / flows.grid[1] * side, (line + 0.5) / flows.grid[0] * side


def _rule(panel: Image.Image, flows: Flows) -> None:
    """Lines between the regions."""
    draw, side = ImageDraw.Draw(panel), panel.width
    lines, columns = flows.grid
    for column in range(1, columns):
        draw.line((column * side // columns, 0, column * side // columns, side), fill=_GRID)
    for line in range(1, lines):
        draw.line((0, line * side // lines, side, line * side // lines), fill=_GRID)
