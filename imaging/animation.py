"""Frames -> the pieces of a moving picture, as they come.

Pillow writes animations too, but all at once and with every frame in memory. Here each frame is a still of
Pillow's, or lines of a PNG, and a container is written around them: a film can end between two frames, and
none but the WebP keeps what it has written.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from imaging.png import KEYWORD, chunk, filtered, head, text_chunk
from imaging.stills import MADE_BY, exif, still

Pixels = NDArray[np.uint8]  # [H, W, 3]

_LEVEL: Final = 3  # of deflate, as in a still PNG of ours


class Film(Protocol):
    """What makes one file of frames."""

    def add(self, frame: Pixels, ms: int) -> bytes:
        """The next piece of the file, which may be empty. ms: how long the frame stands."""

    def end(self) -> Iterator[bytes]:
        """The last pieces."""

    def close(self) -> None:
        """Let go of what it holds; it may be called at any time, more than once."""


@dataclass(frozen=True)
class Reel:
    """What a container says of all its frames."""

    width: int  # pixels
    height: int
    frames: int
    loop: bool  # for ever; else it is shown once
    text: str | None  # the recipe, ASCII; None: it only says who made it


class Webp:
    """RFC 9649. Its head has the length of the whole, so its frames are kept, encoded, until the end."""

    def __init__(self, reel: Reel, quality: int | None) -> None:
        """quality: 1 to 100; None: lossless."""
        self._reel = reel
        self._quality = quality
        self._frames: list[bytes] = []

    def add(self, frame: Pixels, ms: int) -> bytes:
        encoded = still(frame, "webp", self._quality, None, fast=True)[12:]  # its one chunk
        size = _three(self._reel.width - 1) + _three(self._reel.height - 1)
        whole_and_opaque = b"\x02"  # nothing of the frame before shines through
        place = bytes(6) + size + _three(ms) + whole_and_opaque
        self._frames.append(_riff(b"ANMF", place + encoded))
        return b""

    def end(self) -> Iterator[bytes]:
        told = exif(self._reel.text).tobytes().removeprefix(b"Exif\0\0")
        size = _three(self._reel.width - 1) + _three(self._reel.height - 1)
        moving_with_exif = 0x02 | 0x08
        before = _riff(b"VP8X", bytes([moving_with_exif, 0, 0, 0]) + size)
        before += _riff(b"ANIM", bytes(4) + struct.pack("<H", 0 if self._reel.loop else 1))
        after = _riff(b"EXIF", told)
        length = 4 + len(before) + sum(map(len, self._frames)) + len(after)
        yield b"RIFF" + struct.pack("<I", length) + b"WEBP" + before
        yield from self._frames
        yield after

    def close(self) -> None:
        self._frames.clear()


class Apng:
    """PNG, third edition, 11.3.6."""

    def __init__(self, reel: Reel) -> None:
        self._reel = reel
        self._number = 0  # of the next chunk of a frame
        plays = 0 if reel.loop else 1
        self._before = (
            head(reel.width, reel.height)
            + chunk(b"acTL", struct.pack(">II", reel.frames, plays))
            + (text_chunk("Software", MADE_BY) if reel.text is None else text_chunk(KEYWORD, reel.text))
        )

    def add(self, frame: Pixels, ms: int) -> bytes:
        before, self._before = self._before, b""
        size = struct.pack(">IIII", self._reel.width, self._reel.height, 0, 0)
        stays = struct.pack(">HHBB", ms, 1000, 0, 0)
        control = chunk(b"fcTL", self._next() + size + stays)
        packed = zlib.compress(filtered(frame).data, _LEVEL)
        # the first frame is what a reader of stills shows
        return (
            before + control + (chunk(b"IDAT", packed) if before else chunk(b"fdAT", self._next() + packed))
        )

    def end(self) -> Iterator[bytes]:
        yield chunk(b"IEND", b"")

    def close(self) -> None:
        pass

    def _next(self) -> bytes:
        number, self._number = self._number, self._number + 1
        return struct.pack(">I", number)


class Gif:
    """GIF89a, a palette of its own for each frame: 256 colours chosen for all of them show bands."""

    def __init__(self, reel: Reel) -> None:
        self._left = 0  # ms that frames before were shown too short: a GIF counts in hundredths of a second
        size = struct.pack("<HH", reel.width, reel.height)
        self._before = b"GIF89a" + size + b"\x70\x00\x00"
        if reel.loop:
            self._before += b"\x21\xff\x0bNETSCAPE2.0\x03\x01\x00\x00\x00"
        self._before += b"\x21\xfe" + _blocks((reel.text or MADE_BY).encode("latin-1"))
        self._descriptor = b"\x2c" + bytes(4) + size

    def add(self, frame: Pixels, ms: int) -> bytes:
        before, self._before = self._before, b""
        stands, self._left = divmod(self._left + ms, 10)
        control = b"\x21\xf9\x04" + struct.pack("<BHB", 0x04, stands, 0) + b"\x00"  # it stays until the next
        table, packed = _indexed(frame)
        depth = (len(table) // 3).bit_length() - 2
        return before + control + self._descriptor + bytes([0x80 | depth]) + table + packed

    def end(self) -> Iterator[bytes]:
        yield b"\x3b"

    def close(self) -> None:
        pass


def _indexed(frame: Pixels) -> tuple[bytes, bytes]:
    """A frame's colours and its packed indices, as a GIF has them, from the one-frame GIF of Pillow."""
    content = io.BytesIO()
    picture = Image.fromarray(frame)
    # octree and dithering: seen from a little afar closer than the median cut, in a fifth of the time or less
    palette = picture.quantize(256, Image.Quantize.FASTOCTREE)
    few = picture.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG)
    few.save(content, "GIF", interlace=False, optimize=False)
    data = content.getvalue()
    at = 13 + 3 * 2 ** ((data[10] & 7) + 1)
    table = data[13:at]
    while data[at] == 0x21:  # extensions
        at += 2
        while data[at]:
            at += 1 + data[at]
        at += 1
    return table, data[at + 10 : -1]


def _blocks(data: bytes) -> bytes:
    """Data of a GIF's extension: in blocks of 255 bytes at most."""
    parts = (data[at : at + 255] for at in range(0, len(data), 255))
    return b"".join(bytes([len(part)]) + part for part in parts) + b"\x00"


def _three(number: int) -> bytes:
    return number.to_bytes(3, "little")


def _riff(name: bytes, data: bytes) -> bytes:
    return name + struct.pack("<I", len(data)) + data + bytes(len(data) % 2)
