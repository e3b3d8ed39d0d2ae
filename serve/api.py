"""How uvicorn serves the API, for `sagan api` and `sagan serve` alike."""

from __future__ import annotations

import logging
import os
import resource
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pkgutil import resolve_name
from typing import Any, Final

from jobs import logs, tracing
from jobs.settings import read_settings

# of files: a connection is one. The limit that a shell sets by default, 1024, is older than event loops
FILES: Final = 65536
ACCEPTS: Final = 16  # new connections in one turn of the event loop


class NotServing(Exception):
    """The API cannot start; the message says what to do."""


class NotListening(NotServing):
    """The port cannot be had."""


def options(root_path: str | None = None) -> dict[str, Any]:
    """Arguments of uvicorn's Config and run. root_path: None: SAGAN_ROOT_PATH."""
    if root_path is not None:
        os.environ["SAGAN_ROOT_PATH"] = root_path  # the app reads its settings there
    _raise_file_limit()
    return {
        "app": "app.main:create_app_of_process",
        "factory": True,
        "http": "app.entrance:Connection",
        "ws": "none",
        "proxy_headers": False,  # the app reads them, of SAGAN_TRUSTED_PROXIES alone
        "server_header": False,
        "access_log": False,  # the app writes a line a request itself
    }


def run(host: str, port: int, workers: int, root_path: str | None) -> None:
    """Serve until Ctrl-C or SIGTERM, in so many processes.

    Raises NotServing, and SystemExit where a setting is wrong.
    """
    from uvicorn import Config, Server  # `sagan serve` imports them once its worker has started
    from uvicorn.supervisors import Multiprocess

    given = options(root_path)
    settings = read_settings(
        resolve_name("app.settings:Settings")
    )  # a wrong one is told once, before processes start
    try:
        tracing.check()
    except tracing.TracingError as error:
        raise NotServing(str(error)) from error
    logs.configure(settings, "api")
    # log_config: for the processes that it starts. Five seconds: a picture may be drawn
    config = Config(
        **given, workers=workers, timeout_graceful_shutdown=5, log_config=logs.config(settings, "api")
    )
    with listening(host, port) as listener, suppress(KeyboardInterrupt):
        sockets = accepting(listener)
        where = f"[{host}]" if ":" in host else host
        logging.getLogger(__name__).info("the API is at http://%s:%d", where, listener.getsockname()[1])
        if workers > 1:
            with counting_together():
                Multiprocess(config, sockets).run()
        else:
            Server(config).run(sockets)


@contextmanager
def counting_together() -> Iterator[None]:
    """The processes started meanwhile share their counts, so that a scrape of any of them shows the sum.

    By prometheus_client's files: a process that ends leaves what it counted. Prometheus would take a smaller
    sum for a new start, and count all of it again.
    """
    with tempfile.TemporaryDirectory(prefix="sagan-metrics-") as folder:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder  # before they import prometheus_client
        try:
            yield
        finally:
            del os.environ["PROMETHEUS_MULTIPROC_DIR"]


@contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """A socket on the port. Raises NotListening."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            raise NotListening(
                f"{host}:{port} cannot be listened on ({error.strerror}). Choose another port with PORT=…"
            ) from error
        yield listener


def accepting(listener: socket.socket) -> list[socket.socket]:
    """The socket under several numbers, for uvicorn's `sockets`.

    libuv, under uvloop, accepts one connection of a socket in each turn of its loop (libuv's #3696). Where a
    turn takes 20 ms, as under load, these are 50 a second: those who come to a busy process would wait for as
    long as it is busy, while those whom it has already are answered.
    """
    return [listener, *(listener.dup() for _ in range(ACCEPTS - 1))]


def _raise_file_limit() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
