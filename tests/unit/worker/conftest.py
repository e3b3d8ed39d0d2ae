"""A tiny network of random weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from networks import random_checkpoint

CLASSES = ("cat", "dog", "ship")


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """32 pixels, three classes, attention at 16×16 with an open gate."""
    path = tmp_path_factory.mktemp("checkpoints") / "tiny.safetensors"
    about: dict[str, object] = {"licence": "none", "description": "random"}
    random_checkpoint(path, CLASSES, width=64, metrics={"fid": 12.5}, metadata=about)
    return path
