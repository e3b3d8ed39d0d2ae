"""PNG with its recipe inside."""

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

from worker.encode import RecipeError, png, read_recipe, recipe_json
from worker.jobs import JobSpec

ROOT = Path(__file__).parents[3]
SPEC = JobSpec("birds", "ab" * 32, "float32", 3, "Grünfink", 4, 2**63 - 1, 0.7)
PIXELS = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)


def with_text(text: str | None) -> bytes:
    info = PngInfo()
    if text is not None:
        info.add_text("sagan", text)
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def test_pixels_and_recipe_come_back() -> None:
    data = png(PIXELS, recipe_json(SPEC, 2))
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(data))), PIXELS)
    recipe = read_recipe(data)
    assert recipe["seed"] == 2**63 - 1
    assert recipe["class_name"] == "Grünfink"
    assert (recipe["index"], recipe["truncation"], recipe["version"]) == (2, 0.7, 1)
    assert "priority" not in recipe
    assert png(PIXELS, recipe_json(SPEC, 2)) == data


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "not a readable PNG"),
        (b"GIF89a", "not a readable PNG"),
        (with_text("{}")[:60], "not a readable PNG"),
        (with_text(None), "no recipe"),
        (with_text("nonsense"), "not JSON"),
        (with_text("[1]"), "not a JSON object"),
        (with_text("{}"), "model = None"),
        (with_text(json.dumps({**json.loads(recipe_json(SPEC, 0)), "seed": "7"})), "seed = '7'"),
        (with_text(json.dumps({**json.loads(recipe_json(SPEC, 0)), "index": True})), "index = True"),
        (with_text(json.dumps({**json.loads(recipe_json(SPEC, 0)), "version": 2})), "version 2"),
    ],
)
def test_what_is_no_png_of_ours_is_refused_with_one_line(data: bytes, says: str) -> None:
    with pytest.raises(RecipeError) as caught:
        read_recipe(data)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_isal_the_pixels_are_the_same() -> None:
    code = (
        "import sys; sys.modules['isal'] = None\n"
        "import numpy; from worker.encode import png\n"
        "pixels = numpy.random.default_rng(0).integers(0, 256, (32, 32, 3), numpy.uint8)\n"
        "sys.stdout.buffer.write(png(pixels, '{}'))"
    )
    made = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True).stdout
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(made))), PIXELS)
