"""A picture as WebP or JPEG, with its recipe in EXIF."""

from __future__ import annotations

import io
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

MADE_BY: Final = "sagan"  # of a PNG's and EXIF's Software, and a GIF's comment without a recipe
Still = Literal["png", "webp", "jpeg"]

JPEG_QUALITY: Final = 90
STILL_MEMORY: Final = 32  # bytes a pixel, of a WebP while it is encoded; measured with Pillow 13


def still(
    pixels: NDArray[np.uint8],
    kind: Literal["webp", "jpeg"],
    quality: int | None,
    text: str | None,
    *,
    fast: bool = False,
) -> bytes:
    """[H, W, 3] -> a file with `text` as its recipe. Same input, same bytes.

    quality: 1 to 100; None: a lossless WebP, a JPEG of 90. fast: a WebP in a fraction of the time, for a
    tenth to a third more bytes: of a film's frames there are many.
    """
    content = io.BytesIO()
    picture = Image.fromarray(pixels)
    marks = {} if text is None else {"exif": exif(text)}
    if kind == "jpeg":
        # colours at full resolution: images of so few pixels show their halving
        picture.save(content, "JPEG", quality=quality or JPEG_QUALITY, subsampling="4:4:4", **marks)
    elif quality is None:
        # in less than half the time of Pillow's own method 4, quality 80, for some per cent more bytes
        method, effort = (0, 30) if fast else (4, 20)
        picture.save(content, "WEBP", lossless=True, method=method, quality=effort, **marks)
    else:
        picture.save(content, "WEBP", quality=quality, method=2 if fast else 4, **marks)
    return content.getvalue()


def exif(text: str | None) -> Image.Exif:
    """EXIF that says who made a picture and, in ImageDescription, how: `text`, ASCII."""
    found = Image.Exif()
    if text is not None:
        found[ExifTags.Base.ImageDescription] = text
    found[ExifTags.Base.Software] = MADE_BY
    return found
