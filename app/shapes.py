"""Smooth shapes and fitting text on a picture."""

import math
from collections.abc import Sequence
from functools import cache
from typing import Final, Self

from PIL import Image, ImageDraw, ImageFont

from app.colours import Rgb

LARGEST: Final = 2**19  # pixels of a layer that is drawn more than twice as large

Spot = tuple[float, float]  # x, y on a panel, pixels from its top left corner


class SmoothShapes:
    """Shapes on `panel` around `spots`, drawn larger and averaged down: Pillow's own edges are jagged.

    reach: pixels around the spots that the shapes may cover.
    """

    def __init__(self, panel: Image.Image, spots: Sequence[Spot], reach: float) -> None:
        across, down = zip(*spots, strict=True)
        self._panel = panel
        self._left, self._top = (max(0, math.floor(min(axis) - reach)) for axis in (across, down))
        right = min(panel.width, math.ceil(max(across) + reach))
        bottom = min(panel.height, math.ceil(max(down) + reach))
        self._size = (right - self._left, bottom - self._top)
        area = math.prod(self._size)
        self._scale = next((scale for scale in (4, 3) if scale**2 * area <= LARGEST), 2)
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
        font = font_of(round(pixels * self._scale))
        self._draw.text(self._at(centre), text, fill=fill, font=font, anchor="mm")

    def _at(self, spot: Spot) -> Spot:
        return (spot[0] - self._left) * self._scale, (spot[1] - self._top) * self._scale

    def _box(self, centre: Spot, radius: float) -> tuple[float, float, float, float]:
        x, y = self._at(centre)
        reach = radius * self._scale
        return x - reach, y - reach, x + reach, y + reach


@cache
def font_of(pixels: int) -> ImageFont.FreeTypeFont:
    """Pillow's own font, Latin letters only. Raises RuntimeError in a build without FreeType."""
    font = ImageFont.load_default(pixels)
    # Pillow carries an outline font; only a build without FreeType answers with the old bitmap one
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise RuntimeError("Pillow was built without FreeType: install the wheel from PyPI.")
    return font


def fitting(text: str, pixels: int, width: float) -> ImageFont.FreeTypeFont:
    """The largest font up to `pixels` in which `text` is no wider than `width`."""
    while pixels > 6 and font_of(pixels).getlength(text) > width:
        pixels -= 1
    return font_of(pixels)
