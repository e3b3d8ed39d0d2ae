"""Grids and enlarged images: drawn strip by strip, and the same as drawn at once."""

from __future__ import annotations

import io
import subprocess
import sys

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from app import pictures
from app.pictures import Resample
from imaging.stills import Still


def noise(resolution: int, seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (resolution, resolution, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def drawn(pngs: list[bytes], side: int | None, resample: Resample) -> npt.NDArray[np.int16]:
    """A grid as any reader of PNGs sees it; Pillow checks its sums."""
    with Image.open(io.BytesIO(b"".join(pictures.grid(pngs, side, resample)))) as image:
        assert image.mode == "RGB"
        return np.asarray(image).astype(np.int16)


@pytest.mark.parametrize("resample", ["nearest", "lanczos"])
@pytest.mark.parametrize("side", [None, 16, 77, 129, 1024])
def test_a_grid_has_each_image_at_its_place_without_a_seam(side: int | None, resample: Resample) -> None:
    pngs = [noise(64, seed) for seed in range(5)]
    sheet, each = drawn(pngs, side, resample), side or 64
    assert sheet.shape == (2 * each + 2, 3 * each + 4, 3)
    for index, png in enumerate(pngs):
        row, column = divmod(index, 3)
        top, left = row * (each + 2), column * (each + 2)
        found = sheet[top : top + each, left : left + each]
        at_once = np.asarray(pictures.enlarge(pictures.read(png), each, resample)).astype(np.int16)
        # 1 of 255: Pillow takes the borders of a strip as float32
        assert np.abs(found - at_once).max() <= (1 if resample == "lanczos" else 0)
    assert (sheet[each : each + 2] == 255).all()
    assert (sheet[each + 2 :, 2 * each + 4 :] == 255).all()  # the sixth place is empty


def test_a_pixel_becomes_a_square_where_the_side_is_a_multiple() -> None:
    pixels = pictures.read(noise(16, 1))
    np.testing.assert_array_equal(drawn([noise(16, 1)], 64, "nearest"), pixels.repeat(4, 0).repeat(4, 1))


PEAK = """if True:
    import io, resource, sys
    import numpy as np
    from PIL import Image
    from app import pictures
    pixels = np.random.default_rng(0).integers(0, 256, (128, 128, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    pngs = [out.getvalue()] * 64
    for _ in pictures.grid(pngs[:4], 64, "lanczos"):
        pass
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in pictures.grid(pngs, int(sys.argv[1]), sys.argv[2], None, sys.argv[3]):
        pass
    print(1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("side", "resample", "kind", "most"),
    [
        (1024, "nearest", "png", 40),  # the whole sheet of 8192 pixels is 200 MB
        (512, "lanczos", "png", 40),
        (360, "lanczos", "webp", 320),
        (360, "lanczos", "jpeg", 320),
    ],
)
def test_a_large_grid_takes_no_more_memory_than_it_says(
    side: int, resample: str, kind: Still, most: int
) -> None:
    command = [sys.executable, "-c", PEAK, str(side), resample, kind]
    took = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    said = pictures.memory_of_grid(128, 64, side, kind)
    assert took < said < most * 2**20
