"""The sheet of an attention figure: panels in rows, a title above, the layer's numbers below."""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from app.colours import AMBER, FAINT, INK, PAPER, RULE, Colormap, Rgb, heat
from app.points import Floats
from app.shapes import Spot, fitting, font_of
from jobs.job import AttentionMap

SHUT_GATE = 0.01  # share ‖γ·o‖/‖x‖ under which a map says next to nothing about the image

_LINE = 1.5  # from one line of words to the next, in their height

_LEGIBLE = 7  # pixels: the smallest font of a caption that is not cut short

_SHUT = "The gate is nearly shut: attention hardly changes the image here, so read these maps with care."
_SHUT_SHORT = "attention hardly changes the image here"


class Panel(NamedTuple):
    """A picture on the sheet, its caption, and the colour of its frame."""

    picture: Image.Image
    caption: str
    frame: Rgb


def draw_sheet(
    panels: Iterable[Panel], count: int, side: int, attention: AttentionMap, colormap: Colormap, title: str
) -> Iterator[Image.Image]:
    """The sheet of `count` square panels, after each of them; the last one is the whole sheet.

    side: of a panel, pixels. A panel may be drawn when it is asked for: the sheet keeps none of them.
    """
    layout = _Layout(side, count, is_shut(attention))
    sheet = Image.new("RGB", (layout.width, layout.height), PAPER)
    unit, margin = layout.unit, layout.margin
    _write(sheet, (margin, margin), title, INK, round(unit * 1.35), layout.inner)
    ImageDraw.Draw(sheet).line((margin, layout.foot, layout.width - margin, layout.foot), fill=RULE)
    bar = _colour_bar(sheet, colormap, layout)
    # a word for the formula: Pillow's font has Latin letters only
    numbers = (
        f"{attention.layer}    gamma = {attention.gamma:+.3g}    |gamma o| / |x| = {percent(attention.share)}"
    )
    grids = f"{_by(attention.query_grid)} queries, {_by(attention.key_grid)} keys"
    lines = [numbers, grids] if layout.narrow else [f"{numbers}    {grids}"]
    for line, words in enumerate(lines):
        where = (margin, layout.words + round(line * unit * _LINE))
        _write(sheet, where, words, INK, unit, bar - margin - layout.gap)
    if layout.shut:
        where = (margin, layout.foot + round(unit * (0.9 + _LINE * len(lines))))
        _write(sheet, where, _SHUT, AMBER, round(unit * 1.1), layout.inner)
    for index, panel in enumerate(panels):
        _place(sheet, panel, layout, index)
        yield sheet


def sheet_size(side: int, panels: int) -> int:
    """Pixels of a sheet, at most."""
    layout = _Layout(side, panels, shut=True)
    return layout.width * layout.height


def warn_on_panel(panel: Image.Image, *, at_top: bool, height: int | None = None) -> None:
    """A strip on a single panel: the gate is nearly shut. height: None: as fits the panel."""
    height = max(14, round(panel.height * 0.07)) if height is None else height
    font = fitting(_SHUT_SHORT, round(height * 0.62), panel.width - 8)
    strip = Image.new("RGB", (panel.width, height), AMBER)
    where = (panel.width / 2, height / 2)
    ImageDraw.Draw(strip).text(where, _SHUT_SHORT, fill=PAPER, font=font, anchor="mm")
    panel.paste(strip, (0, 0 if at_top else panel.height - height))


def is_shut(attention: AttentionMap) -> bool:
    """Whether the gate lets so little through that the map says next to nothing."""
    return not abs(attention.share) >= SHUT_GATE  # a share that is no number counts as shut


def strength(row: Floats) -> str:
    """How strong the peak of a row is, which is drawn as hot as that of any other."""
    peak = float(row.max())
    return f"peak {percent(peak)}, {peak * row.size:.3g}x even"


