"""A run that is killed at random moments ends, bit for bit, as one that nobody touched."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[4]
KILLS = 20


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_survives_twenty_kills_at_random_moments() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "tests/support/survival.py", "--kills", str(KILLS)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    print(done.stderr)  # noqa: T201  # the seed, to repeat it by
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["different"] == [], found
    assert sum(found["fell"].values()) == found["kills"] == KILLS
    assert found["saved_steps"] >= 4, found  # lives went on with what others had left
