"""Threads that wait for each other spin only where nobody else needs the cores."""

from __future__ import annotations

import math
import os
import platform
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


FAULTS = """
import resource, sys
from cli.common import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
for round in range(20):
    if round == 5:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    b"x" * (50_000_000 + round)  # above any threshold at which malloc asks the kernel anew
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc alone is told")
def test_freed_memory_is_kept_unless_the_user_has_set_malloc() -> None:
    def faults(way: str, **environment: str) -> int:
        command = [sys.executable, "-c", FAULTS, way]
        return int(subprocess.check_output(command, env={**os.environ, **environment}, timeout=120))

    asked_each_time = faults("no")
    assert asked_each_time > 15 * 100  # of 12,000 pages a tensor, less where the kernel has huge ones
    assert faults("keep") < asked_each_time / 3
    assert faults("keep", MALLOC_TRIM_THRESHOLD_="1000000") > asked_each_time * 2 / 3