def captioned(panel: Image.Image, *captions: str) -> Image.Image:
    """The panel with a strip of words below it: the first of `captions` that is legible, else the last."""
    pixels = max(11, round(panel.width * 0.05))
    room = panel.width - 8
    fit = (words for words in captions if font_of(max(10, pixels * 3 // 4)).getlength(words) <= room)
    words = next(fit, captions[-1])
    sheet = Image.new("RGB", (panel.width, panel.height + strip_of(panel.width)), PAPER)
    sheet.paste(panel)
    where = (4, panel.height + strip_of(panel.width) / 2)
    ImageDraw.Draw(sheet).text(where, words, fill=INK, font=fitting(words, pixels, room), anchor="lm")
    return sheet


def strip_of(side: int) -> int:
    """Height of the strip of words below a panel, pixels."""
    return round(max(11, side * 0.05) * 1.7)


def stacked(pictures: Sequence[Image.Image]) -> Image.Image:
    """The pictures one below the other."""
    if len(pictures) == 1:
        return pictures[0]
    sheet = Image.new("RGB", (max(one.width for one in pictures), sum(one.height for one in pictures)), PAPER)
    top = 0
    for one in pictures:
        sheet.paste(one, (0, top))
        top += one.height
    return sheet


def percent(share: float) -> str:
    return f"{share * 100:.2g} %" if share < 0.1 else f"{share * 100:.0f} %"


class _Layout:
    """Where things stand on the sheet, pixels."""

    def __init__(self, side: int, panels: int, shut: bool) -> None:
        """side: of a panel without its frame. shut: a line of warning stands at the foot."""
        self.side, self.shut = side, shut
        self.unit = max(11, round(side * 0.062))  # height of ordinary text
        self.gap, self.margin, self.frame = round(side * 0.06), round(side * 0.09), max(2, side // 85)
        self.framed = side + 2 * self.frame  # side of a panel with its frame
        self.columns = panels if panels <= 6 else math.ceil(panels / 2)
        self.row = self.framed + round(self.unit * 2.2)  # height of a panel and its caption
        self.top = self.margin + round(self.unit * 2.3)  # of the first row
        # the rule under the panels
        self.foot = self.top + math.ceil(panels / self.columns) * self.row + round(self.unit * 0.4)
        self.words = self.foot + round(self.unit * 0.9)  # top of the numbers and of the colour bar
        self.inner = self.columns * self.framed + (self.columns - 1) * self.gap
        self.width = self.inner + 2 * self.margin
        self.narrow = self.columns <= 3  # the numbers take two lines
        lines = (2 if self.narrow else 1) + (1 if shut else 0)
        self.height = self.foot + round(self.unit * (0.5 + _LINE * lines)) + self.margin // 2


def _place(sheet: Image.Image, panel: Panel, layout: _Layout, index: int) -> None:
    line, column = divmod(index, layout.columns)
    x, y = layout.margin + column * (layout.framed + layout.gap), layout.top + line * layout.row
    corner = (x + layout.framed - 1, y + layout.framed - 1)
    ImageDraw.Draw(sheet).rectangle(((x, y), corner), fill=panel.frame)
    left = x + layout.frame
    sheet.paste(panel.picture, (left, y + layout.frame))
    below, words = y + layout.framed + layout.unit * 0.45, panel.caption
    while font_of(_LEGIBLE).getlength(words) > layout.side and ", " in words:
        words = words.rpartition(", ")[0]  # the panel is small: what comes first says most
    _write(sheet, (left, below), words, FAINT, layout.unit, layout.side)


def _write(sheet: Image.Image, where: Spot, text: str, fill: Rgb, pixels: int, width: float) -> None:
    """`text` with its top left corner at `where`, smaller where it would be wider than `width`."""
    ImageDraw.Draw(sheet).text(where, text, fill=fill, font=fitting(text, pixels, width), anchor="lt")


def _colour_bar(sheet: Image.Image, colormap: Colormap, layout: _Layout) -> int:
    """Draws "0 [bar] peak" at the right margin. Returns its left end."""
    draw, unit, top = ImageDraw.Draw(sheet), layout.unit, layout.words
    font, right = font_of(unit), layout.width - layout.margin
    length = round(layout.side * 0.45)
    ramp = np.linspace(0, 1, length, dtype=np.float32)[None].repeat(max(4, round(unit * 0.75)), axis=0)
    draw.text((right, top), "peak", fill=FAINT, font=font, anchor="rt")
    left = right - round(font.getlength("peak")) - unit // 2 - length
    sheet.paste(Image.fromarray(heat(ramp, colormap)), (left, top))
    draw.text((left - unit // 2, top), "0", fill=FAINT, font=font, anchor="rt")
    return left - unit // 2 - round(font.getlength("0"))


def _by(grid: tuple[int, int]) -> str:
    return f"{grid[0]} x {grid[1]}"
