"""A source of labelled pictures: a list of what it has, and a way to open each."""

from __future__ import annotations

import io
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

from PIL import Image

from train.errors import DataError

SUFFIXES = frozenset(
    {".avif", ".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)
MAX_FILE_BYTES = 256 * 2**20  # one image file, uncompressed; larger ones are not read at all
# named one by one: left to itself Pillow also opens EPS, for which it starts another program
_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")


class Unreadable(Exception):
    """One picture cannot be used; the message is the reason that the report gives."""


class Box(NamedTuple):
    """A rectangle in stored pixels of a picture of `width` × `height`, or of a scaled copy of that size."""

    left: int
    top: int
    right: int
    bottom: int
    width: int
    height: int


class Entry(NamedTuple):
    """One picture of a source. Plain and small: ImageNet has 1.3 million of them in memory."""

    name: str  # in the report, and for the source to find the picture by
    label: int
    box: Box | None = None  # None: the centre square


@dataclass(frozen=True)
class Source:
    """Pictures of one origin.

    `read` opens the picture of an entry (from several threads at once) and raises Unreadable, OSError
    or one of Pillow's own errors where it cannot.
    """

    name: str
    kind: str  # "folder", "zip", "cifar10", "stanford-dogs"
    class_names: tuple[str, ...]
    entries: list[Entry]
    read: Callable[[Entry], Image.Image]
    licence: str | None = None  # None: the source's format states none
    crop: str = "centre square"  # the part of a picture that is used
    notes: tuple[str, ...] = ()  # on files left out, for the report


def class_order(names: Iterable[str]) -> tuple[str, ...]:
    """Class names in the order of their numbers: sorted.

    Raises DataError for two that a person cannot tell apart.
    """
    ordered = tuple(sorted(names))
    seen: dict[str, str] = {}
    for name in ordered:
        if name.encode(errors="replace") != name.encode(errors="surrogatepass"):
            raise DataError(f"The class folder {name!a} is not named in UTF-8: rename it.")
        key = unicodedata.normalize("NFC", name).casefold().strip()
        if key in seen:
            raise DataError(
                f"Two classes have the same name, {seen[key]!r} and {name!r}: rename or merge one of them."
            )
        seen[key] = name
    return ordered


def same_classes(names: Sequence[str], others: Sequence[str]) -> bool:
    """Whether both are the same classes in the same order; case and underscores make no difference."""
    return [n.casefold() for n in spoken(names)] == [n.casefold() for n in spoken(others)]


def spoken(names: Sequence[str]) -> tuple[str, ...]:
    """Class names as people write them, in the same order: `Border_collie` is "Border collie".

    Names that would become the same keep their underscores.
    """
    said = [" ".join(name.replace("_", " ").split()) if "_" in name else name for name in names]
    keys = [unicodedata.normalize("NFC", one).casefold().strip() for one in said]
    count = Counter(keys)
    return tuple(
        one if key and count[key] == 1 else name for one, key, name in zip(said, keys, names, strict=True)
    )


@cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(form for form in _FORMATS if form in Image.OPEN)  # not every Pillow is built with all


def open_picture(content: bytes) -> Image.Image:
    """Pillow's image of a file's content, not yet decoded. Raises Unreadable or one of Pillow's errors."""
    if len(content) > MAX_FILE_BYTES:
        raise Unreadable(f"larger than {MAX_FILE_BYTES >> 20} MiB")
    return Image.open(io.BytesIO(content), formats=_formats())


def is_hidden(parts: Iterable[str]) -> bool:
    """True for the leavings of file managers (.DS_Store, __MACOSX) and for any part with a leading dot."""
    return any(part.startswith(".") or part == "__MACOSX" for part in parts)
