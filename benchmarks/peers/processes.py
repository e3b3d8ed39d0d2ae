"""A contender's processes: started, found again by a mark in their environment, weighed, and stopped."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

MARK = "SAGAN_BENCHMARK"  # some peers put their processes into sessions of their own


@dataclass(frozen=True)
class Usage:
    """What processes took so far."""

    cpu: Mapping[int, float]  # seconds of CPU, by process id
    redis_cpu: Mapping[int, float]
    memory: int  # bytes of PSS, which counts shared memory once
    redis_memory: int
    machine: float  # seconds that the machine's cores were busy
    stolen: float  # seconds that the hypervisor gave to other machines
    at: float

    @property
    def processes(self) -> int:
        return len(self.cpu)


class Processes:
    """Everything that one contender started. A context: at its end nothing of it runs."""

    def __init__(
        self,
        commands: Sequence[Sequence[str]],
        variables: Mapping[str, str],
        log: Path,
        grace: float = 15.0,
    ) -> None:
        """grace: seconds for all of it to end in order."""
        self._grace = grace
        self._mark = secrets.token_hex(8)
        self._log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as file:
            self._started = [
                subprocess.Popen(
                    command,
                    env={**variables, MARK: self._mark},
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=file,
                    start_new_session=True,
                )
                for command in commands
            ]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        family = self._found()  # now: Redis cannot be found any more once its parent is gone
        for process in self._started:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + self._grace
        while (left := self._left(family)) and time.monotonic() < deadline:
            for process in self._started:
                process.poll()
            time.sleep(0.1)
        for one in left:
            with suppress(psutil.NoSuchProcess):
                one.kill()
        for process in self._started:
            process.wait()
        psutil.wait_procs(left, timeout=5)

    def died(self) -> str | None:
        """The last line of the log if one of them has ended; None: all run."""
        if all(process.poll() is None for process in self._started):
            return None
        lines = [line for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1] if lines else "it ended without a word"

    def usage(self) -> Usage:
        cpu: dict[int, float] = {}
        redis_cpu: dict[int, float] = {}
        memory = redis_memory = 0
        for process in self._found():
            try:
                times, pss = process.cpu_times(), process.memory_full_info().pss
                is_redis = any(word in process.name() for word in ("redis", "valkey"))
            except psutil.Error:
                continue  # it has just ended
            if is_redis:
                redis_cpu[process.pid] = times.user + times.system
                redis_memory += pss
            else:
                cpu[process.pid] = times.user + times.system
                memory += pss
        machine, stolen = busy()
        return Usage(
            cpu=cpu,
            redis_cpu=redis_cpu,
            memory=memory,
            redis_memory=redis_memory,
            machine=machine,
            stolen=stolen,
            at=time.monotonic(),
        )

    def _left(self, family: list[psutil.Process]) -> list[psutil.Process]:
        """The processes of `family`, and those they have started since, that still run."""
        return [one for one in {*family, *self._found()} if _runs(one)]

    def _found(self) -> list[psutil.Process]:
        ours = {process.pid for process in self._started}
        found = []
        for process in psutil.process_iter():
            try:
                # Redis writes its title over its environment, and is somebody's child instead
                if process.environ().get(MARK) == self._mark or {process.pid, process.ppid()} & ours:
                    ours.add(process.pid)
                    if _runs(process):
                        found.append(process)
            except (psutil.Error, OSError):
                continue  # it has just ended, or is somebody else's
        return found


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def spent(before: Mapping[int, float], after: Mapping[int, float]) -> float:
    """Seconds of CPU between two usages; a process that began in between counts from 0."""
    return sum(seconds - before.get(pid, 0.0) for pid, seconds in after.items())


def busy() -> tuple[float, float]:
    """Seconds that the machine's cores worked, and that the hypervisor gave to other machines, so far."""
    times = psutil.cpu_times()
    return times.user + times.nice + times.system + times.irq + times.softirq, times.steal


def own_cpu() -> float:
    """Seconds of CPU that this process took so far."""
    times = os.times()
    return times.user + times.system
