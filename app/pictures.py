"""PNG bytes and pixels: read, enlarged, tiled, written."""

import hashlib
import io
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

Pixels = npt.NDArray[np.uint8]  # [H, W, 3]
Resample = Literal["nearest", "lanczos"]

VERSION = 1  # part of every ETag: raise it when the same images would be drawn differently
_FILTERS = {"nearest": Image.Resampling.NEAREST, "lanczos": Image.Resampling.LANCZOS}
_GAP = 2  # pixels between the images of a grid
_PAPER = (255, 255, 255)


def read(png: bytes) -> Pixels:
    """PNG -> [H, W, 3]."""
    with Image.open(io.BytesIO(png)) as image:
        return np.asarray(image.convert("RGB"))


def resolution(png: bytes) -> int:
    """Side of an image, pixels. Reads the header only."""
    with Image.open(io.BytesIO(png)) as image:
        return image.height


def write(picture: Image.Image) -> bytes:
    """PNG bytes without a spec: only an image as the network made it can be made again and compared."""
    out = io.BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()


def enlarge(image: Pixels, side: int, resample: Resample = "nearest") -> Image.Image:
    """[R, R, 3] -> side × side; nearest keeps every pixel a crisp square."""
    return Image.fromarray(image).resize((side, side), _FILTERS[resample])


def enlarged(png: bytes, side: int, resample: Resample) -> bytes:
    """PNG -> the same image, side × side pixels."""
    return write(enlarge(read(png), side, resample))


def grid(pngs: Sequence[bytes], side: int | None, resample: Resample) -> bytes:
    """PNGs of one size -> one PNG, row by row, nearly square. side: of each, pixels; None: unchanged."""
    images = [read(png) for png in pngs]
    side = images[0].shape[0] if side is None else side
    columns = grid_columns(len(images))
    rows = math.ceil(len(images) / columns)
    size = (columns * (side + _GAP) - _GAP, rows * (side + _GAP) - _GAP)
    sheet = Image.new("RGB", size, _PAPER)
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        sheet.paste(enlarge(image, side, resample), (column * (side + _GAP), row * (side + _GAP)))
    return write(sheet)


def grid_columns(count: int) -> int:
    """Images in a row of a grid of `count`."""
    return math.ceil(math.sqrt(count))


def etag(*parts: bytes | str | int | None) -> str:
    """A strong ETag of everything that a picture depends on."""
    told = [part if isinstance(part, bytes) else repr(part).encode() for part in (VERSION, *parts)]
    # with lengths, no two lists of parts give the same bytes
    framed = b"".join(b"%d:%b" % (len(part), part) for part in told)
    return f'"{hashlib.blake2b(framed, digest_size=16).hexdigest()}"'
