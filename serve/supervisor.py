"""The service in one command: Redis or Valkey, a worker and the API start together and stop together."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Final

import uvloop

from jobs.deadlines import WORKER_STOPS
from serve.api import options
from serve.private_redis import PrivateRedis, RedisMissing, die_with_parent, end

if TYPE_CHECKING:
    from jobs.client import JobClient

API_GRACE: Final = 3  # seconds for open requests
LONGEST_PAUSE: Final = 30.0  # seconds between two starts of a worker that keeps dying


class EmbeddedError(Exception):
    """The service cannot start; the message says what to do."""


def run(
    port: int = 8000,
    host: str = "127.0.0.1",
    redis_url: str | None = None,
    state_dir: Path | None = None,
    worker_command: Sequence[str] | None = None,
    root_path: str | None = None,
) -> int:
    """Serve until Ctrl-C or SIGTERM; returns the exit code.

    port: 0: a free one. redis_url: None: SAGAN_REDIS_URL, or else a private Redis. state_dir: the folder of
    its data; None: SAGAN_STATE_DIR, or else ".sagan". worker_command: None: `python -m worker`. root_path:
    the path prefix under which a proxy serves this; None: SAGAN_ROOT_PATH.
    """
    if root_path is not None:
        os.environ["SAGAN_ROOT_PATH"] = root_path
    redis_url = redis_url or os.environ.get("SAGAN_REDIS_URL")
    state_dir = state_dir or Path(os.environ.get("SAGAN_STATE_DIR", ".sagan"))
    try:
        with _listen(host, port) as listener, contextlib.ExitStack() as stack:
            if redis_url is None:
                stack.enter_context(_only_one(state_dir))
            command = worker_command or [sys.executable, "-m", "worker"]
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                return runner.run(_Service(listener, redis_url, state_dir, command).run())
    except (EmbeddedError, RedisMissing) as error:
        print(f"sagan: {error}", file=sys.stderr)  # noqa: T201
        return 1


class _Service:
    """The three parts: started in order, watched, and stopped in order."""

    def __init__(
        self, listener: socket.socket, redis_url: str | None, state_dir: Path, worker_command: Sequence[str]
    ) -> None:
        self._listener = listener
        self._worker_command = worker_command
        self._redis_url = redis_url
        self._state_dir = state_dir
        self._stop = asyncio.Event()
        self._redis: PrivateRedis | None = None
        self._worker: subprocess.Popen[bytes] | None = None
        self._code = 0

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        for how in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(how, self._stop.set)
        try:
            if self._redis_url is None:
                _say(f"starting a private Redis on the data in {self._state_dir}")
                self._redis = PrivateRedis(self._state_dir / "redis")
                self._start_redis()
                self._redis_url = self._redis.socket_url
            os.environ["SAGAN_REDIS_URL"] = self._redis_url  # the API and the worker read it from there
            await self._serve()
        finally:
            if self._worker is not None:
                _say("stopping: the worker hands back what it has not finished")
                await asyncio.to_thread(end, self._worker, WORKER_STOPS)
            if self._redis is not None:
                await asyncio.to_thread(self._redis.stop)
                _say("stopped; jobs that were waiting are kept and go on at the next start")
        return self._code

    async def _serve(self) -> None:
        self._start_worker()
        # imported after the worker has started: it has most to load, and these load beside it
        import uvicorn

        from jobs.client import JobClient
        from jobs.pubsub import cancel
        from jobs.settings import QueueSettings

        server = uvicorn.Server(
            uvicorn.Config(**options(), log_level="warning", timeout_graceful_shutdown=API_GRACE)
        )
        # signals are ours: uvicorn would raise them again before the other parts are stopped
        setattr(server, "capture_signals", contextlib.nullcontext)  # noqa: B010
        store = JobClient.open(QueueSettings())
        api = asyncio.create_task(server.serve(sockets=[self._listener]))
        watch = asyncio.create_task(self._keep_going(store))
        stop = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait({api, watch, stop}, return_when=asyncio.FIRST_COMPLETED)
            if api.done() and not self._stop.is_set():
                self._code = 1
        finally:
            server.should_exit = True
            await cancel(watch, stop)
            await asyncio.gather(api, return_exceptions=True)
            await store.close()

    # Call both from the main thread: Linux sends the parent-death signal when the thread that started the
    # child ends.

    def _start_redis(self) -> None:
        assert self._redis is not None
        self._redis.start(300, lambda waited: _say(f"Redis is still loading its data ({waited:.0f} s)"))

    def _start_worker(self) -> None:
        self._worker = subprocess.Popen(
            self._worker_command,
            # By default torch's threads spin for milliseconds while they wait for each other, which takes the
            # cores from the API and Redis. Without spinning a forward is slower; this count, some 0.2 ms,
            # bridges the gap between two layers.
            env={"GOMP_SPINCOUNT": "10000", "OMP_WAIT_POLICY": "PASSIVE", **os.environ},
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C goes to this process alone, which stops its parts in order
            preexec_fn=die_with_parent(signal.SIGKILL),  # its jobs are in Redis
        )

    async def _keep_going(self, store: JobClient) -> None:
        """Say when the models are loaded, and restart Redis and the worker when they die."""
        from jobs.errors import JobError

        assert self._worker is not None
        host, port = self._listener.getsockname()[:2]
        began = told = monotonic()
        ready, pause = False, 1.0
        _say("loading the models")
        while True:
            await asyncio.sleep(0.5 if ready else 0.1)
            if self._redis is not None and not self._redis.alive():
                _say("Redis died; it starts again on its data")
                self._start_redis()
            code = self._worker.poll()
            if code is not None and not ready and code > 0:
                self._code = code  # it said why on stderr; a restart would end the same way
                return
            if code is not None:
                _say(f"the worker died ({_death(code)}); another one starts in {pause:.0f} s")
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
                self._start_worker()
                began = told = monotonic()
                ready = False
            elif not ready:
                with contextlib.suppress(JobError):
                    models = [model.name for model in await store.models()]
                    if ready := bool(models) and await self._is_ours(store):
                        _say(f"ready with {', '.join(models)}: http://{host}:{port} (Ctrl-C ends it)")
                if not ready and monotonic() - told > 2:
                    told = monotonic()
                    _say(f"still loading the models ({told - began:.0f} s)")
            elif monotonic() - began > 60:
                pause = 1.0  # it has lived for a while: the next death is another problem

    async def _is_ours(self, store: JobClient) -> bool:
        """Whether a heartbeat is from our worker, and not from one that was killed a moment ago."""
        assert self._worker is not None
        return any(f":{self._worker.pid}:" in worker.id for worker in await store.workers())


@contextlib.contextmanager
def _listen(host: str, port: int) -> Iterator[socket.socket]:
    """Listen on the port. Raises EmbeddedError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            raise EmbeddedError(
                f"{host}:{port} cannot be listened on ({error.strerror}). Choose another port with PORT=…"
            ) from error
        yield listener


@contextlib.contextmanager
def _only_one(state_dir: Path) -> Iterator[None]:
    """Lock the state folder: two servers on the same data would ruin it. Raises EmbeddedError."""
    state_dir.mkdir(parents=True, exist_ok=True)
    with (state_dir / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise EmbeddedError(
                f"Another sagan serves from {state_dir}. Stop it, or set SAGAN_STATE_DIR to another folder."
            ) from error
        yield


def _death(code: int) -> str:
    return f"exit code {code}" if code >= 0 else signal.Signals(-code).name


def _say(what: str) -> None:
    print(f"sagan: {what}", flush=True)  # noqa: T201
