"""One picture, whatever its format, to a square of uint8 RGB."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from train.data.sources.base import Box, Unreadable

MAX_PIXELS = 80_000_000  # of one picture; a larger one counts as a decompression bomb
HOW = "EXIF rotation applied, transparency on white, Lanczos (antialiased) to the resolution"
_DEEP = ("I", "I;16", "I;16L", "I;16B", "I;16N")


def to_square(
    image: Image.Image, box: Box | None, resolution: int | None, min_crop: int
) -> npt.NDArray[np.uint8]:
    """A picture's square crop as pixels [3, R, R].

    The crop is the centre square, or the square around the box, moved and shortened to stay in the picture.
    resolution: pixels; None: the crop's own size. min_crop: the shortest crop around a box, source pixels.
    Raises Unreadable with the reason.
    """
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise Unreadable(f"{width}×{height} pixels are more than {MAX_PIXELS:,}")
    if box is None:
        image = _to_rgb(_upright(image))
        crop = _centre(*image.size)
    else:
        # boxes are in pixels as stored, so the crop comes before the rotation
        crop = square_around(box, width, height)
        if crop[2] - crop[0] < min_crop:
            raise Unreadable(f"the box is {crop[2] - crop[0]} pixels, under {min_crop}")
        image.load()
        image = _to_rgb(_upright(image.crop(crop)))
        crop = (0, 0, *image.size)
    if crop != (0, 0, *image.size):
        image = image.crop(crop)
    if resolution is not None and image.size != (resolution, resolution):
        image = image.resize((resolution, resolution), Image.Resampling.LANCZOS)
    return np.asarray(image, np.uint8).transpose(2, 0, 1)


def square_around(box: Box, width: int, height: int) -> tuple[int, int, int, int]:
    """The square (left, top, right, bottom) around a box in a picture of this size, never outside it."""
    across = width / box.width if box.width > 0 else 1.0  # some annotations were made on a scaled copy
    down = height / box.height if box.height > 0 else 1.0
    left, right = (min(max(x * across, 0), width) for x in (box.left, box.right))
    top, bottom = (min(max(y * down, 0), height) for y in (box.top, box.bottom))
    side = max(1, min(round(max(right - left, bottom - top)), width, height))
    x = min(max(round((left + right - side) / 2), 0), width - side)
    y = min(max(round((top + bottom - side) / 2), 0), height - side)
    return x, y, x + side, y + side


def _centre(width: int, height: int) -> tuple[int, int, int, int]:
    side = min(width, height)
    x, y = (width - side) // 2, (height - side) // 2
    return x, y, x + side, y + side


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except (SyntaxError, ValueError, KeyError, TypeError, UnidentifiedImageError):
        return image  # a damaged EXIF block says nothing about the pixels


def _to_rgb(image: Image.Image) -> Image.Image:
    image.load()
    if image.mode in _DEEP:
        values = np.asarray(image)
        # 16 bits, whatever the container, become 8 by one scale for all pictures, never by a picture's range
        deep = image.mode != "I" or values.max(initial=0) > 255
        image = Image.fromarray(np.clip(values // 257 if deep else values, 0, 255).astype(np.uint8))
    if image.mode == "F":
        raise Unreadable("floating-point pixels have no known range")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")
