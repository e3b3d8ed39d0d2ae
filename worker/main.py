"""The worker process: forwards on the scheduler's lanes, Celery in the main thread, until a signal."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from threading import Event, Thread
from time import monotonic
from typing import Final

from jobs import logs, tracing
from jobs.deadlines import FORWARDS_END, HELPER_ENDS, JOBS_RETURNED, RESULTS_STORED
from jobs.errors import StoreUnavailable
from jobs.job import FORMAT, WorkerInfo
from jobs.worker_store import Stopping, WorkerStore
from worker import startup
from worker.celery_app import make_celery
from worker.consumer import Hooks, Queues, consume, register
from worker.dispatcher import Dispatcher
from worker.engine import Engine, EngineError, NotRecorded
from worker.metrics import WorkerMetrics, export
from worker.models import EngineLoader, ModelFolder
from worker.pending import DeviceLost
from worker.previews import Previews
from worker.result_writer import ResultWriter
from worker.scheduler import Scheduler
from worker.settings import WorkerSettings
from worker.sweeper import Sweeper, every
from worker.versions import Versions

log = logging.getLogger(__name__)

# Exit codes, from <sysexits.h>: whoever watches the process starts another one
DEVICE_LOST: Final = 69
FORWARD_HUNG: Final = 75

SILENT: Final = 10.0  # seconds without an answered look into Redis, after which the consumer counts as gone
LONG: Final = 10.0  # seconds of a forward after which its worker is told to be stuck
LOOKS_EVERY: Final = 1.0  # seconds between two looks at the folder of checkpoints
PREVIEWS_EVERY: Final = 10.0  # seconds between two looks for previews of classes that are missing

Loader = Callable[[Path], Engine]


def run_worker(
    settings: WorkerSettings, make_loader: Callable[[WorkerSettings], Loader] = EngineLoader
) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit code. Unfinished jobs are handed back, in seconds."""
    logs.configure(settings, "worker")
    try:
        tracing.start("sagan-worker")
    except tracing.TracingError as error:
        log.critical("%s", error)
        return 1
    log.info("loading models from %s", settings.checkpoints)
    try:
        worker = Worker(settings, make_loader)
    except NotRecorded as error:
        # Another process must: torch's allocator is left as if it still recorded. No job is in hand yet.
        log.warning("%s: it starts again with SAGAN_CUDA_GRAPHS=false", error)
        os.environ["SAGAN_CUDA_GRAPHS"] = "false"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    except (EngineError, StoreUnavailable) as error:
        log.critical("%s", error)
        return 1
    code = worker.run()
    tracing.stop()
    return code


