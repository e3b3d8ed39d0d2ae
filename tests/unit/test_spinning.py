"""Threads that wait for each other spin only where nobody else needs the cores."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time

import pytest

from cli.common import busy_cores, wait_passively


@pytest.fixture(autouse=True)
def waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")  # as `train` sets it; put back afterwards


@pytest.mark.parametrize(("busy", "spins"), [(0.0, "10000"), (0.9, None), (math.inf, None)])
def test_threads_spin_only_where_cores_are_idle(
    monkeypatch: pytest.MonkeyPatch, busy: float, spins: str | None
) -> None:
    monkeypatch.setenv("GOMP_SPINCOUNT", "")  # so that it is put back
    monkeypatch.delenv("GOMP_SPINCOUNT")
    monkeypatch.setattr("cli.common.busy_cores", lambda: busy)
    wait_passively()
    assert os.environ.get("GOMP_SPINCOUNT") == spins
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")  # a user's own
    wait_passively()
    assert os.environ["GOMP_SPINCOUNT"] == "7"


def test_busy_cores_are_seen() -> None:
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:
        try:
            time.sleep(0.2)  # it has started
            assert busy_cores() > 0.5
        finally:
            busy.kill()
