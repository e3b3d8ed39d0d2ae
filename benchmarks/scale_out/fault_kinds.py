"""The faults: each breaks something under load, and returns when it is whole again."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from time import sleep
from typing import Final

from benchmarks.scale_out.bed import Bed

MARGIN: Final = 200_000  # bytes of memory that a Redis is left with before it is full
LIBFAKETIME: Final = sorted(map(str, Path("/usr/lib").glob("*/faketime/libfaketime.so.1")))
DISK: Final = "24m"  # of the disk that is filled


class CannotBeMade(Exception):
    """This machine lacks something that the fault needs."""


@dataclass(frozen=True)
class Fault:
    """One row of the table."""

    what: str
    act: Callable[[Bed], None]  # breaks it, and mends it where it does not mend itself
    on_a_disk: bool = False  # of its own, and small
    clocks: tuple[str, ...] = ("", "", "")  # of each worker, as in "+2h"; "": right


def kill_a_worker(bed: Bed) -> None:
    bed.workers.pop().kill()


def stop_a_worker(bed: Bed, seconds: float = 30) -> None:
    worker = bed.workers[0]
    worker.send_signal(signal.SIGSTOP)
    sleep(seconds)
    worker.send_signal(signal.SIGCONT)


def kill_all_workers(bed: Bed) -> None:
    """As the kernel does when memory runs out; a supervisor starts them again after a second."""
    many = len(bed.workers)
    while bed.workers:
        bed.workers.pop().kill()
    sleep(1)
    bed.grow(many)


def kill_redis(bed: Bed) -> None:
    bed.server.kill()
    sleep(1)
    bed.server.start()


def stop_redis(bed: Bed, seconds: float = 15) -> None:
    os.kill(bed.server.pid, signal.SIGSTOP)
    sleep(seconds)
    os.kill(bed.server.pid, signal.SIGCONT)


def restart_redis(bed: Bed) -> None:
    """In order, on its file."""
    os.kill(bed.server.pid, signal.SIGTERM)
    while bed.server.alive():
        sleep(0.05)
    bed.server.start()


def fill_redis(bed: Bed, seconds: float = 10) -> None:
    used = bed.redis.info("memory")["used_memory"]
    bed.redis.config_set("maxmemory", used + MARGIN)
    sleep(seconds)
    bed.redis.config_set("maxmemory", "1gb")


def refuse_writes(bed: Bed, seconds: float = 10) -> None:
    """A failover that makes a replica of it, and another that makes it the master again."""
    bed.redis.execute_command("REPLICAOF", "127.0.0.1", "1")
    sleep(seconds)
    bed.redis.execute_command("REPLICAOF", "NO", "ONE")


def fill_the_disk(bed: Bed) -> None:
    """Redis ends; it starts again once there is room."""
    filler = bed.folder / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    while bed.server.alive():
        sleep(0.1)
    sleep(2)
    filler.unlink()
    bed.server.start()


def with_wrong_clocks(bed: Bed) -> None:
    """One worker is two hours ahead, one two hours behind; one of them is killed."""
    sleep(5)
    bed.workers.pop(0).kill()


FAULTS: Final = {
    "none": Fault("nothing", lambda _: sleep(5)),
    "worker-kill": Fault("a worker of three: SIGKILL", kill_a_worker),
    "worker-stop": Fault("a worker of three: SIGSTOP for 30 s", stop_a_worker),
    "worker-oom": Fault("all workers: SIGKILL, as when memory runs out; started again", kill_all_workers),
    "redis-kill": Fault("Redis: SIGKILL, started after 1 s", kill_redis),
    "redis-stop": Fault("Redis: SIGSTOP for 15 s", stop_redis),
    "redis-full": Fault("Redis: full for 10 s (maxmemory)", fill_redis),
    "redis-disk": Fault("Redis: its disk is full, it ends, started once there is room", fill_the_disk, True),
    "redis-readonly": Fault("Redis: READONLY for 10 s (a failover and back)", refuse_writes),
    "redis-restart": Fault("Redis: stopped in order, started on its file", restart_redis),
    "clocks": Fault(
        "workers two hours ahead and behind, one of them SIGKILL",
        with_wrong_clocks,
        clocks=("+2h", "-2h", ""),
    ),
}


def check(fault: Fault) -> None:
    """Raises CannotBeMade where the machine lacks what the fault needs."""
    if any(fault.clocks) and not LIBFAKETIME:
        raise CannotBeMade("libfaketime is not installed")
    if fault.on_a_disk and (os.geteuid() != 0 or shutil.which("mount") is None):
        raise CannotBeMade("only root may mount a small disk")


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A disk of its own at `folder`. Raises CannotBeMade."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(folder)]
    if (ended := subprocess.run(mount, capture_output=True, text=True)).returncode:
        raise CannotBeMade(f"no disk can be mounted: {ended.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def start_workers(bed: Bed, fault: Fault) -> None:
    """Three workers, each with its clock; returns when all have beaten."""
    for clock in fault.clocks:
        # not by the command faketime: it would stand between a signal and the worker
        wrong = {"LD_PRELOAD": LIBFAKETIME[0], "FAKETIME": clock}
        bed.start_worker(
            [sys.executable, "-m", "benchmarks.scale_out", "sleeper"], **(wrong if clock else {})
        )
    bed.grow(len(fault.clocks))
