"""Many images as one picture: a row a class, its name before it."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

_NAME_SIZE: Final = 13  # px
_NAME_LENGTH: Final = 40  # letters; of a longer name the rest is left out


def sheet(images: Sequence[NDArray[np.uint8]], columns: int, names: Sequence[str] = ()) -> bytes:
    """Images [R, R, 3] -> PNG bytes, row by row, a pixel apart; names: of the rows, or none."""
    side = images[0].shape[0] + 1
    rows = math.ceil(len(images) / columns)
    names = [_label(name) for name in names]
    font = ImageFont.load_default(_NAME_SIZE)
    left = math.ceil(max(font.getlength(name) for name in names)) + _NAME_SIZE if names else 0
    picture = Image.new("RGB", (left + columns * side - 1, rows * side - 1), "white")
    draw = ImageDraw.Draw(picture)
    for row, name in enumerate(names):
        middle = row * side + (side - 1) / 2
        draw.text((left - _NAME_SIZE / 2, middle), name, "black", font, anchor="rm")
    for k, image in enumerate(images):
        picture.paste(Image.fromarray(image), (left + k % columns * side, k // columns * side))
    content = io.BytesIO()
    picture.save(content, "PNG", optimize=True)
    return content.getvalue()


def _label(name: str) -> str:
    """A name on one line, of letters that can be drawn."""
    line = " ".join(name.split()).encode(errors="replace").decode()
    return line if len(line) <= _NAME_LENGTH else f"{line[: _NAME_LENGTH - 1]}…"
