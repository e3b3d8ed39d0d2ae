"""Pixels by mode and depth and colour profile, by one rule for every picture."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from tests.unit.train.data.sources import encoded, picture, write
from train.data.colours import BROKEN, NO_PROFILE, UNFIT, UNTOLD
from train.data.pack import open_pack, pack
from train.data.pictures import Square, read_square
from train.data.sources import Reading
from train.data.sources.base import Unreadable
from train.errors import DataError


def read(content: bytes, **reading: int) -> Square:
    return read_square(Image.open(io.BytesIO(content)), None, None, Reading(**reading))


def first(square: Square) -> list[int]:
    return [int(level) for level in square.pixels[:, 3, 3]]


def deep(level: int, form: str = "PNG", **options: object) -> bytes:
    return encoded(Image.fromarray(np.full((8, 8), level, np.uint16)), form, **options)


def pgm(level: int, white: int) -> bytes:
    return f"P5 8 8 {white}\n".encode() + level.to_bytes(2 if white > 255 else 1, "big") * 64


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (encoded(Image.new("1", (8, 8), 1)), 255),
        (encoded(Image.new("L", (8, 8), 77)), 77),
        (pgm(1, 1), 255),
        (pgm(15, 15), 255),
        (pgm(77, 255), 77),
        (pgm(2048, 4095), 127),
        (pgm(4095, 4095), 255),
        (deep(65535), 255),
        (deep(32896), 128),
        (deep(300), 1),
        (deep(200), 0),
        (deep(65535, "TIFF"), 255),
        (deep(300, "TIFF"), 1),
        (pgm(300, 65535), 1),  # of mode I
        (pgm(200, 65535), 0),
    ],
)
def test_grey_is_scaled_by_its_depth_and_never_by_what_is_in_it(content: bytes, expected: int) -> None:
    assert first(read(content)) == pytest.approx([expected] * 3, abs=0)


def test_twelve_bits_in_sixteen_are_read_when_told(tmp_path: Path) -> None:
    for number, level in enumerate((4095, 2048, 200)):
        write(tmp_path / "src" / "cat" / f"{number}.png", deep(level))
    with pytest.raises(DataError, match="--bits 12"):
        pack(tmp_path / "src", tmp_path / "out")
    pack(tmp_path / "src", tmp_path / "out", reading=Reading(bits=12))
    assert open_pack(tmp_path / "out").images[:, 0, 0, 0].tolist() == [255, 127, 12]
    pack(tmp_path / "src", tmp_path / "dark", reading=Reading(bits=16))
    assert open_pack(tmp_path / "dark").images[:, 0, 0, 0].tolist() == [15, 7, 0]
    write(tmp_path / "src" / "cat" / "white.png", deep(60_000))  # so the others are as dark as they look
    pack(tmp_path / "src", tmp_path / "out")
    assert open_pack(tmp_path / "out").images[:, 0, 0, 0].tolist() == [15, 7, 0, 233]


def test_twelve_bits_that_the_file_states_are_scaled_by_it() -> None:
    # a TIFF of 12 bits a sample, two samples in three bytes: Pillow reads it, and does not write it
    samples = bytes([0xFF, 0xF8, 0x00]) * 32  # 4095, 2048
    entries = [(256, 3, 1, 8), (257, 3, 1, 8), (258, 3, 1, 12), (259, 3, 1, 1), (262, 3, 1, 1),
               (273, 4, 1, 200), (277, 3, 1, 1), (278, 3, 1, 8), (279, 4, 1, len(samples))]  # fmt: skip
    head = b"II*\0" + (8).to_bytes(4, "little") + len(entries).to_bytes(2, "little")
    for tag, kind, count, value in entries:
        head += b"".join(n.to_bytes(s, "little") for n, s in ((tag, 2), (kind, 2), (count, 4), (value, 4)))
    content = (head + bytes(4)).ljust(200, b"\0") + samples
    square = read(content)
    assert square.pixels[0, 0, :2].tolist() == [255, 127]
    assert square.deepest == -1  # nothing is left to be guessed


def test_white_is_zero_where_a_tiff_says_so() -> None:
    assert first(read(deep(65535, "TIFF", tiffinfo={262: 0}))) == [0, 0, 0]


def test_a_transparent_level_of_sixteen_bits_is_white() -> None:
    assert first(read(deep(300, transparency=300))) == [255] * 3
    assert first(read(deep(32896, transparency=300))) == [128] * 3


@pytest.mark.parametrize(
    "content",
    [
        encoded(Image.new("I", (8, 8), 200), "TIFF"),
        encoded(Image.new("I", (8, 8), 300), "TIFF"),
        encoded(Image.new("F", (8, 8), 0.5), "TIFF"),
    ],
)
def test_numbers_without_a_known_white_are_refused(content: bytes) -> None:
    with pytest.raises(Unreadable, match="no known white: save it with 8 or 16 bits"):
        read(content)


def test_thirty_two_bits_are_read_when_told_how_many_are_used() -> None:
    content = encoded(Image.new("I", (8, 8), 1023), "TIFF")
    assert first(read(content, bits=10)) == [255] * 3


def test_colours_of_sixteen_bits_that_use_few_are_not_taken_for_black(tmp_path: Path) -> None:
    def png(level: int) -> bytes:
        return png_of(8, 16, 2, level.to_bytes(2, "big") * 24)

    assert first(read(png(0x8080))) == [128] * 3
    write(tmp_path / "src" / "cat" / "a.png", png(4000))
    with pytest.raises(DataError, match="--bits 16"):
        pack(tmp_path / "src", tmp_path / "out")
    with pytest.raises(Unreadable, match="only the upper 8"):
        read(png(4000), bits=12)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("RGBA", (8, 8), (255, 0, 0, 0)), [255, 255, 255]),
        (Image.new("RGBA", (8, 8), (255, 0, 0, 128)), [255, 127, 127]),
        (Image.new("LA", (8, 8), (0, 255)), [0, 0, 0]),
        (Image.new("LA", (8, 8), (0, 0)), [255, 255, 255]),
        (Image.new("La", (8, 8), (0, 0)), [255, 255, 255]),
        (Image.new("RGBa", (8, 8), (0, 0, 0, 0)), [255, 255, 255]),
        (Image.new("HSV", (8, 8), (0, 255, 255)), [255, 0, 0]),
        (Image.new("YCbCr", (8, 8), (76, 85, 255)), [254, 0, 0]),
        (Image.new("LAB", (8, 8), (255, 128, 128)), [255, 255, 255]),
        (Image.new("PA", (8, 8), 0), [255, 255, 255]),
    ],
)
def test_every_other_mode_becomes_rgb_on_white(image: Image.Image, expected: list[int]) -> None:
    assert first(read_square(image, None, None)) == pytest.approx(expected, abs=1)


def png_of(side: int, depth: int, kind: int, row: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of equal rows in a depth that Pillow does not write. kind: 0 grey, 2 colours."""
    head = struct.pack(">IIBBBBB", side, side, depth, kind, 0, 0, 0)
    body = [(b"IHDR", head), *chunks, (b"IDAT", zlib.compress((b"\0" + row) * side)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        for name, content in body
    )


@pytest.mark.parametrize(
    ("depth", "kind", "row", "clear", "expected"),
    [
        (2, 0, b"\x55\x55", (1,), [255] * 3),
        (2, 0, b"\x55\x55", (2,), [85] * 3),
        (4, 0, b"\x55" * 4, (5,), [255] * 3),
        (16, 2, bytes.fromhex("80004000ffff") * 8, (0x8000, 0x4000, 0xFFFF), [255] * 3),
        (16, 2, bytes.fromhex("80004000ffff") * 8, (0x80, 0x40, 0xFF), [128, 64, 255]),
    ],
)
def test_the_level_that_is_transparent_is_one_of_the_file_s_own_depth(
    depth: int, kind: int, row: bytes, clear: tuple[int, ...], expected: list[int]
) -> None:
    transparent = struct.pack(f">{len(clear)}H", *clear)
    assert first(read(png_of(8, depth, kind, row, (b"tRNS", transparent)))) == expected


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (encoded(Image.new("RGB", (53, 4), (3, 3, 3)), "BMP"), "a line has 160 bytes"),
        (encoded(Image.new("RGB", (160, 160), (3, 3, 3)), "TIFF", compression="tiff_lzw"), "libtiff"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_16_elsewhere_in_a_file_is_no_depth(content: bytes, name: str) -> None:
    assert read(content).deepest == -1
    assert first(read(content, bits=12)) == [3] * 3


def test_numbers_with_a_sign_are_refused() -> None:
    content = deep(16000, "TIFF", tiffinfo={339: 2})
    with pytest.raises(Unreadable, match="with a sign"):
        read(content)


def test_a_palette_with_transparency_lies_on_white() -> None:
    image = picture((255, 0, 0), (8, 8)).convert("P")
    clear = image.getpixel((0, 0))
    assert first(read(encoded(image))) == [255, 0, 0]
    assert first(read(encoded(image, "PNG", transparency=clear))) == [255] * 3
    assert first(read(encoded(image, "GIF", transparency=0 if clear is None else clear))) == [255] * 3


@pytest.mark.parametrize(
    ("chunks", "expected"),
    [
        ([(b"gAMA", 45455)], 128),
        ([(b"gAMA", 47000)], 128),
        ([(b"gAMA", 100000)], 186),  # linear
        ([(b"sRGB", None), (b"gAMA", 100000)], 128),  # sRGB comes first
    ],
)
def test_a_png_s_gamma_is_followed(chunks: list[tuple[bytes, int | None]], expected: int) -> None:
    written = [(name, b"\0" if value is None else struct.pack(">I", value)) for name, value in chunks]
    assert first(read(png_of(8, 8, 2, b"\x80" * 24, *written))) == [expected] * 3


def test_adobe_rgb_without_a_profile_is_told() -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA005] = {1: "R03"}
    content = encoded(picture((0, 200, 0), (8, 8)), "JPEG", exif=exif)
    assert read(content).remarks == (UNTOLD,)
    assert read(encoded(picture((0, 200, 0), (8, 8)), "JPEG")).remarks == ()


# --- profiles ---------------------------------------------------------------------------------------


def rgb_profile(gamma: float, primaries: tuple[tuple[float, float], ...]) -> bytes:
    """An ICC profile of version 2 from a gamma and the xy of red, green and blue, for D50 white."""
    white = np.array([0.9642, 1.0, 0.8249])
    columns = np.array([[x / y, 1, (1 - x - y) / y] for x, y in primaries]).T
    columns = columns * np.linalg.solve(columns, white)

    def fixed(*values: float) -> bytes:
        return b"".join(round(v * 65536).to_bytes(4, "big", signed=True) for v in values)

    curve = b"curv" + bytes(4) + (1).to_bytes(4, "big") + round(gamma * 256).to_bytes(2, "big") + bytes(2)
    text = b"desc" + bytes(4) + (5).to_bytes(4, "big") + b"wide\0" + bytes(78)
    tags = [
        (b"desc", text),
        (b"wtpt", b"XYZ " + bytes(4) + fixed(*white)),
        (b"cprt", b"text" + bytes(4) + b"none\0"),
    ]
    tags += [
        (name, b"XYZ " + bytes(4) + fixed(*columns[:, i]))
        for i, name in enumerate((b"rXYZ", b"gXYZ", b"bXYZ"))
    ]
    tags += [(name, curve) for name in (b"rTRC", b"gTRC", b"bTRC")]
    table, body, offset = b"", b"", 132 + 12 * len(tags)
    for name, content in tags:
        content = content.ljust(-(-len(content) // 4) * 4, b"\0")
        table += name + (offset + len(body)).to_bytes(4, "big") + len(content).to_bytes(4, "big")
        body += content
    size = offset + len(body)
    head = size.to_bytes(4, "big") + bytes(4) + b"\x02\x40\0\0mntrRGB XYZ " + bytes(12) + b"acsp" + bytes(28)
    return head + fixed(*white) + bytes(48) + len(tags).to_bytes(4, "big") + table + body


PROPHOTO = rgb_profile(1.8, ((0.7347, 0.2653), (0.1596, 0.8404), (0.0366, 0.0001)))


def in_profile(colour: tuple[int, int, int], profile: bytes) -> Image.Image:
    """A picture that shows this sRGB colour, its pixels written in the profile's space."""
    shown = ImageCms.profileToProfile(
        picture(colour, (8, 8)),
        ImageCms.createProfile("sRGB"),
        ImageCms.ImageCmsProfile(io.BytesIO(profile)),
        ImageCms.Intent.RELATIVE_COLORIMETRIC,
    )
    assert shown is not None
    return shown


@pytest.mark.parametrize("form", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_a_colour_in_another_space_arrives_as_it_is_seen(form: str) -> None:
    image = in_profile((200, 60, 40), PROPHOTO)
    assert max(abs(a - b) for a, b in zip(image.getpixel((0, 0)), (200, 60, 40), strict=True)) > 20
    options = (
        {"lossless": True} if form == "WEBP" else {"quality": 100, "subsampling": 0} if form == "JPEG" else {}
    )
    square = read(encoded(image, form, icc_profile=PROPHOTO, **options))
    assert first(square) == pytest.approx([200, 60, 40], abs=4)
    assert square.remarks == ()


def test_srgb_s_own_profile_moves_no_pixel() -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    noise = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    square = read(encoded(Image.fromarray(noise), icc_profile=srgb))
    assert np.array_equal(square.pixels, noise.transpose(2, 0, 1))


def test_transparency_and_a_palette_keep_their_profile() -> None:
    image = in_profile((200, 60, 40), PROPHOTO)
    image.putalpha(128)
    half = first(read(encoded(image, icc_profile=PROPHOTO)))
    assert half == pytest.approx([228, 157, 147], abs=4)
    palette = in_profile((200, 60, 40), PROPHOTO).quantize(4)
    assert first(read(encoded(palette, icc_profile=PROPHOTO))) == pytest.approx([200, 60, 40], abs=4)


@pytest.mark.parametrize(
    ("image", "profile", "remark"),
    [
        (picture((200, 60, 40), (8, 8)), b"this is no profile", BROKEN),
        (picture((200, 60, 40), (8, 8)), PROPHOTO[:200], BROKEN),
        (Image.new("L", (8, 8), 77), PROPHOTO, UNFIT),
        (Image.new("CMYK", (8, 8), (0, 0, 0, 0)), PROPHOTO, UNFIT),
        (Image.new("CMYK", (8, 8), (0, 0, 0, 0)), None, NO_PROFILE),
    ],
)
def test_a_profile_that_cannot_be_followed_is_told(
    tmp_path: Path, image: Image.Image, profile: bytes | None, remark: str
) -> None:
    content = encoded(image, "TIFF", **({"icc_profile": profile} if profile else {}))
    square = read(content)
    assert square.remarks == (remark,)
    assert first(square) == first(read_square(image, None, None))
    write(tmp_path / "src" / "cat" / "a.tif", content)
    write(tmp_path / "src" / "cat" / "b.png", encoded(picture((1, 2, 3), (8, 8))))
    report = pack(tmp_path / "src", tmp_path / "out")
    assert f"noted of 1: {remark} (cat/a.tif)" in report.notes
