"""The machine of a benchmark: its name, who else uses it, and the most it can do."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

import torch


def described(device: torch.device) -> str:
    """One line: processor, threads or GPU, torch."""
    if device.type == "cuda":
        where = torch.cuda.get_device_name(device)
    else:
        where = f"{_processor()}, {torch.get_num_threads()} of {os.cpu_count()} threads"
    return f"{where}; torch {torch.__version__}, Python {platform.python_version()}"


def neighbours(seconds: float = 1.0) -> float:
    """Cores that other processes keep busy now; NaN where there is no /proc. Call it before starting any."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return float("nan")

    def ticks() -> tuple[int, int]:
        fields = [int(field) for field in stat.read_text().split("\n", 1)[0].split()[1:]]
        return sum(fields), fields[3] + fields[4]  # idle and waiting for a disk

    before, idle_before = ticks()
    time.sleep(seconds)
    after, idle_after = ticks()
    busy = 1 - (idle_after - idle_before) / max(after - before, 1)
    return busy * (os.cpu_count() or 1)


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second of a large square product, the best of ten."""
    side = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return 2 * side**3 / _best(lambda: a @ b, device)


def copy_rate(device: torch.device) -> float:
    """Bytes a second that a copy larger than any cache reads and writes, the best of ten."""
    source = torch.zeros(2**30 if device.type == "cuda" else 2**28, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() / _best(lambda: target.copy_(source), device)


def wait(device: torch.device) -> None:
    """Wait until the device has done all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _best(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of the fastest of ten calls."""
    times = []
    for _ in range(10):
        wait(device)
        start = time.perf_counter()
        work()
        wait(device)
        times.append(time.perf_counter() - start)
    return min(times)


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if "model name" in line), platform.machine())
