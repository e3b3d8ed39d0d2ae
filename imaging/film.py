"""Pictures of one run as a film: an animated WebP or GIF."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

from imaging.animation import Film, Gif, Reel, Webp

LONGEST_SIDE: Final = 1000  # px; larger pictures are made smaller
FRAMES: Final = 150  # at most, evenly spread; the first and the last are always among them
LENGTH: Final = 12_000  # ms of the whole, about
SHORTEST: Final = 80  # ms of a frame
LONGEST: Final = 800  # ms of a frame
HOLD: Final = 2_500  # ms of the last frame
QUALITY: Final = 80  # of WebP


def chosen(pictures: Sequence[Path]) -> list[Path]:
    """At most FRAMES of them, the first and the last among them."""
    count = min(FRAMES, len(pictures))
    return [pictures[round(i * (len(pictures) - 1) / max(count - 1, 1))] for i in range(count)]


def film(pictures: Sequence[Path], kind: str) -> bytes:
    """An animation of picture files, all of the size of the last. kind: "WEBP" or "GIF".

    Raises ValueError, naming it, for a file that is no picture.
    """
    size = _frame(pictures[-1]).size
    each = min(max(LENGTH // len(pictures), SHORTEST), LONGEST)
    times = [each] * (len(pictures) - 1) + [HOLD]
    reel = Reel(*size, len(pictures), loop=True, text=None)
    film: Film = Webp(reel, QUALITY) if kind == "WEBP" else Gif(reel)
    pieces = [
        film.add(np.asarray(_frame(path).resize(size)), ms) for path, ms in zip(pictures, times, strict=True)
    ]
    return b"".join([*pieces, *film.end()])


def _frame(path: Path) -> Image.Image:
    try:
        with Image.open(path, formats=["PNG"]) as opened:
            frame = opened.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} cannot be read as a picture ({error}).") from error
    frame.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.BOX)
    return frame
