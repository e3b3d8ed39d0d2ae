"""PNG bytes and pixels: read, enlarged, tiled, written."""

import hashlib
import io
import math
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

Pixels = npt.NDArray[np.uint8]  # [H, W, 3]
Resample = Literal["nearest", "lanczos"]

VERSION = 2  # part of every ETag: raise it when the same images would be drawn differently
_FILTERS = {"nearest": Image.Resampling.NEAREST, "lanczos": Image.Resampling.LANCZOS}
GAP: Final = 2  # pixels between the images of a grid
_PAPER = (255, 255, 255)
_AT_ONCE: Final = 2**19  # pixels of a strip: a tenth of a second's work at most
ALWAYS: Final = 2**20  # bytes that any drawing uses
_UP: Final = 2  # the filter type of a PNG's line: its difference from the one above
_LEVEL: Final = 3  # of deflate: in a sixth of the time of Pillow's 6, for 3 % more bytes of enlarged images


def read(png: bytes) -> Pixels:
    """PNG -> [H, W, 3]."""
    with Image.open(io.BytesIO(png)) as image:
        return np.asarray(image.convert("RGB"))


def resolution(png: bytes) -> int:
    """Side of an image, pixels. Reads the header only."""
    with Image.open(io.BytesIO(png)) as image:
        return image.height


def grid(pngs: Sequence[bytes], side: int | None, resample: Resample) -> Iterator[bytes]:
    """PNGs of one size -> the pieces of one PNG, row by row, nearly square.

    side: of each image, pixels; None: unchanged. The images of one row are all that is unpacked at a time.
    """
    side = resolution(pngs[0]) if side is None else side
    columns = grid_columns(len(pngs))
    rows = math.ceil(len(pngs) / columns)
    width = columns * (side + GAP) - GAP

    def strips() -> Iterator[Pixels]:
        for row in range(rows):
            if row:
                yield np.full((GAP, width, 3), _PAPER, np.uint8)
            images = [
                _widened(read(png), side, resample) for png in pngs[row * columns : (row + 1) * columns]
            ]
            for top, bottom in _strips(width, side):
                strip = np.full((bottom - top, width, 3), _PAPER, np.uint8)
                for column, image in enumerate(images):
                    left = column * (side + GAP)
                    strip[:, left : left + side] = _lines(image, side, resample, top, bottom)
                yield strip

    return write(strips(), width, rows * (side + GAP) - GAP)


def grid_size(count: int, side: int) -> int:
    """Pixels of a grid of `count` images whose side is `side`."""
    columns = grid_columns(count)
    return columns * math.ceil(count / columns) * side * side


def memory_of_grid(resolution: int, count: int, side: int) -> int:
    """Bytes that `grid` uses at most, with the PNGs of `count` images that it reads."""
    width = grid_columns(count) * (side + GAP)
    strip = 3 * max(_AT_ONCE, width)
    pixels = 3 * resolution * resolution  # of one image; no PNG is much larger
    return 2 * count * pixels + 3 * resolution * width + 6 * strip + ALWAYS


def written(picture: Image.Image) -> Iterator[bytes]:
    """The pieces of a picture's PNG."""
    return write(strips_of(picture), picture.width, picture.height)


def strips_of(picture: Image.Image) -> Iterator[Pixels]:
    """The picture, [lines, width, 3] at a time."""
    return (
        np.asarray(picture.crop((0, top, picture.width, bottom)).convert("RGB"))
        for top, bottom in _strips(picture.width, picture.height)
    )


def write(strips: Iterable[Pixels], width: int, height: int) -> Iterator[bytes]:
    """Strips [lines, width, 3], from the top down -> the pieces of their PNG (ISO/IEC 15948).

    Pillow would need the whole picture. Each line is written as its difference from the one above: of
    enlarged images that is mostly zeros. There is no spec in it: only an image as the network made it can be
    made again and compared.
    """
    packer = zlib.compressobj(_LEVEL)
    above = np.zeros(3 * width, np.uint8)
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 8 bits, RGB
    yield b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", head)
    for strip in strips:
        rows = strip.reshape(len(strip), 3 * width)
        lines = np.full((len(rows), 1 + 3 * width), _UP, np.uint8)
        np.subtract(rows[0], above, out=lines[0, 1:])
        np.subtract(rows[1:], rows[:-1], out=lines[1:, 1:])
        above = rows[-1].copy()
        packed = packer.compress(lines.data)
        yield _chunk(b"IDAT", packed) if packed else b""
    yield _chunk(b"IDAT", packer.flush()) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _strips(width: int, height: int) -> Iterator[tuple[int, int]]:
    """First and past-the-last line of each strip of some hundred thousand pixels."""
    lines = max(1, _AT_ONCE // width)
    return ((top, min(height, top + lines)) for top in range(0, height, lines))


def enlarge(image: Pixels, side: int, resample: Resample = "nearest") -> Image.Image:
    """[R, R, 3] -> side × side; nearest keeps every pixel a crisp square."""
    return Image.fromarray(image).resize((side, side), _FILTERS[resample])


def _widened(image: Pixels, side: int, resample: Resample) -> Pixels:
    """[R, R, 3] -> [R, side, 3]: what the lines of the enlarged image are made of."""
    if resample == "nearest":
        return image[:, _nearest(len(image), side)]
    return np.asarray(Image.fromarray(image).resize((side, len(image)), _FILTERS[resample]))


def _lines(wide: Pixels, side: int, resample: Resample, top: int, bottom: int) -> Pixels:
    """Lines top..bottom of the image enlarged to side × side."""
    if resample == "nearest":
        return wide[_nearest(len(wide), side)[top:bottom]]
    # Pillow's filter sees the lines beyond the box as well, so that strips meet without a seam
    box = (0, top * len(wide) / side, side, bottom * len(wide) / side)
    return np.asarray(Image.fromarray(wide).resize((side, bottom - top), _FILTERS[resample], box))


def _nearest(resolution: int, side: int) -> npt.NDArray[np.intp]:
    """The line of an image that each line of the enlarged one shows."""
    return (2 * np.arange(side) + 1) * resolution // (2 * side)


def grid_columns(count: int) -> int:
    """Images in a row of a grid of `count`."""
    return math.ceil(math.sqrt(count))


def etag(*parts: bytes | str | int | None) -> str:
    """A strong ETag of everything that a picture depends on."""
    told = [part if isinstance(part, bytes) else repr(part).encode() for part in (VERSION, *parts)]
    # with lengths, no two lists of parts give the same bytes
    framed = b"".join(b"%d:%b" % (len(part), part) for part in told)
    return f'"{hashlib.blake2b(framed, digest_size=16).hexdigest()}"'
