"""sagan morph: a film straight from a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from app.recipes import of_job
from imaging.recipes import read_recipe
from imaging.spec import ImageSpec
from networks import random_checkpoint
from worker.offline import OfflineError, load, made_of
from worker.offline_films import Way, write_film

NAMES = ("cat", "snow:leopard", "7")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    path = tmp_path_factory.mktemp("films") / "tiny.safetensors"
    random_checkpoint(path, NAMES, seed=3)
    return path


def write(checkpoint: Path, out: Path, *ends: str, frames: int = 4, size: int | None = None) -> None:
    way = Way(ends, frames, loop=False, truncation=0.7)
    write_film(checkpoint, way, out, size, 10, lambda spec: of_job(spec, "film"), "cpu")


@pytest.mark.parametrize("suffix", ["webp", "png"])
def test_a_film_goes_from_image_to_image(checkpoint: Path, tmp_path: Path, suffix: str) -> None:
    out = tmp_path / f"film.{suffix}"
    write(checkpoint, out, "Cat:1", "snow:leopard:2:3")
    engine = load(checkpoint, "cpu")  # in the precision that the film has, int8 on some processors
    first, last = made_of(engine, [ImageSpec(0, 1, 0, 0.7), ImageSpec(1, 2, 3, 0.7)])
    with Image.open(out) as film:
        assert film.n_frames == 4  # type: ignore[attr-defined]
        np.testing.assert_array_equal(np.asarray(film.convert("RGB")), first)
        film.seek(3)
        np.testing.assert_array_equal(np.asarray(film.convert("RGB")), last)
    told = json.loads(read_recipe(out.read_bytes()).text)
    assert (told["class_name"], told["count"], told["truncation"]) == ("cat to snow:leopard", 4, 0.7)


def test_frames_are_enlarged(checkpoint: Path, tmp_path: Path) -> None:
    write(checkpoint, tmp_path / "film.gif", "cat:1", "cat:2", size=80)
    with Image.open(tmp_path / "film.gif") as film:
        assert film.size == (80, 80)


@pytest.mark.parametrize(
    ("end", "says"),
    [
        ("cat", "CLASS:SEED"),
        ("cat:", "CLASS:SEED"),
        ("cat:-1", "CLASS:SEED"),
        ("cat:1.5", "CLASS:SEED"),
        (f"cat:{2**63}", "CLASS:SEED"),
        ("kat:1", "Did you mean 'cat'"),
        ("snow:leopard", "CLASS:SEED"),
    ],
)
def test_an_end_that_cannot_be_says_how_one_reads(
    checkpoint: Path, tmp_path: Path, end: str, says: str
) -> None:
    with pytest.raises(OfflineError, match=says):
        write(checkpoint, tmp_path / "film.webp", "cat:1", end)
    assert list(tmp_path.iterdir()) == []


def test_without_ffmpeg_an_mp4_says_what_to_do(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(OfflineError, match="install it, or name a"):
        write(checkpoint, tmp_path / "film.mp4", "cat:1", "cat:2")
    assert list(tmp_path.iterdir()) == []
