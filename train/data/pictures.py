"""One picture, whatever its format and mode, to a square of uint8 RGB in sRGB.

By mode and depth, the same for every picture: 1, 8 and 16 bits are scaled so that the highest level is 255,
and grey of 9 to 15 bits by the number of bits that its file states. Whole numbers of 32 bits and floating
point have no known white and are refused, as numbers with a sign are. A colour profile or a PNG's gamma is
followed; transparency lies on white.
"""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from train.data.colours import to_srgb
from train.data.sources.base import AS_IT_IS, Box, Reading, Unreadable

MAX_PIXELS = 80_000_000  # of one picture; a larger one counts as a decompression bomb
HOW = (
    "EXIF rotation applied, colour profiles converted to sRGB, transparency on white, "
    "Lanczos (antialiased) to the resolution"
)
_DEEP = ("I", "I;16", "I;16L", "I;16B", "I;16N")
_BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # TIFF's tags
_SIGNED = 2  # a TIFF's sample format
FRAMES: Final = "of several frames or pages the first is used"


@dataclass(frozen=True)
class Square:
    """A picture as it is packed."""

    pixels: npt.NDArray[np.uint8]  # [3, R, R]
    remarks: tuple[str, ...]  # on how it was read, for the report
    deepest: int  # highest level of grey of 16 bits; -1: it has no such pixels, or states its bits


def to_square(
    image: Image.Image, box: Box | None, resolution: int | None, min_crop: int
) -> npt.NDArray[np.uint8]:
    """The pixels alone: see `read_square`."""
    return read_square(image, box, resolution, Reading(min_crop=min_crop)).pixels


def read_square(
    image: Image.Image, box: Box | None, resolution: int | None, reading: Reading = AS_IT_IS
) -> Square:
    """A picture's square crop as pixels [3, R, R].

    The crop is the centre square, or the square around the box, moved and shortened to stay in the picture.
    resolution: pixels; None: the crop's own size. Raises Unreadable with the reason.
    """
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise Unreadable(f"{width}×{height} pixels are more than {MAX_PIXELS:,}")
    remarks = [FRAMES] if _has_frames(image) else []
    image, deepest = _to_eight_bits(image, reading.bits)
    if box is None:
        image = _upright(image)
        image = image.crop(_centre(*image.size))
    else:
        # boxes are in pixels as stored, so the crop comes before the rotation
        crop = square_around(box, width, height)
        if crop[2] - crop[0] < reading.min_crop:
            raise Unreadable(f"the box is {crop[2] - crop[0]} pixels, under {reading.min_crop}")
        image = _upright(image.crop(crop))
    image, remark = to_srgb(image)
    if remark is not None:
        remarks.append(remark)
    if resolution is not None and image.size != (resolution, resolution):
        image = image.resize((resolution, resolution), Image.Resampling.LANCZOS)
    return Square(np.asarray(image, np.uint8).transpose(2, 0, 1), tuple(remarks), deepest)


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


def _has_frames(image: Image.Image) -> bool:
    """Whether there are more frames or pages than the first; sizes and layers of one picture are none."""
    with suppress(Exception):  # a later frame may be damaged, which is no matter
        return image.format not in ("ICO", "ICNS", "PSD") and bool(getattr(image, "is_animated", False))
    return False


def _to_eight_bits(image: Image.Image, bits: int | None) -> tuple[Image.Image, int]:
    """The image, loaded, with 8 bits a channel at most; and the highest level of grey of 16 bits, else -1."""
    stated = _stated_bits(image)
    raw = _raw_mode(image)
    wide = image.mode not in _DEEP and re.search(";16[BLN]", raw) is not None
    tags = getattr(image, "tag_v2", {})
    white_is_zero = tags.get(_PHOTOMETRIC) == 0
    if image.mode in _DEEP and stated <= 16 and bits is None and _SIGNED in tags.get(_SAMPLE_FORMAT, ()):
        raise Unreadable("numbers with a sign have no known white: save it without, or give --bits")
    image.load()
    if image.format == "PNG":
        _scale_clear(image, raw)
    if image.mode.startswith("F"):
        raise Unreadable("floating-point pixels have no known white: save it with 8 or 16 bits")
    if wide and bits not in (None, 16):
        raise Unreadable("of colours of 16 bits only the upper 8 can be read: save it with 8 bits")
    if image.mode not in _DEEP:
        # Pillow has dropped the lower bits of colours
        deepest = 257 * int(np.asarray(image)[..., :3].max(initial=0)) if wide and bits is None else -1
        return image, deepest
    if stated == 32 and bits is None:
        raise Unreadable(
            "whole numbers of 32 bits have no known white: save it with 8 or 16 bits, or give --bits"
        )
    values = np.asarray(image).astype(np.int64 if stated > 16 else np.int32)
    white = 2 ** (bits or stated) - 1
    scaled = np.clip(values * 255 // white, 0, 255).astype(np.uint8)
    if white_is_zero:
        scaled = 255 - scaled
    grey = Image.fromarray(scaled)
    grey.info = {k: v for k, v in image.info.items() if k != "transparency"}
    if isinstance(clear := image.info.get("transparency"), int):  # the level that is transparent, of a PNG
        grey.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    grey.getexif().update(image.getexif())
    return grey, int(values.max(initial=0)) if stated == 16 and bits is None else -1


def _raw_mode(image: Image.Image) -> str:
    """How the pixels lie in the file, as Pillow writes it: "RGB;16B"; "": it does not say."""
    for tile in getattr(image, "tile", ()):
        found = tile[3][0] if isinstance(tile[3], tuple) and tile[3] else tile[3]
        return found if isinstance(found, str) else ""
    return ""


def _scale_clear(image: Image.Image, raw: str) -> None:
    """Bring the transparent level or colour of a PNG, which is of the file's depth, to that of the pixels."""
    clear = image.info.get("transparency")
    if isinstance(clear, int) and raw in ("L;2", "L;4"):
        image.info["transparency"] = clear * (85 if raw == "L;2" else 17)
    elif isinstance(clear, tuple) and ";16" in raw:
        image.info["transparency"] = tuple(level >> 8 for level in clear)


def _stated_bits(image: Image.Image) -> int:
    """Bits of a deep grey level as the file states them."""
    tags = getattr(image, "tag_v2", None)
    if tags is not None:
        return int(tags.get(_BITS_PER_SAMPLE, (16,))[0])
    return 16  # of PNG, JPEG 2000 and PGM, whose lesser depths Pillow scales to 16 bits
