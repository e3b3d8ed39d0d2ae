"""Every test: one thread for torch, `slow` by folder, no GPU test where there is no GPU."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Before torch is imported, here and in what the tests start. These networks are too small to share among
# threads, files run side by side, and sums over several threads depend on how many there are.
os.environ["OMP_NUM_THREADS"] = "1"

SLOW = ("integration", "e2e")  # folders whose tests all start services


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what starts services as slow; skip what needs a GPU where there is none."""
    for item in items:
        if item.path.relative_to(Path(__file__).parent).parts[0] in SLOW:
            item.add_marker("slow")
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked:
        import torch

        if not torch.cuda.is_available():
            for item in marked:
                item.add_marker(pytest.mark.skip(reason="needs a GPU"))
