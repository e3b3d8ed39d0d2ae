"""An image enlarged: the same pixels whether it is drawn at once or strip by strip, here and offline."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Literal, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image

Pixels = npt.NDArray[np.uint8]  # [H, W, 3]
Resample = Literal["nearest", "lanczos"]

RESAMPLES: Final[tuple[Resample, ...]] = get_args(Resample)
_FILTERS: Final = {"nearest": Image.Resampling.NEAREST, "lanczos": Image.Resampling.LANCZOS}
_AT_ONCE: Final = 2**19  # pixels of a strip: a tenth of a second's work at most


def enlarged(image: Pixels, side: int, resample: Resample) -> Pixels:
    """[R, R, 3] -> [side, side, 3], as a file of the service has it: of strips, to the last level."""
    wide = widened(image, side, resample)
    return np.concatenate([lines(wide, side, resample, *strip) for strip in strips(side, side)])


def enlarge(image: Pixels, side: int, resample: Resample = "nearest") -> Image.Image:
    """[R, R, 3] -> side × side; nearest keeps every pixel a crisp square."""
    return Image.fromarray(image).resize((side, side), _FILTERS[resample])


def strips(width: int, height: int) -> Iterator[tuple[int, int]]:
    """First and past-the-last line of each strip of some hundred thousand pixels."""
    at_once = max(1, _AT_ONCE // width)
    return ((top, min(height, top + at_once)) for top in range(0, height, at_once))


def strip_size(width: int) -> int:
    """Pixels of a strip at most."""
    return max(_AT_ONCE, width)


def widened(image: Pixels, side: int, resample: Resample) -> Pixels:
    """[R, R, 3] -> [R, side, 3]: what the lines of the enlarged image are made of."""
    if resample == "nearest":
        return image[:, _nearest(len(image), side)]
    return np.asarray(Image.fromarray(image).resize((side, len(image)), _FILTERS[resample]))


def lines(wide: Pixels, side: int, resample: Resample, top: int, bottom: int) -> Pixels:
    """Lines top..bottom of the image enlarged to side × side."""
    if resample == "nearest":
        return wide[_nearest(len(wide), side)[top:bottom]]
    # Pillow's filter sees the lines beyond the box as well, so that strips meet without a seam
    box = (0, top * len(wide) / side, side, bottom * len(wide) / side)
    return np.asarray(Image.fromarray(wide).resize((side, bottom - top), _FILTERS[resample], box))


def _nearest(resolution: int, side: int) -> npt.NDArray[np.intp]:
    """The line of an image that each line of the enlarged one shows."""
    return (2 * np.arange(side) + 1) * resolution // (2 * side)
