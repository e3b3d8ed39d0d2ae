"""A small pack, an extractor trained on it, and the command that experiments on them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from train.data.pack import open_pack, pack
from train.experiments.command import run_experiment
from train.experiments.settings import Request
from train.measure.features_training import FeaturesRecipe, train_features

SCALE = 0.0004  # attention-sites at 1, 2, 4, 6, 8, 10 and 12 steps
SETTINGS = ("optimisation.batch=4", "schedule.statistics_batches=1")


@pytest.fixture(scope="session")
def pack_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    draw = np.random.default_rng(0)
    for name, level in (("dark", 60), ("light", 180)):
        (folder / "images" / name).mkdir(parents=True)
        for i in range(45):
            pixels = draw.integers(level - 50, level + 50, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "images" / name / f"{i}.png")
    pack(folder / "images", folder / "pack.safetensors")
    return folder / "pack.safetensors"


@pytest.fixture(scope="session")
def features_file(pack_file: Path) -> Path:
    path = pack_file.with_name("features.safetensors")
    train_features(open_pack(pack_file), path, FeaturesRecipe(8, 16, 0.05), (8, 8, 16))
    return path


@pytest.fixture
def experiment(pack_file: Path, features_file: Path) -> Callable[..., bool]:
    def run(
        out: Path, name: str = "attention-sites", stop_after: float | None = None, **changed: Any
    ) -> bool:
        asked: dict[str, Any] = {"samples": 8, "features": features_file, "device": "cpu"}
        if name != "spatial-blindness":
            asked |= {"recipe": "tiny", "scale": SCALE, "settings": SETTINGS}
        request = Request(name, pack_file, out, **(asked | changed))
        return run_experiment(request, Console(quiet=True), stop_after)

    return run
