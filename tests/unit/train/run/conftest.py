"""A small pack in a file."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from train.data.pack import pack as write_pack


@pytest.fixture
def pack_file(tmp_path: Path) -> Path:
    for name, colour in (("blue", (0, 0, 200)), ("red", (200, 0, 0))):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(12):
            shade = tuple(max(0, c - 10 * i) for c in colour)
            Image.new("RGB", (32, 32), shade).save(tmp_path / "images" / name / f"{i}.png")
    path = tmp_path / "pack.safetensors"
    write_pack(tmp_path / "images", path)
    return path
