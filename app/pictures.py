"""PNG bytes and pixels: read, enlarged, tiled, written; as WebP and JPEG too."""

import hashlib
import io
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, Literal

import numpy as np
from PIL import Image

from imaging.enlarging import Pixels as Pixels
from imaging.enlarging import Resample as Resample
from imaging.enlarging import enlarge as enlarge
from imaging.enlarging import lines, strip_size, strips, widened
from imaging.png import Writer
from imaging.stills import STILL_MEMORY, Still, still

VERSION = 3  # part of every ETag: raise it when the same images would be drawn differently
GAP: Final = 2  # pixels between the images of a grid
_PAPER = (255, 255, 255)
ALWAYS: Final = 2**20  # bytes that any drawing uses


def read(png: bytes) -> Pixels:
    """PNG -> [H, W, 3]."""
    with Image.open(io.BytesIO(png)) as image:
        return np.asarray(image.convert("RGB"))


def resolution(png: bytes) -> int:
    """Side of an image, pixels. Reads the header only."""
    with Image.open(io.BytesIO(png)) as image:
        return image.height


def grid(
    pngs: Sequence[bytes],
    side: int | None,
    resample: Resample,
    text: str | None = None,
    kind: Still = "png",
    quality: int | None = None,
) -> Iterator[bytes]:
    """PNGs of one size -> the pieces of one picture, row by row, nearly square.

    side: of each image, pixels; None: unchanged. text: the recipe in its file. As a PNG, the images of one
    row are all that is unpacked at a time; WebP and JPEG need the whole picture.
    """
    side = resolution(pngs[0]) if side is None else side
    columns = grid_columns(len(pngs))
    rows = math.ceil(len(pngs) / columns)
    width, height = columns * (side + GAP) - GAP, rows * (side + GAP) - GAP

    def drawn() -> Iterator[Pixels]:
        for row in range(rows):
            if row:
                yield blank(width, GAP)
            images = [widened(read(png), side, resample) for png in pngs[row * columns : (row + 1) * columns]]
            for top, bottom in strips(width, side):
                strip = blank(width, bottom - top)
                for column, image in enumerate(images):
                    left = column * (side + GAP)
                    strip[:, left : left + side] = lines(image, side, resample, top, bottom)
                yield strip

    if kind == "png":
        return write(drawn(), width, height, text)
    return _encoded(drawn(), width, height, kind, quality, text)


def _encoded(
    drawn: Iterator[Pixels],
    width: int,
    height: int,
    kind: Literal["webp", "jpeg"],
    quality: int | None,
    text: str | None,
) -> Iterator[bytes]:
    whole = np.empty((height, width, 3), np.uint8)
    top = 0
    for strip in drawn:
        whole[top : top + len(strip)] = strip
        top += len(strip)
        yield b""  # a pause
    yield still(whole, kind, quality, text)


def blank(width: int, height: int) -> Pixels:
    """Paper to draw on, [height, width, 3]."""
    return np.full((height, width, 3), _PAPER, np.uint8)


def grid_size(count: int, side: int) -> int:
    """Pixels of a grid of `count` images whose side is `side`."""
    columns = grid_columns(count)
    return columns * math.ceil(count / columns) * side * side


def memory_of_grid(resolution: int, count: int, side: int, kind: Still = "png") -> int:
    """Bytes that `grid` uses at most, with the PNGs of `count` images that it reads."""
    width = grid_columns(count) * (side + GAP)
    strip = 3 * strip_size(width)
    pixels = 3 * resolution * resolution  # of one image; no PNG is much larger
    whole = STILL_MEMORY * grid_size(count, side + GAP) if kind != "png" else 0
    return 2 * count * pixels + 3 * resolution * width + 6 * strip + whole + ALWAYS


def written(picture: Image.Image) -> Iterator[bytes]:
    """The pieces of a picture's PNG."""
    return write(strips_of(picture), picture.width, picture.height)


def strips_of(picture: Image.Image) -> Iterator[Pixels]:
    """The picture, [lines, width, 3] at a time."""
    return (
        np.asarray(picture.crop((0, top, picture.width, bottom)).convert("RGB"))
        for top, bottom in strips(picture.width, picture.height)
    )


def write(strips: Iterable[Pixels], width: int, height: int, text: str | None = None) -> Iterator[bytes]:
    """Strips [lines, width, 3], from the top down -> the pieces of their PNG. text: the recipe in it."""
    writer = Writer(width, height, text)
    for strip in strips:
        yield writer.add(strip)
    yield writer.end()


def grid_columns(count: int) -> int:
    """Images in a row of a grid of `count`."""
    return math.ceil(math.sqrt(count))


def etag(*parts: bytes | str | int | None) -> str:
    """A strong ETag of everything that a picture depends on."""
    told = [part if isinstance(part, bytes) else repr(part).encode() for part in (VERSION, *parts)]
    # with lengths, no two lists of parts give the same bytes
    framed = b"".join(b"%d:%b" % (len(part), part) for part in told)
    return f'"{hashlib.blake2b(framed, digest_size=16).hexdigest()}"'
