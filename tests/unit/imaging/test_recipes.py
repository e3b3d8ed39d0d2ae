"""The recipe in a file of any format that leaves the service."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from PIL import ExifTags, Image

from imaging.enlarging import enlarged
from imaging.png import png
from imaging.recipes import Enlargement, read_recipe, with_enlargement
from imaging.spec import ImageSpec, Provenance, SpecError
from imaging.stills import still

MADE = Provenance("birds", "ab" * 32, "float32", "Grünfink", ImageSpec(3, 2**63 - 1, 2, 0.7)).to_json()
PIXELS = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("data", "kind", "lossless"),
    [
        (png(PIXELS, MADE), "PNG", True),
        (still(PIXELS, "webp", None, MADE), "WebP", True),
        (still(PIXELS, "webp", 100, MADE), "WebP", False),
        (still(PIXELS, "webp", None, MADE, fast=True), "WebP", True),
        (still(PIXELS, "jpeg", None, MADE), "JPEG", False),
    ],
)
def test_a_picture_in_any_format_carries_the_same_text(data: bytes, kind: str, lossless: bool) -> None:
    recipe = read_recipe(data)
    assert (recipe.text, recipe.kind, recipe.lossless) == (MADE, kind, lossless)
    assert Provenance.from_json(recipe.text).image.seed == 2**63 - 1
    assert recipe.enlargement() is None
    assert recipe.drawn() is None
    with Image.open(io.BytesIO(data)) as image:
        same = np.array_equal(np.asarray(image.convert("RGB")), PIXELS)
        assert image.getexif().get(ExifTags.Base.Software) == (None if kind == "PNG" else "sagan")
    assert same is lossless


def test_the_quality_of_a_lossy_file_is_heard() -> None:
    for kind in ("webp", "jpeg"):
        sizes = [len(still(PIXELS, kind, quality, MADE)) for quality in (1, 50, 100)]
        assert sizes == sorted(sizes)
        assert sizes[0] < sizes[2] / 2


@pytest.mark.parametrize("resample", ["nearest", "lanczos"])
def test_an_enlarged_image_says_how_and_is_enlarged_so_again(resample: str) -> None:
    text = with_enlargement(MADE, 77, resample)  # type: ignore[arg-type]
    assert Provenance.from_json(text) == Provenance.from_json(MADE)
    large = enlarged(PIXELS, 77, resample)  # type: ignore[arg-type]
    how = read_recipe(png(large, text)).enlargement()
    assert how == Enlargement(77, resample)  # type: ignore[arg-type]
    np.testing.assert_array_equal(how.of(PIXELS), large)


@pytest.mark.parametrize(
    "told",
    [
        7,
        "large",
        [],
        {},
        {"size": 64},
        {"size": 0, "resample": "nearest"},
        {"size": 10**9, "resample": "nearest"},
        {"size": "64", "resample": "nearest"},
        {"size": True, "resample": "nearest"},
        {"size": 64, "resample": "cubic"},
        {"size": 64, "resample": []},
    ],
)
def test_an_enlargement_that_no_image_has_is_one_line(told: object) -> None:
    text = json.dumps({**json.loads(MADE), "enlarged": told})
    with pytest.raises(SpecError, match="no image has that"):
        read_recipe(png(PIXELS, text)).enlargement()


def described(description: object) -> bytes:
    exif = Image.Exif()
    exif[ExifTags.Base.ImageDescription] = description
    content = io.BytesIO()
    Image.fromarray(PIXELS).save(content, "JPEG", exif=exif)
    return content.getvalue()


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "not a readable PNG"),
        (b"RIFF\x10\x00\x00\x00WEBPVP8L", "not a readable PNG"),
        (b"\x00\x00\x00\x18ftypisom" + bytes(40), "no spec"),
        (b"\x00\x00\x00\x18ftypisom\xa9cmt", "no spec"),
        (b"\x00\x00\x00\x18ftypisom\xa9cmt\x00\x00\xff\xffdata", "no spec"),
        (described("OLYMPUS DIGITAL CAMERA"), "no spec"),
        (still(PIXELS, "webp", None, None), "no spec"),
        (still(PIXELS, "jpeg", None, None)[:300], "not a readable PNG"),
    ],
)
def test_a_file_without_a_recipe_is_refused_with_one_line(data: bytes, says: str) -> None:
    with pytest.raises(SpecError, match=says) as caught:
        read_recipe(data)
    assert "\n" not in str(caught.value)


def test_a_text_that_is_no_recipe_is_refused_where_it_is_read() -> None:
    for text in ("nonsense", "[1]", "{" * 100):
        with pytest.raises(SpecError, match="not"):
            read_recipe(png(PIXELS, text)).drawn()
