"""Python as forks of one process that has loaded torch, Celery and the API: a fork need not load them."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import monotonic

from serve.private_redis import die_with_parent, free_port

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    ["worker.main", "train.commands", "app.main", "serve.api", "app.entrance", "uvicorn"]
)


class Python:
    """`python ARGUMENTS` in a process of its own; its output goes to `log`."""

    def __init__(self, arguments: Sequence[object], env: Mapping[str, str], log: Path) -> None:
        """arguments: "-m" and a module, "-c" and statements, or a script, then its arguments.

        env: beside that of the tests.
        """
        self._log = log
        words = [str(argument) for argument in arguments]
        self._process = _context.Process(target=_live, args=(words, {**os.environ, **env}, log))
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def output(self) -> str:
        return self._log.read_text() if self._log.exists() else ""

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def send(self, how: signal.Signals) -> None:
        os.kill(self.pid, how)

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
            raise TimeoutError(f"it still runs after {seconds} s\n{self.output}")
        return self._process.exitcode

    def close(self) -> None:
        if self._process.exitcode is None:
            self.kill()


class WorkerProcess(Python):
    """A worker as `sagan worker` runs it."""

    def __init__(self, env: Mapping[str, str], log: Path, script: Path | None = None) -> None:
        """script: runs in place of `python -m worker`."""
        settings = {
            "SAGAN_DEVICE": "cpu",
            "SAGAN_PRECISION": "float32",  # the same on any machine
            "SAGAN_THREADS": "1",
        }
        super().__init__(["-m", "worker"] if script is None else [script], {**settings, **env}, log)


def start_peers(processes: int, arguments: Sequence[object], logs: Path) -> list[Python]:
    """Processes that train together, with the environment that torchrun gives them."""
    shared = {
        "WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "TERM": "dumb",
    }
    return [
        Python(arguments, {**shared, "RANK": rank, "LOCAL_RANK": rank}, logs / f"{processes}-{rank}.log")
        for rank in map(str, range(processes))
    ]


def run_peers(processes: int, arguments: Sequence[object], logs: Path) -> None:
    """Start them, and wait until all have ended well."""
    peers = start_peers(processes, arguments, logs)
    try:
        for peer in peers:
            assert peer.wait(300) == 0, peer.output
    finally:
        for peer in peers:
            peer.close()


def _live(arguments: list[str], env: dict[str, str], log: Path) -> None:
    os.setsid()  # Ctrl-C is for the tests
    if die := die_with_parent(signal.SIGKILL):  # the parent ends with the tests, however they end
        die()
    os.dup2(sys.stdin.fileno(), 0)  # multiprocessing opens /dev/null under another number
    sys.stdin = os.fdopen(0, closefd=False)
    with log.open("wb") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
    os.environ.clear()
    os.environ.update(env)
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    elif arguments[0] == "-c":
        sys.argv = ["-c", *arguments[2:]]
        exec(arguments[1], {"__name__": "__main__"})
    else:
        sys.argv = arguments
        runpy.run_path(arguments[0], run_name="__main__")