class Worker:
    """The parts of one worker process, with the models loaded."""

    def __init__(self, settings: WorkerSettings, make_loader: Callable[[WorkerSettings], Loader]) -> None:
        """Raises EngineError, StoreUnavailable."""
        self._settings = settings
        self._id = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        self._metrics = WorkerMetrics()
        export(self._metrics, settings)  # before the models load: a port that is taken is told at once
        self._stopping, self._stopped = Event(), Event()
        self._code: int | None = None  # None: that of Celery
        self._store = WorkerStore(settings, self._id, self._stopping.is_set)
        self._writer = ResultWriter(self._store, self._metrics)
        load = make_loader(settings)
        self._folder = ModelFolder(settings.checkpoints, load)
        self._scheduler = Scheduler(
            self._load,
            self._store.begin,
            self._writer.take,
            settings.maps_share,
            self._lose_device,
            self._metrics,
            self._writer.do,
        )
        self._device = next(iter(self._scheduler.start().values())).device
        self._dispatcher = Dispatcher(
            settings, self._store, self._scheduler, lambda: self._folder.engines, self._writer, self._metrics
        )
        self._versions = Versions(
            settings, self._id, self._folder, self._store, self._scheduler, self._dispatcher
        )
        self._queues = Queues(self._versions.queues())
        self._started_at = datetime.now(UTC)
        self._looked_at = monotonic()
        self._stopper = Thread(target=self._stop_working, name="stop", daemon=True)
        self._patience = settings.drain + JOBS_RETURNED  # seconds, over all calls of _hand_back
        self._metrics.watch(
            models=self._folder.infos,
            device=self._device,
            in_hand=lambda: len(self._dispatcher.in_hand()),
            running=self._scheduler.busy_for,
            backlog=self._scheduler.backlog,
            consuming=self._is_consuming,
        )
        self._metrics.know(info.name for info in self._folder.infos())

    def run(self) -> int:
        """Serve until a signal; returns the exit code."""
        period, sweeper = self._settings.heartbeat_period, Sweeper(self._settings, self._store, self._metrics)
        helpers = [
            every(period, self._beat, self._stopped, "heartbeat"),
            every(period, sweeper.sweep, self._stopping, "sweeper"),
        ]
        if self._store.stores:  # a store may take its time, and no heartbeat waits for it
            every(period, self._look_after_results, self._stopping, "results")
        every(period, self._watch_forwards, Event(), "watchdog")
        self._stopper.start()
        startup.settle()
        # beside the first jobs: it takes as long as loading, and the first image need not wait for it
        Thread(target=self._verify_batch_sizes, name="models", daemon=True).start()
        celery = make_celery(self._settings, self._queues.names, self._settings.celery_tools)
        register(celery, self._dispatcher)
        log.info("serving %s", ", ".join(sorted({info.name for info in self._folder.infos()})))
        wants_maps = self._dispatcher.wants_maps
        hooks = Hooks(self._wants_jobs, wants_maps, self._stopping.set, self._hand_back, self._looked)
        code = consume(celery, self._queues, self._settings.concurrency, self._dispatcher.room, hooks)
        self._hand_back()
        self._stopped.set()
        for helper in helpers:
            helper.join(HELPER_ENDS)
        with suppress(Stopping):  # Redis is away; it forgets this worker by itself
            self._store.leave()
        self._store.close()
        log.info("stopped")
        return code if self._code is None else self._code

    def _load(self) -> Mapping[str, Engine]:
        return self._folder.load()

    def _beat(self) -> None:
        now = self._store.time()  # before all that the beat tells
        models = self._folder.announced(now)
        if self._stopping.is_set():  # new jobs are better asked of others
            models = tuple(replace(info, draining=True) for info in models)
        busy = self._scheduler.busy_for()
        self._store.beat(
            WorkerInfo(
                id=self._id,
                device=self._device,
                started_at=self._started_at,
                beat_at=now,
                models=models,
                stats=self._scheduler.stats(),
                in_hand=self._dispatcher.in_hand(),
                consuming=self._is_consuming(),
                stuck=f"a forward has been running for {busy:.0f} s" if busy > LONG else self._refused(),
                refused=dict(self._folder.refused),
                results=self._store.results,
                format=FORMAT,
            )
        )

    def _refused(self) -> str | None:
        """Why no image can be stored; None: one can."""
        return self._store.keeper.trouble if self._store.keeper else None

    def _look_after_results(self) -> None:
        """Delete what has expired, and see whether a store that refused takes files again."""
        if self._store.keeper is not None:
            self._store.keeper.probe()
        while self._store.sweeps() and self._store.delete_expired():
            pass  # some at a time

    def _is_consuming(self) -> bool:
        """Whether the consumer looks into Redis, or has no room to."""
        return monotonic() - self._looked_at < SILENT or not self._dispatcher.room()

    def _looked(self) -> None:
        self._looked_at = monotonic()

    def _wants_jobs(self) -> bool:
        """False while there is work for some seconds: the next urgent job then finds room."""
        # Celery bounds the jobs in hand as well, but forgets their number when it loses the connection
        return self._dispatcher.room() > 0 and self._scheduler.backlog() <= self._settings.backlog

    def _verify_batch_sizes(self) -> None:
        for engine in self._folder.engines.values():
            if not engine.verifies_alone:  # those have done it while they loaded
                engine.verify_batch_sizes()
        startup.give_back()
        every(LOOKS_EVERY, self._follow_folder, self._stopping, "models")
        previews = Previews(self._store, self._scheduler, self._folder.infos, self._stopping)
        every(PREVIEWS_EVERY, previews.look, self._stopping, "previews")

    def _follow_folder(self) -> None:
        try:
            changed = self._versions.look()
        except EngineError as error:
            log.critical("%s: this worker ends; a new one tries again", error)
            self._end(1)
            return
        if changed:
            self._queues.take_from(self._versions.queues())
            self._metrics.know(info.name for info in self._folder.infos())
            self._beat()

    def _watch_forwards(self) -> None:
        if (busy := self._scheduler.busy_for()) > self._settings.forward_timeout:
            log.critical(
                "a forward has not returned for %.0f s: this worker ends, and its jobs go to others",
                busy,
            )
            os._exit(FORWARD_HUNG)  # a thread in the device's driver cannot be stopped in order

    def _lose_device(self, lost: DeviceLost) -> None:
        log.critical("%s: this worker ends and hands its jobs back; a new one is needed", lost)
        self._end(DEVICE_LOST)

    def _end(self, code: int) -> None:
        """Stop in order, from any thread."""
        self._code = code
        os.kill(os.getpid(), signal.SIGTERM)

    def _stop_working(self) -> None:
        self._stopping.wait()
        if self._code is None:
            try:
                self._versions.drain(self._settings.drain)
            except Stopping:  # Redis is away
                log.warning("Redis is away: what waits for versions of this worker alone is left waiting")
            except Exception:  # the jobs in hand must be handed back whatever comes
                log.exception("draining")
        self._scheduler.stop()
        self._scheduler.join(FORWARDS_END)
        self._writer.close(RESULTS_STORED)
        self._dispatcher.stop()

    def _hand_back(self) -> None:
        """Stop working; return when all results are stored and the other jobs handed back."""
        self._stopping.set()
        patience, self._patience = self._patience, 0.0
        self._stopper.join(patience)
