"""The service in one command: Redis or Valkey, a worker and the API start together and stop together."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from math import inf
from pathlib import Path
from pkgutil import resolve_name
from time import monotonic
from typing import TYPE_CHECKING, Final

import uvloop

from jobs import logs, tracing
from jobs.deadlines import WORKER_STOPS
from jobs.settings import METRICS_SOCKET, QueueSettings, read_settings
from serve.api import NotListening, accepting, listening, options
from serve.private_redis import PrivateRedis, RedisMissing, die_with_parent, end, socket_folder
from serve.running import state_folder

if TYPE_CHECKING:
    from jobs.client import JobClient

log = logging.getLogger("sagan.serve")

API_GRACE: Final = 3  # seconds for open requests; event streams never end by themselves
LONGEST_PAUSE: Final = 30.0  # seconds between two starts of a part that keeps dying
QUIET: Final = 60.0  # seconds without a failure, after which the next one is another problem
LISTENS_EVERY: Final = 5.0  # seconds between two looks for the worker's heartbeat
SILENT: Final = 60.0  # seconds without one, after which a worker that lives is frozen
LOADS_WITHIN: Final = 300.0  # seconds in which Redis reads its data at the first start


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
    """Serve until Ctrl-C, SIGTERM or a terminal that is closed (SIGHUP); returns the exit code.

    port: 0: a free one. redis_url: None: SAGAN_REDIS_URL, or else a private Redis. state_dir: the folder of
    its data; None: SAGAN_STATE_DIR, or else ".sagan". worker_command: None: `python -m worker`. root_path:
    the path prefix under which a proxy serves this; None: SAGAN_ROOT_PATH. Raises SystemExit where a setting
    is wrong.
    """
    if root_path is not None:
        os.environ["SAGAN_ROOT_PATH"] = root_path
    settings = read_settings(resolve_name("app.settings:Settings"))
    read_settings(resolve_name("worker.settings:WorkerSettings"))
    logs.configure(settings, "serve")
    redis_url = redis_url or os.environ.get("SAGAN_REDIS_URL")
    state_dir = state_dir or state_folder()
    try:
        tracing.check()
        with listening(host, port) as listener, contextlib.ExitStack() as stack:
            if redis_url is None:
                stack.enter_context(_only_one(state_dir))
            command = worker_command or [sys.executable, "-m", "worker"]
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                return runner.run(_Service(listener, redis_url, state_dir, command).run())
    except (EmbeddedError, NotListening, RedisMissing, tracing.TracingError, OSError) as error:
        log.critical("%s", error)
        return 1


class _Pauses:
    """Growing pauses between tries; after a quiet minute they begin anew."""

    def __init__(self, first: float) -> None:
        self._first = first
        self._pause = first
        self._until = -inf

    def next(self) -> float:
        """Seconds before the next try."""
        now = monotonic()
        quiet = now - self._until > QUIET
        self._pause = self._first if quiet else min(max(1.0, 2 * self._pause), LONGEST_PAUSE)
        self._until = now + self._pause
        return self._pause


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
        self._redis_pauses = _Pauses(0.0)
        self._worker_pauses = _Pauses(1.0)
        self._ready = self._was_ready = False
        self._began = self._told = 0.0  # of the worker's loading
        self._heard_at = self._listened_at = 0.0  # of its heartbeats

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        for how in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if how != signal.SIGHUP or signal.getsignal(how) != signal.SIG_IGN:  # under nohup it goes on
                loop.add_signal_handler(how, self._stop.set)
        try:
            if self._redis_url is None:
                log.info(f"starting a private Redis on the data in {self._state_dir}")
                # without TCP: at a restart somebody else might have its port
                self._redis = PrivateRedis(self._state_dir / "redis", tcp=False)
                self._redis_url = self._redis.socket_url
                starting, stop = (
                    asyncio.create_task(self._start_redis()),
                    asyncio.create_task(self._stop.wait()),
                )
                await asyncio.wait({starting, stop}, return_when=asyncio.FIRST_COMPLETED)
                stop.cancel()
                if not starting.done():
                    starting.cancel()
                    return 0
                await starting
            os.environ["SAGAN_REDIS_URL"] = self._redis_url  # the API and the worker read it from there
            # the worker's series on their way to /metrics: nobody else may read them there
            with tempfile.TemporaryDirectory(prefix="sagan-", dir=socket_folder()) as private:
                os.environ[METRICS_SOCKET] = f"{private}/metrics.sock"
                await self._serve()
        finally:
            os.environ.pop(METRICS_SOCKET, None)
            if self._worker is not None:
                log.info("stopping: the worker hands back what it has not finished")
                await asyncio.to_thread(end, self._worker, QueueSettings().drain + WORKER_STOPS)
            if self._redis is not None:
                await asyncio.to_thread(self._redis.stop)
                log.info("stopped; jobs that were waiting are kept and go on at the next start")
        return self._code

    async def _serve(self) -> None:
        self._start_worker()
        # imported after the worker has started: it has most to load, and these load beside it
        import uvicorn

        from jobs.client import JobClient
        from jobs.pubsub import cancel

        server = uvicorn.Server(
            uvicorn.Config(
                **options(), log_config=None, log_level="warning", timeout_graceful_shutdown=API_GRACE
            )
        )
        # signals are ours: uvicorn would raise them again before the other parts are stopped
        setattr(server, "capture_signals", contextlib.nullcontext)  # noqa: B010
        store = JobClient.open(QueueSettings())
        api = asyncio.create_task(server.serve(sockets=accepting(self._listener)))
        keepers = {
            asyncio.create_task(self._keep("Redis", self._look_after_redis)),
            asyncio.create_task(self._keep("the worker", partial(self._look_after_worker, store))),
        }
        stop = asyncio.create_task(self._stop.wait())
        try:
            done, _ = await asyncio.wait({api, stop, *keepers}, return_when=asyncio.FIRST_COMPLETED)
            if not self._stop.is_set():
                self._code = 1
                for task in done:
                    log.error(f"the API ended by itself ({task.exception() or 'see above'})")
        finally:
            server.should_exit = True
            await cancel(stop, *keepers)
            await asyncio.gather(api, return_exceptions=True)
            await store.close()

    async def _keep(self, what: str, look: Callable[[], Awaitable[None]]) -> None:
        """Look after a part until the end; whatever goes wrong is told, and tried again."""
        pauses = _Pauses(1.0)
        while True:
            try:
                await look()
            except Exception as error:
                pause = pauses.next()
                trace = None if isinstance(error, (OSError, RedisMissing)) else error
                log.error(
                    f"{what} could not be looked after: {error} The next try is in {pause:.0f} s",
                    exc_info=trace,
                )
                await asyncio.sleep(pause)
            await asyncio.sleep(0.5 if self._ready else 0.1)

    # Start both parts in the main thread: Linux sends the parent-death signal when the thread that started
    # the child ends.

    async def _start_redis(self) -> None:
        """Start Redis and wait until it has its data; the API answers meanwhile. Raises RedisMissing."""
        assert self._redis is not None
        self._redis.spawn()
        began = told = monotonic()
        while not await asyncio.to_thread(self._redis.answers):
            await asyncio.sleep(0.02)
            if monotonic() - told > 2:
                told = monotonic()
                log.info(f"Redis is still loading its data ({told - began:.0f} s)")
            if monotonic() - began > LOADS_WITHIN:
                raise RedisMissing(f"The private Redis has not loaded its data in {LOADS_WITHIN:.0f} s.")

    async def _look_after_redis(self) -> None:
        """Start Redis again when it has died."""
        if self._redis is None or self._redis.alive():
            return
        code, trouble = self._redis.returncode, self._redis.trouble()
        pause = self._redis_pauses.next()
        log.warning(
            f"Redis died ({'it did not start' if code is None else _death(code)}"
            f"{f': {trouble}' if trouble else ''}); it starts again on its data"
            f"{f' in {pause:.0f} s' if pause else ''}"
        )
        await asyncio.sleep(pause)
        await self._start_redis()

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

    async def _look_after_worker(self, store: JobClient) -> None:
        """Say when the models are loaded, and start the worker again when it has died."""
        from jobs.errors import JobError

        assert self._worker is not None
        host, port = self._listener.getsockname()[:2]
        if not self._began:
            self._began = self._told = monotonic()
            log.info("loading the models")
        code = self._worker.poll()
        if code is not None and code > 0 and not self._was_ready:
            self._code = code  # it said why on stderr; another one would end the same way
            self._stop.set()
        elif code is not None:
            self._ready = False
            pause = self._worker_pauses.next()
            log.warning(f"the worker died ({_death(code)}); another one starts in {pause:.0f} s")
            await asyncio.sleep(pause)
            self._start_worker()
            self._began = self._told = monotonic()
        elif not self._ready:
            with contextlib.suppress(JobError):
                models = [model.name for model in await store.models()]
                self._ready = bool(models) and await self._is_ours(store)
            if self._ready:
                self._was_ready = True
                self._heard_at = self._listened_at = monotonic()
                log.info(f"ready with {', '.join(models)}: http://{host}:{port} (Ctrl-C ends it)")
            elif monotonic() - self._told > max(2.0, self._told - self._began):  # 2, 4, 8 ... s
                self._told = monotonic()
                log.info(f"still loading the models ({self._told - self._began:.0f} s)")
        elif monotonic() - self._listened_at > LISTENS_EVERY:
            self._listened_at = monotonic()
            try:
                if await self._is_ours(store):
                    self._heard_at = monotonic()
            except JobError:  # Redis is away: that is not the worker's silence
                self._heard_at = monotonic()
            if (silent := monotonic() - self._heard_at) > SILENT:
                log.warning(f"the worker has sent no sign of life for {silent:.0f} s: it is killed")
                self._worker.kill()

    async def _is_ours(self, store: JobClient) -> bool:
        """Whether a heartbeat is from our worker, and not from one that was killed a moment ago."""
        assert self._worker is not None
        return any(f":{self._worker.pid}:" in worker.id for worker in await store.workers())


@contextlib.contextmanager
def _only_one(state_dir: Path) -> Iterator[None]:
    """Lock the state folder: two servers on the same data would ruin it. Raises EmbeddedError."""
    try:
        state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = os.open(state_dir / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise EmbeddedError(
            f"The state folder {state_dir} cannot be used ({error.strerror}). "
            "Set SAGAN_STATE_DIR to a folder that this user may write to."
        ) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise EmbeddedError(
            f"Another sagan serves from {state_dir}. Stop it, or set SAGAN_STATE_DIR to another folder."
        ) from error
    finally:
        os.close(lock)


def _death(code: int) -> str:
    return f"exit code {code}" if code >= 0 else signal.Signals(-code).name
