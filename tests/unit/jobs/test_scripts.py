"""The Lua scripts are part of the wheel."""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_every_script_is_data_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["package-data"]["jobs"]
    packed = {path for pattern in patterns for path in (ROOT / "jobs").glob(pattern)}
    assert packed == set((ROOT / "jobs" / "lua").iterdir())
    assert len(packed) > 1
