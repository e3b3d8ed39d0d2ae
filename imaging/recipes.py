"""What a picture's file says of how it was made: one JSON text, where its format has a place for it.

    PNG, APNG   tEXt chunk "sagan"
    WebP, JPEG  EXIF ImageDescription, beside Software "sagan"
    GIF         its comment
    MP4         its comment (©cmt)

The text of one image is its Provenance. An enlarged image has one key more, `enlarged`. A picture of many
images has the spec of their job, and says in `drawn` how they stand in it.
"""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngImageFile

from imaging.enlarging import RESAMPLES, Resample, enlarged
from imaging.png import KEYWORD
from imaging.spec import SpecError

LARGEST: Final = 8192  # pixels of a side that an image can have been enlarged to
_COMMENT: Final = b"\xa9cmt"  # of an MP4: an atom, in it the atom "data"
_NAMES: Final = {"PNG": "PNG", "WEBP": "WebP", "JPEG": "JPEG", "GIF": "GIF"}


@dataclass(frozen=True)
class Enlargement:
    """How an image was enlarged after the network had made it."""

    size: int  # of the side, pixels
    resample: Resample

    def of(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """[R, R, 3] -> [size, size, 3], to the last level as the service enlarges."""
        return enlarged(pixels, self.size, self.resample)


@dataclass(frozen=True)
class Recipe:
    """The text in a file, and what the file can show of what it tells."""

    text: str
    kind: str  # "PNG", "WebP", "JPEG", "GIF" or "MP4"
    lossless: bool  # its pixels are those that were drawn
    frames: int = 1

    def drawn(self) -> str | None:
        """What is drawn of a whole job, such as "grid" or "film"; None: it is one image."""
        return _described(self.text, "drawn", "as")

    def values(self) -> dict[str, object]:
        """The text, read. Raises SpecError where it is no JSON object."""
        return _object(self.text)

    def enlargement(self) -> Enlargement | None:
        """None: the image has the size that the network gave it. Raises SpecError."""
        told = _object(self.text).get("enlarged")
        if told is None:
            return None
        size, resample = (told.get("size"), told.get("resample")) if isinstance(told, dict) else (None, None)
        if type(size) is not int or not 1 <= size <= LARGEST or resample not in RESAMPLES:
            raise SpecError(f"The recipe in this file says enlarged = {str(told)[:60]}: no image has that.")
        return Enlargement(size, resample)


def with_enlargement(text: str, size: int, resample: Resample) -> str:
    """The text of an image for its enlarged copy."""
    return json.dumps({**_object(text), "enlarged": {"size": size, "resample": resample}})


def read_recipe(data: bytes) -> Recipe:
    """The recipe in a file of this service. Raises SpecError, with one line that says what is wrong."""
    if data[4:8] == b"ftyp":
        found: Recipe | None = _of_mp4(data)
    else:
        try:
            found = _of_picture(data)
        except UnidentifiedImageError:  # its message has an address of this process's memory
            raise SpecError("This is not a readable PNG, WebP, JPEG, GIF or MP4 file.") from None
        except (OSError, ValueError, SyntaxError, struct.error, Image.DecompressionBombError) as error:
            raise SpecError(f"This is not a readable PNG, WebP, JPEG or GIF file ({error}).") from error
    if found is None:
        raise SpecError(
            "This file holds no spec: it was not made here, or it was saved again without its recipe."
        )
    return found


def _of_picture(data: bytes) -> Recipe | None:
    with Image.open(io.BytesIO(data), formats=list(_NAMES)) as image:
        kind = image.format or ""
        frames = getattr(image, "n_frames", 1)
        if isinstance(image, PngImageFile):
            text: object = image.text.get(KEYWORD)
        elif kind == "GIF":
            text = image.info.get("comment")
        else:
            text = image.getexif().get(ExifTags.Base.ImageDescription)
    if isinstance(text, bytes):
        text = text.decode("latin-1")
    if not isinstance(text, str) or (not text.startswith("{") and kind != "PNG"):
        return None  # a description or comment of somebody else
    return Recipe(text, _NAMES[kind], kind == "PNG" or (kind == "WEBP" and _is_lossless(data)), frames)


def _is_lossless(webp: bytes) -> bool:
    """Whether every picture in a WebP file is of VP8L (RFC 9649)."""
    kinds = {name for name, _ in _chunks(webp, 12)}
    frames = {name for kind, at in _chunks(webp, 12) if kind == b"ANMF" for name, _ in _chunks(webp, at + 16)}
    return b"VP8L" in kinds | frames and b"VP8 " not in kinds | frames


def _chunks(webp: bytes, at: int) -> Iterator[tuple[bytes, int]]:
    """Name and place of the content of each chunk from `at` on."""
    while at + 8 <= len(webp):
        name, size = webp[at : at + 4], int(struct.unpack_from("<I", webp, at + 4)[0])
        yield name, at + 8
        at += 8 + size + size % 2


def _of_mp4(data: bytes) -> Recipe | None:
    at = data.find(_COMMENT)
    if at < 0 or data[at + 8 : at + 12] != b"data":
        return None
    size = int(struct.unpack_from(">I", data, at + 4)[0])
    text = data[at + 20 : at + 4 + size].decode(errors="replace")
    return Recipe(text, "MP4", False, 2) if text.startswith("{") else None


def _object(text: str) -> dict[str, object]:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SpecError(f"The recipe in this file is not JSON ({error}).") from error
    if not isinstance(values, dict):
        raise SpecError("The recipe in this file is not a JSON object.")
    return values


def _described(text: str, key: str, name: str) -> str | None:
    told = _object(text).get(key)
    found = told.get(name) if isinstance(told, dict) else None
    return found if isinstance(found, str) else None
