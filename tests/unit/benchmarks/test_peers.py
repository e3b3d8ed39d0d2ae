"""The benchmark beside peers: whose processes are counted, which measurement is kept, what a share is of."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.peers.__main__ import undisturbed
from benchmarks.peers.plain_worker import PlainEngine
from benchmarks.peers.processes import Processes, spent
from benchmarks.peers.tables import tables
from imaging.spec import ImageSpec
from networks import random_checkpoint
from worker.engine import Engine

# a child in a session of its own, as Ray and Redis start them, and one that forgets its environment
SPREADING = """
import subprocess, sys, time
busy = "import time\\nwhile True: sum(range(1000)); time.sleep(0.001)"
subprocess.Popen([sys.executable, "-c", busy], start_new_session=True)
subprocess.Popen([sys.executable, "-c", busy], start_new_session=True, env={})
time.sleep(60)
"""


def _status(pid: int) -> str:
    """What the kernel says of a process; a zombie's, where there is none."""
    path = Path(f"/proc/{pid}/status")
    return path.read_text() if path.exists() else "State:\tZ"


@pytest.mark.slow
def test_all_that_a_contender_started_is_counted_and_nothing_of_it_is_left(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SPREADING]
    with Processes([command], dict(os.environ), tmp_path / "log", grace=0.5) as processes:
        deadline = time.monotonic() + 20
        while (before := processes.usage()).processes < 3:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        while not spent(before.cpu, (after := processes.usage()).cpu):
            assert time.monotonic() < deadline
        assert processes.died() is None
    assert after.memory > 3 * 2**20
    assert os.getpid() not in after.cpu
    assert not [pid for pid in after.cpu if "State:\tZ" not in _status(pid)]


def test_one_that_dies_is_told_by_its_last_words(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import sys; sys.exit('no model\\n')"]
    with Processes([command], dict(os.environ), tmp_path / "log") as processes:
        deadline = time.monotonic() + 20
        while processes.died() is None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert processes.died() == "no model"


def test_a_disturbed_measurement_is_made_again_and_the_quietest_is_kept() -> None:
    def measured(*disturbances: float) -> dict[str, object]:
        left = iter(disturbances)
        return undisturbed(lambda: {"neighbours": next(left), "stolen": 0.0})

    assert measured(0.1, 9.0) == {"neighbours": 0.1, "stolen": 0.0, "attempts": 1}
    assert measured(0.5, 0.0, 9.0) == {"neighbours": 0.0, "stolen": 0.0, "attempts": 2}
    assert measured(0.5, 0.3, 0.4) == {"neighbours": 0.3, "stolen": 0.0, "attempts": 3}


def test_a_share_is_of_the_best_batch_of_its_own_round() -> None:
    rows: list[dict[str, object]] = []
    for number, speed in enumerate((100.0, 200.0)):
        batches = {"1": 10.0, "2": 20.0, "4": 30.0, "8": speed, "16": 50.0}
        rows.append({"round": number, "contender": "floor", "floor": batches})
        figures = dict.fromkeys(("p50_ms", "p99_ms", "cpu_ms", "redis_cpu_ms", "generator_ms"), 5.0)
        figures |= {
            "processes": 2,
            "memory_mb": 100.0,
            "redis_memory_mb": 0.0,
            "neighbours": 0.0,
            "stolen": 0.0,
        }
        told = {"contender": "ours", "count": 1, "clients": 8, "requests": 50, "errors": 1}
        rows.append({**told, **figures, "round": number, "images_a_second": 0.9 * speed})
    rows.append({"round": 1, "contender": "ray", "failed": "it does not start: no port"})
    text = tables(["a machine"], rows)
    assert "| ours | 135 | 0.90 (0.90..0.90) | 5 | 5 | 2 % | 5.0 | 2 | 100 |" in text
    assert "| images/s | 10 (10..10) | 20 (20..20) | 30 (30..30) | 150 (100..200) | 50 (50..50) |" in text
    assert "- ray, round 2: it does not start: no port" in text


def test_the_plain_engine_makes_the_images_of_ours(tmp_path: Path) -> None:
    path, cpu = tmp_path / "pets.safetensors", torch.device("cpu")
    random_checkpoint(path, ("cat", "dog"))
    specs = [ImageSpec(index % 2, 7, index, 1.0) for index in range(3)]
    ours = [Engine.load(path, cpu).sample([spec])[0].astype(int) for spec in specs]
    plain = PlainEngine.load(path, cpu).sample(specs).astype(int)
    assert np.abs(plain - np.stack(ours)).max() <= 1
