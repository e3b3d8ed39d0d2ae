"""PNG with its spec inside."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from imaging.png import png, read_provenance
from imaging.spec import ImageSpec, Provenance, SpecError

ROOT = Path(__file__).parents[3]
MADE = Provenance("birds", "ab" * 32, "float32", "Grünfink", ImageSpec(3, 2**63 - 1, 2, 0.7))
PIXELS = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)


def with_text(text: str | None) -> bytes:
    info = PngInfo()
    if text is not None:
        info.add_text("sagan", text)
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def test_pixels_and_spec_come_back() -> None:
    data = png(PIXELS, MADE.to_json())
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(data))), PIXELS)
    assert read_provenance(data) == MADE
    assert png(PIXELS, MADE.to_json()) == data


def test_the_text_in_a_png_stays_as_it_was() -> None:
    assert MADE.to_json() == (
        '{"model": "birds", "model_hash": "' + "ab" * 32 + '", "precision": "float32", "class_id": 3, '
        '"class_name": "Gr\\u00fcnfink", "seed": 9223372036854775807, "truncation": 0.7, "index": 2, '
        '"version": 1}'
    )


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "not a readable PNG file."),
        (b"GIF89a", "not a readable PNG file."),
        (with_text("{}")[:60], "not a readable PNG"),
        (with_text(None), "no spec"),
        (with_text("nonsense"), "not JSON"),
        (with_text("[1]"), "not a JSON object"),
        (with_text("{}"), "version = None"),
        (with_text(json.dumps({**json.loads(MADE.to_json()), "seed": "7"})), "seed = '7'"),
        (with_text(json.dumps({**json.loads(MADE.to_json()), "index": True})), "index = True"),
        (with_text(json.dumps({**json.loads(MADE.to_json()), "version": 3})), "version 3"),
    ],
)
def test_what_is_no_png_of_ours_is_refused_with_one_line(data: bytes, says: str) -> None:
    with pytest.raises(SpecError) as caught:
        read_provenance(data)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_isal_the_pixels_are_the_same() -> None:
    code = (
        "import sys; sys.modules['isal'] = None\n"
        "import numpy; from imaging.png import png\n"
        "pixels = numpy.random.default_rng(0).integers(0, 256, (32, 32, 3), numpy.uint8)\n"
        "sys.stdout.buffer.write(png(pixels, '{}'))"
    )
    made = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True).stdout
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(made))), PIXELS)
