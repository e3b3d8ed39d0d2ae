"""The worker process: forwards on the scheduler's lanes, Celery in the main thread, until a signal."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from threading import Event, Thread

from jobs.deadlines import FORWARDS_END, HELPER_ENDS, JOBS_RETURNED, RESULTS_STORED
from jobs.job import WorkerInfo
from jobs.worker_store import Stopping, WorkerStore
from worker import startup
from worker.celery_app import make_celery
from worker.consumer import Hooks, consume, register
from worker.dispatcher import Dispatcher
from worker.engine import RECORDERS, Engine, EngineError, NotRecorded, load_engines
from worker.result_writer import ResultWriter
from worker.scheduler import Scheduler
from worker.settings import WorkerSettings
from worker.sweeper import Sweeper, every

log = logging.getLogger(__name__)

Load = Callable[[WorkerSettings], Mapping[str, Engine]]


def run_worker(settings: WorkerSettings, load: Load = load_engines) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit code. Unfinished jobs are handed back, in seconds."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    log.info("loading models from %s", settings.checkpoints)
    try:
        worker = Worker(settings, load)
    except NotRecorded as error:
        # Another process must: torch's allocator is left as if it still recorded. No job is in hand yet.
        log.warning("%s: it starts again with SAGAN_CUDA_GRAPHS=false", error)
        os.environ["SAGAN_CUDA_GRAPHS"] = "false"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    except EngineError as error:
        print(f"sagan worker: {error}", file=sys.stderr)  # noqa: T201
        return 1
    return worker.run()


class Worker:
    """The parts of one worker process, with the models loaded."""

    def __init__(self, settings: WorkerSettings, load: Load) -> None:
        """Raises EngineError."""
        self._settings = settings
        self._id = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        self._stopping = Event()
        self._store = WorkerStore(settings, self._id, self._stopping.is_set)
        self._writer = ResultWriter(self._store)
        self._scheduler = Scheduler(
            lambda: load(settings), self._store.begin, self._writer.take, settings.maps_share
        )
        self._engines = self._scheduler.start()
        self._dispatcher = Dispatcher(settings, self._store, self._scheduler, self._engines, self._writer)
        self._started_at = datetime.now(UTC)
        self._stopper = Thread(target=self._stop_working, name="stop", daemon=True)
        self._patience = JOBS_RETURNED  # seconds, over all calls of _hand_back

    def run(self) -> int:
        """Serve until a signal; returns the exit code."""
        period, sweeper = self._settings.heartbeat_period, Sweeper(self._settings, self._store)
        helpers = [
            every(period, self._beat, self._stopping, "heartbeat"),
            every(period, sweeper.sweep, self._stopping, "sweeper"),
        ]
        self._stopper.start()
        startup.settle()
        # beside the first jobs: it takes as long as loading, and the first image need not wait for it
        Thread(target=self._verify_batch_sizes, name="verify_batch_sizes", daemon=True).start()
        celery = make_celery(self._settings)
        register(celery, self._dispatcher)
        log.info("serving %s", ", ".join(sorted(self._engines)))
        hooks = Hooks(self._wants_jobs, self._dispatcher.wants_maps, self._stopping.set, self._hand_back)
        code = consume(celery, self._settings.concurrency, self._dispatcher.room, hooks)
        self._hand_back()
        for helper in helpers:
            helper.join(HELPER_ENDS)
        with suppress(Stopping):  # Redis is away; it forgets this worker by itself
            self._store.leave()
        self._store.close()
        log.info("stopped")
        return code

    def _beat(self) -> None:
        self._store.beat(
            WorkerInfo(
                id=self._id,
                device=next(iter(self._engines.values())).device,
                started_at=self._started_at,
                beat_at=datetime.now(UTC),
                models=tuple(engine.info for engine in self._engines.values()),
                stats=self._scheduler.stats(),
                in_hand=self._dispatcher.in_hand(),
            )
        )

    def _wants_jobs(self) -> bool:
        """False while there is work for some seconds: the next urgent job then finds room."""
        # Celery bounds the jobs in hand as well, but forgets their number when it loses the connection
        return self._dispatcher.room() > 0 and self._scheduler.backlog() <= self._settings.backlog

    def _verify_batch_sizes(self) -> None:
        for engine in self._engines.values():
            if engine.device.partition(":")[0] not in RECORDERS:  # those have done it while they loaded
                engine.verify_batch_sizes()
        startup.give_back()

    def _stop_working(self) -> None:
        self._stopping.wait()
        self._scheduler.stop()
        self._scheduler.join(FORWARDS_END)
        self._writer.close(RESULTS_STORED)
        self._dispatcher.stop()

    def _hand_back(self) -> None:
        """Stop working; return when all results are stored and the other jobs handed back."""
        self._stopping.set()
        patience, self._patience = self._patience, 0.0
        self._stopper.join(patience)
