"""What the process may use, read from control groups of either version."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from app import container

MEMORY, CORES = 64 * 2**20, 0.5


def written(folder: Path, name: str, text: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(f"{text}\n")


@pytest.fixture
def own(tmp_path: Path) -> Path:
    return tmp_path / "cgroup"


def test_version_2_limits_a_container(tmp_path: Path, own: Path) -> None:
    own.write_text("0::/\n")  # a container sees its own group as the root
    written(tmp_path, "memory.max", str(MEMORY))
    written(tmp_path, "cpu.max", "50000 100000")
    assert container.memory(tmp_path, own) == MEMORY
    assert container.cores(tmp_path, own) == 1


def test_the_limit_of_a_group_around_ours_holds_as_well(tmp_path: Path, own: Path) -> None:
    own.write_text("0::/pod/app\n")
    written(tmp_path / "pod", "memory.max", str(MEMORY))
    written(tmp_path / "pod" / "app", "memory.max", "max")
    written(tmp_path / "pod" / "app", "cpu.max", "max 100000")
    assert container.memory(tmp_path, own) == MEMORY
    assert container.cores(tmp_path, own) == len(os.sched_getaffinity(0))


def test_version_1_limits_a_container(tmp_path: Path, own: Path) -> None:
    own.write_text("4:memory:/docker/1\n3:cpu,cpuacct:/docker/1\n")
    written(tmp_path / "memory" / "docker" / "1", "memory.limit_in_bytes", str(MEMORY))
    written(tmp_path / "cpu" / "docker" / "1", "cpu.cfs_quota_us", "50000")
    written(tmp_path / "cpu" / "docker" / "1", "cpu.cfs_period_us", "100000")
    assert container.memory(tmp_path, own) == MEMORY
    assert container.cores(tmp_path, own) == 1


def test_without_limits_it_is_the_machine(tmp_path: Path, own: Path) -> None:
    own.write_text("4:memory:/\n3:cpu,cpuacct:/\n")
    written(tmp_path / "memory", "memory.limit_in_bytes", str(2**63 - 4096))  # version 1's word for none
    written(tmp_path / "cpu", "cpu.cfs_quota_us", "-1")
    written(tmp_path / "cpu", "cpu.cfs_period_us", "100000")
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert container.memory(tmp_path, own) == machine
    assert container.cores(tmp_path, own) == len(os.sched_getaffinity(0))
    assert container.memory(tmp_path / "none", tmp_path / "none") == machine


def test_only_the_cores_that_the_process_may_run_on_count(tmp_path: Path, own: Path) -> None:
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert container.cores(tmp_path, own) == 1
    finally:
        os.sched_setaffinity(0, allowed)
