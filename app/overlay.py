"""An attention map and its image -> the picture that shows where a point attends (SAGAN, figure 5).

Coordinates are pixels of the image, x to the right and y down. Pixel x covers [x, x + 1), so its centre
lies at (x + 0.5) / W of the side, and cell i of a grid of n has its centre at (i + 0.5) / n.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal, Self

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from app.pictures import Pixels, enlarge
from jobs.job import AttentionMap

Point = tuple[int, int]  # x, y of a pixel of the image
Spot = tuple[float, float]  # x, y on a panel, pixels from its top left corner
Rgb = tuple[int, int, int]
Floats = npt.NDArray[np.float32]
View = Literal["figure", "overlay", "heatmap"]
Colormap = Literal["inferno", "magma", "viridis", "turbo", "grey"]

VERSION = 1  # part of every drawing's ETag: raise it when the same map would be drawn differently
SHUT_GATE = 0.01  # share ‖γ·o‖/‖x‖ under which a map says next to nothing about the image
MAX_POINTS = 8  # as many as there are colours

# Okabe and Ito's colours, which the colour-blind can tell apart; ordered so that the first five differ most
POINT_COLOURS: tuple[Rgb, ...] = (
    (0, 114, 178),
    (213, 94, 0),
    (0, 158, 115),
    (204, 121, 167),
    (240, 228, 66),
    (86, 180, 233),
    (230, 159, 0),
    (60, 60, 60),
)
# Anchors spread evenly over 0..1, straight lines between them
_ANCHORS: dict[Colormap, str] = {
    "inferno": "000004 1b0c41 4a0c6b 781c6d a52c60 cf4446 ed6925 fb9b06 f7d13d fcffa4",
    "magma": "000004 180f3d 440f76 721f81 9e2f7f cd4071 f1605d fd9668 feca8d fcfdbf",
    "viridis": "440154 472d7b 3b528b 2c728e 21918c 28ae80 5ec962 addc30 fde725",
    "turbo": "30123b 4145ab 4675ed 39a2fc 1bcfd4 24eca6 61fc6c a4fc3b d1e834 f3c63a fe9b2d f36315 d93806 "
    "b11901 7a0402",
    "grey": "000000 ffffff",
}
_PAPER, _DARK = (255, 255, 255), (15, 15, 15)
_INK, _FAINT, _RULE, _AMBER = (28, 30, 34), (105, 110, 118), (222, 224, 228), (176, 80, 0)


@dataclass(frozen=True)
class FigureStyle:
    """How a view is drawn."""

    size: int = 256  # side of one panel, pixels
    colormap: Colormap = "inferno"
    alpha: float = 0.8  # how far the hottest place covers the image: 0 not at all, 1 wholly


# --- reading the map ---------------------------------------------------------------------------------------


def row_of(attention: AttentionMap, point: Point, resolution: int) -> Floats:
    """Where the query cell under `point` attends: [key rows, key columns], sums to 1.

    `resolution` is the image's side, pixels; the point must lie inside it.
    """
    height, width = attention.query_grid
    x, y = point
    column = int((x + 0.5) / resolution * width)
    line = int((y + 0.5) / resolution * height)
    row: Floats = attention.map[line * width + column].astype(np.float32)
    return row.reshape(attention.key_grid)


def target_of(row: Floats, resolution: int) -> tuple[float, float]:
    """Centre of the cell that `row` [h, w] attends to most: x, y in pixels from the top left corner."""
    height, width = row.shape
    line, column = divmod(int(row.argmax()), width)
    return (column + 0.5) / width * resolution, (line + 0.5) / height * resolution


def default_points(attention: AttentionMap, resolution: int, count: int = 5) -> list[Point]:
    """Query points worth a look: apart from each other, attending differently, and with something to say.

    Greedy: first the query with the most peaked row, then each time the one whose nearest chosen neighbour is
    farthest, in position and in the Hellinger distance of the rows together. The outer eighth is left out:
    padding, not content, speaks there.
    """
    height, width = attention.query_grid
    rows = attention.map.astype(np.float32)
    lines, columns = np.divmod(np.arange(height * width), width)
    place = np.stack([(columns + 0.5) / width, (lines + 0.5) / height], axis=1)  # [queries, 2], fractions
    entropy = -(rows * np.log(np.maximum(rows, 1e-12))).sum(axis=1)
    peaked = 1 - entropy / max(math.log(rows.shape[1]), 1e-6)  # 0: even over all keys, 1: one key alone
    peaked = peaked / max(float(peaked.max()), 1e-6)
    centred = 1 - np.abs(place - 0.5).max(axis=1)  # settles ties: an even map starts in the middle
    inner = np.abs(place - 0.5).max(axis=1) < 0.375
    if inner.sum() < count:
        inner[:] = True
    root = np.sqrt(rows)

    chosen: list[int] = []
    apart = np.full(len(rows), np.inf)  # to the nearest chosen point, in sides of the image
    unlike = np.full(len(rows), np.inf)  # Hellinger distance to the most similar chosen row, 0..1
    while len(chosen) < min(count, len(rows)):
        if chosen:
            # past a third of the side, farther is no better: else all would flee to the corners
            score = np.minimum(apart, 0.33) * 2 + unlike + 0.5 * peaked + 0.2 * centred
            score[apart < 0.15] -= 2  # never two on top of each other while there is room
        else:
            score = peaked + 0.2 * centred
        score[~inner] = -np.inf
        score[chosen] = -np.inf
        best = int(score.argmax())
        chosen.append(best)
        apart = np.minimum(apart, np.linalg.norm(place - place[best], axis=1))
        unlike = np.minimum(unlike, np.sqrt(np.maximum(0, 1 - root @ root[best])))
    return [(int(place[i, 0] * resolution), int(place[i, 1] * resolution)) for i in chosen]


def upsample(row: Floats, side: int) -> Floats:
    """`row` [h, w] as a smooth [side, side] picture whose peak is 1.

    Pillow aligns pixel centres, so the hottest place of the picture is the centre of the hottest cell.
    """
    smooth: Floats = np.asarray(Image.fromarray(row).resize((side, side), Image.Resampling.BICUBIC))
    smooth = np.maximum(smooth, 0)  # bicubic undershoots beside a steep peak
    scaled: Floats = smooth / max(float(smooth.max()), 1e-12)
    return scaled


def colours(name: Colormap) -> Pixels:
    """Colormap as a table [256, 3]."""
    anchors = np.array([list(bytes.fromhex(colour)) for colour in _ANCHORS[name].split()])
    at = np.linspace(0, 1, len(anchors))
    steps = np.linspace(0, 1, 256)
    table = np.stack([np.interp(steps, at, anchors[:, channel]) for channel in range(3)], axis=1)
    levels: Pixels = np.rint(table).astype(np.uint8)
    return levels


# --- views -------------------------------------------------------------------------------------------------


def figure(
    image: Pixels, attention: AttentionMap, points: Sequence[Point], look: FigureStyle, title: str
) -> Image.Image:
    """The paper's figure: the image with its query points, then one map a point, and what to make of it.

    image: [R, R, 3]. points: 1 to MAX_POINTS, each inside the image. title: a line above, ASCII.
    """
    resolution = image.shape[0]
    side = look.size
    marked = enlarge(image, side)
    for number, point in enumerate(points, 1):
        _mark(marked, _on_panel(point, resolution, side), POINT_COLOURS[number - 1], str(number))
    panels = [(marked, f"{resolution} x {resolution} px", _INK)]
    for number, point in enumerate(points, 1):
        row = row_of(attention, point, resolution)
        panel = _panel(image, row, point, look, POINT_COLOURS[number - 1], str(number))
        # how strong the peak is stands beside each map: every panel is scaled to its own peak
        peak = f"peak {_percent(float(row.max()))}, {float(row.max()) * row.size:.3g}x even"
        panels.append((panel, f"({point[0]}, {point[1]})   {peak}", POINT_COLOURS[number - 1]))
    return _sheet(panels, attention, look, title)


def overlay(image: Pixels, attention: AttentionMap, point: Point, look: FigureStyle) -> Image.Image:
    """The map of one point over the image, [size, size], with the point and an arrow to its target."""
    row = row_of(attention, point, image.shape[0])
    panel = _panel(image, row, point, look, POINT_COLOURS[0], "")
    _warn_on_panel(panel, attention, at_top=point[1] * 2 > image.shape[0])
    return panel


def heatmap(image: Pixels, attention: AttentionMap, point: Point, look: FigureStyle) -> Image.Image:
    """The map of one point alone, [size, size], nothing drawn over it: colours(colormap) of map / peak."""
    row = row_of(attention, point, image.shape[0])
    return Image.fromarray(_heat(upsample(row, look.size), look.colormap))


# --- drawing -----------------------------------------------------------------------------------------------


def _on_panel(point: Point, resolution: int, side: int) -> Spot:
    return (point[0] + 0.5) / resolution * side, (point[1] + 0.5) / resolution * side


def _heat(values: Floats, name: Colormap) -> Pixels:
    painted: Pixels = colours(name)[np.rint(values * 255).astype(np.uint8)]
    return painted


def _panel(
    image: Pixels, row: Floats, point: Point, look: FigureStyle, colour: Rgb, label: str
) -> Image.Image:
    """One map over the greyed, darkened image; query marked; arrow to the target."""
    resolution, side = image.shape[0], look.size
    values = upsample(row, side)
    grey = np.asarray(enlarge(image, side).convert("L"), np.float32)[..., None]
    base = 18 + grey * 0.62  # dark enough that the heat is what shines
    cover = (look.alpha * values**0.7)[..., None]  # below 1: faint attention stays visible
    blend = base * (1 - cover) + _heat(values, look.colormap) * cover
    panel = Image.fromarray(np.rint(blend).astype(np.uint8))
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
    with _Sharp(panel, [centre], radius * 2) as shapes:
        for extra, fill in ((0.42, _DARK), (0.28, _PAPER), (0.0, colour)):
            shapes.disc(centre, radius * (1 + extra), fill)
        if label and radius >= 6:
            shapes.text(centre, label, _DARK if sum(colour) > 400 else _PAPER, radius * 1.5)


def _arrow(panel: Image.Image, start: Spot, tip: Spot, colour: Rgb) -> None:
    """From the marker to `tip`. A target under the marker gets a ring instead: it attends to itself."""
    radius = _radius(panel.width)
    dx, dy = tip[0] - start[0], tip[1] - start[1]
    length = math.hypot(dx, dy)
    with _Sharp(panel, [start, tip], radius * 3) as shapes:
        if length < radius * 2.6:
            for width, fill in ((0.55, _DARK), (0.4, _PAPER), (0.2, colour)):
                shapes.ring(start, radius * (2.1 + width / 2), radius * width, fill)
            return
        ux, uy = dx / length, dy / length

        def at(along: float, aside: float) -> Spot:
            return start[0] + ux * along - uy * aside, start[1] + uy * along + ux * aside

        head = min(radius * 1.9, length - radius * 1.2)
        neck = length - head
        # widest and darkest first: a dark rim, a white one, then the colour itself, whose tip is exact
        for extra, fill in ((0.30, _DARK), (0.17, _PAPER), (0.0, colour)):
            half, fore = radius * (0.20 + extra), radius * extra * 1.2
            spread, back = head * 0.5 + fore, neck - fore * 0.6
            shapes.polygon([at(0, half), at(neck, half), at(neck, -half), at(0, -half)], fill)
            shapes.polygon([at(length + fore, 0), at(back, spread), at(back, -spread)], fill)


class _Sharp:
    """Shapes on `panel` around `spots`, drawn larger and averaged down: Pillow's own edges are jagged.

    reach: pixels around the spots that are drawn on.
    """

    def __init__(self, panel: Image.Image, spots: Sequence[Spot], reach: float) -> None:
        across, down = zip(*spots, strict=True)
        self._panel = panel
        self._scale = 4 if panel.width <= 512 else 2
        self._left, self._top = (max(0, math.floor(min(axis) - reach)) for axis in (across, down))
        right = min(panel.width, math.ceil(max(across) + reach))
        bottom = min(panel.height, math.ceil(max(down) + reach))
        self._size = (right - self._left, bottom - self._top)
        self._layer = Image.new("RGBA", (self._size[0] * self._scale, self._size[1] * self._scale))
        self._draw = ImageDraw.Draw(self._layer)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        small = self._layer.resize(self._size, Image.Resampling.BOX)
        self._panel.paste(small.convert("RGB"), (self._left, self._top), small.getchannel("A"))

    def disc(self, centre: Spot, radius: float, fill: Rgb) -> None:
        self._draw.ellipse(self._box(centre, radius), fill=fill)

    def ring(self, centre: Spot, radius: float, width: float, fill: Rgb) -> None:
        self._draw.ellipse(self._box(centre, radius), outline=fill, width=round(width * self._scale))

    def polygon(self, spots: Sequence[Spot], fill: Rgb) -> None:
        self._draw.polygon([self._at(spot) for spot in spots], fill=fill)

    def text(self, centre: Spot, text: str, fill: Rgb, pixels: float) -> None:
        font = _font(round(pixels * self._scale))
        self._draw.text(self._at(centre), text, fill=fill, font=font, anchor="mm")

    def _at(self, spot: Spot) -> Spot:
        return (spot[0] - self._left) * self._scale, (spot[1] - self._top) * self._scale

    def _box(self, centre: Spot, radius: float) -> tuple[float, float, float, float]:
        x, y = self._at(centre)
        reach = radius * self._scale
        return x - reach, y - reach, x + reach, y + reach


@cache
def _font(pixels: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(pixels)
    # Pillow carries an outline font; only a build without FreeType answers with the old bitmap one
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise RuntimeError("Pillow was built without FreeType: install the wheel from PyPI.")
    return font


def _percent(share: float) -> str:
    return f"{share * 100:.2g} %" if share < 0.1 else f"{share * 100:.0f} %"


def _is_shut(attention: AttentionMap) -> bool:
    return not abs(attention.share) >= SHUT_GATE  # a share that is no number counts as shut


def _warn_on_panel(panel: Image.Image, attention: AttentionMap, *, at_top: bool) -> None:
    if not _is_shut(attention):
        return
    height = max(14, round(panel.height * 0.07))
    font = _fitting("attention hardly changes the image here", round(height * 0.62), panel.width - 8)
    strip = Image.new("RGB", (panel.width, height), _AMBER)
    draw = ImageDraw.Draw(strip)
    where = (panel.width / 2, height / 2)
    draw.text(where, "attention hardly changes the image here", fill=(255, 255, 255), font=font, anchor="mm")
    panel.paste(strip, (0, 0 if at_top else panel.height - height))


def _fitting(text: str, pixels: int, width: float) -> ImageFont.FreeTypeFont:
    """The largest font up to `pixels` in which `text` is no wider than `width`."""
    while pixels > 6 and _font(pixels).getlength(text) > width:
        pixels -= 1
    return _font(pixels)


def _sheet(
    panels: Sequence[tuple[Image.Image, str, Rgb]], attention: AttentionMap, look: FigureStyle, title: str
) -> Image.Image:
    """Panels in rows with a caption each, a title above, the layer's figures and the colour bar below."""
    side = look.size
    unit = max(11, round(side * 0.062))  # height of ordinary text
    gap, margin, rim = round(side * 0.06), round(side * 0.09), max(2, side // 85)
    columns = len(panels) if len(panels) <= 6 else math.ceil(len(panels) / 2)
    rows = math.ceil(len(panels) / columns)
    shut = _is_shut(attention)
    top = margin + round(unit * 2.3)
    row_height = side + rim * 2 + round(unit * 2.2)
    foot = top + rows * row_height + round(unit * 0.4)
    height = foot + round(unit * (3.4 if shut else 2.0)) + margin // 2
    width = 2 * margin + columns * (side + 2 * rim) + (columns - 1) * gap
    sheet = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    inner = width - 2 * margin
    draw.text(
        (margin, margin), title, fill=_INK, font=_fitting(title, round(unit * 1.35), inner), anchor="lt"
    )
    for index, (panel, caption, colour) in enumerate(panels):
        line, column = divmod(index, columns)
        x = margin + column * (side + 2 * rim + gap)
        y = top + line * row_height
        draw.rectangle(
            (x, y, x + side + 2 * rim - 1, y + side + 2 * rim - 1), fill=colour if index else _RULE
        )
        sheet.paste(panel, (x + rim, y + rim))
        where = (x + rim, y + side + 2 * rim + unit * 0.45)
        draw.text(where, caption, fill=_FAINT, font=_fitting(caption, unit, side), anchor="lt")

    draw.line((margin, foot, width - margin, foot), fill=_RULE)
    bar = _colour_bar(sheet, look, foot + round(unit * 0.9), width - margin, unit)
    # a word for the formula: Pillow's font has Latin letters only
    words = (
        f"{attention.layer}    gamma = {attention.gamma:+.3g}    |gamma o| / |x| = "
        f"{_percent(attention.share)}    {_by(attention.query_grid)} queries, {_by(attention.key_grid)} keys"
    )
    where = (margin, foot + round(unit * 0.9))
    draw.text(where, words, fill=_INK, font=_fitting(words, unit, bar - margin - gap), anchor="lt")
    if shut:
        warning = (
            "The gate is nearly shut: attention hardly changes the image here, so read these maps with care."
        )
        where = (margin, foot + round(unit * 2.4))
        draw.text(where, warning, fill=_AMBER, font=_fitting(warning, round(unit * 1.1), inner), anchor="lt")
    return sheet


def _colour_bar(sheet: Image.Image, look: FigureStyle, top: int, right: int, unit: int) -> int:
    """Draws "0 [bar] peak" that ends at `right`; answers where it begins."""
    draw, font = ImageDraw.Draw(sheet), _font(unit)
    length = round(look.size * 0.45)
    ramp = np.linspace(0, 1, length, dtype=np.float32)[None].repeat(max(4, round(unit * 0.75)), axis=0)
    draw.text((right, top), "peak", fill=_FAINT, font=font, anchor="rt")
    left = right - round(font.getlength("peak")) - unit // 2 - length
    sheet.paste(Image.fromarray(_heat(ramp, look.colormap)), (left, top))
    draw.text((left - unit // 2, top), "0", fill=_FAINT, font=font, anchor="rt")
    return left - unit // 2 - round(font.getlength("0"))


def _by(grid: tuple[int, int]) -> str:
    return f"{grid[0]} x {grid[1]}"
