"""Workers as forks of one process that has loaded torch and Celery: loading takes seconds, a fork none."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
from pathlib import Path
from time import monotonic

from serve.private_redis import die_with_parent

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["worker.main"])


class WorkerProcess:
    """A worker as `sagan worker` runs it, in a process of its own."""

    def __init__(self, env: dict[str, str], log: Path, script: Path | None = None) -> None:
        """env: beside the environment of the tests. script: what runs in place of `python -m worker`."""
        self._log = log
        settings = {
            "SAGAN_DEVICE": "cpu",
            "SAGAN_PRECISION": "float32",  # the same on any machine
            "SAGAN_THREADS": "1",
        }
        environment = {**os.environ, **settings, **env}
        self._process = _context.Process(target=_live, args=(environment, log, script))
        self._process.start()

    @property
    def output(self) -> str:
        return self._log.read_text() if self._log.exists() else ""

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def send(self, how: signal.Signals) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, how)

    def kill(self) -> None:
        """kill -9."""
        self._process.kill()
        self._process.join()

    def stop(self, how: signal.Signals = signal.SIGTERM, seconds: float = 20.0) -> float:
        """End it in order; returns how many seconds that took."""
        began = monotonic()
        self.send(how)
        self.wait(seconds)
        return monotonic() - began

    def wait(self, seconds: float) -> int:
        """The exit code, once it has ended. Raises TimeoutError."""
        self._process.join(seconds)
        if self._process.exitcode is None:
            raise TimeoutError(f"the worker still runs after {seconds} s\n{self.output}")
        return self._process.exitcode

    def close(self) -> None:
        if self._process.exitcode is None:
            self.kill()


def _live(env: dict[str, str], log: Path, script: Path | None) -> None:
    os.setsid()  # Ctrl-C is for the tests
    if die := die_with_parent(signal.SIGKILL):  # the parent ends with the tests, however they end
        die()
    with log.open("wb") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
    os.environ.clear()
    os.environ.update(env)
    if script is None:
        runpy.run_module("worker", run_name="__main__")
    else:
        runpy.run_path(str(script), run_name="__main__")
