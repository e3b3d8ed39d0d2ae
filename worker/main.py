"""The worker process: models on the device's thread, jobs on Celery's, until a signal ends it."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from threading import Event, Thread

import celery.signals
from celery import Celery, bootsteps
from celery.exceptions import SecurityWarning
from kombu.utils.scheduling import sorted_cycle

from jobs.job import WorkerInfo
from jobs.wire import ATTENTION_QUEUE
from jobs.worker_store import Stopping, WorkerStore
from worker import startup
from worker.celery_app import make_celery
from worker.consumer import register
from worker.dispatcher import Dispatcher
from worker.engine import RECORDERS, Engine, EngineError, NotRecorded, load_engines
from worker.result_writer import ResultWriter
from worker.scheduler import Scheduler
from worker.settings import WorkerSettings
from worker.sweeper import Sweeper, every

log = logging.getLogger(__name__)


def run_worker(
    settings: WorkerSettings, load: Callable[[WorkerSettings], Mapping[str, Engine]] = load_engines
) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit code. Jobs in hand are handed back, in seconds."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    stopping = Event()
    worker_id = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
    store = WorkerStore(settings, worker_id, stopping.is_set)
    writer = ResultWriter(store)
    scheduler = Scheduler(lambda: load(settings), store.begin, writer.take)
    log.info("loading models from %s", settings.checkpoints)
    try:
        engines = scheduler.start()
    except NotRecorded as error:
        # Another process must: torch's allocator is left as if it still recorded. No job is in hand yet.
        log.warning("%s: it starts again with SAGAN_CUDA_GRAPHS=false", error)
        os.environ["SAGAN_CUDA_GRAPHS"] = "false"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    except EngineError as error:
        print(f"sagan worker: {error}", file=sys.stderr)  # noqa: T201
        return 1
    dispatcher = Dispatcher(settings, store, scheduler, engines, writer)
    started = datetime.now(UTC)

    def beat() -> None:
        store.beat(
            WorkerInfo(
                id=worker_id,
                device=next(iter(engines.values())).device,
                started_at=started,
                beat_at=datetime.now(UTC),
                models=tuple(engine.info for engine in engines.values()),
                stats=scheduler.stats(),
                in_hand=dispatcher.in_hand(),
            )
        )

    queue = make_celery(settings)
    register(queue, dispatcher)
    sweeper = Sweeper(settings, store)
    helpers = [
        every(settings.heartbeat_period, beat, stopping, "heartbeat"),
        every(settings.heartbeat_period, sweeper.sweep, stopping, "sweeper"),
    ]

    def stop_working() -> None:
        stopping.wait()
        scheduler.stop()
        scheduler.join(seconds=30)
        writer.close(seconds=10)
        dispatcher.stop()

    stopper = Thread(target=stop_working, name="stop", daemon=True)
    stopper.start()
    startup.settle()
    # Beside the first jobs, since it takes as long as loading: the first image need not wait for it. What
    # records forwards has done it by now.
    later = [engine for engine in engines.values() if engine.device.partition(":")[0] not in RECORDERS]
    Thread(target=_verify_batch_sizes, args=(later,), name="verify_batch_sizes", daemon=True).start()
    log.info("serving %s", ", ".join(sorted(engines)))
    code = _consume(queue, settings, scheduler, dispatcher, stopping, stopper)
    stopping.set()
    stopper.join(45)
    for helper in helpers:
        helper.join(2)
    with suppress(Stopping):  # Redis is away; it forgets this worker by itself
        store.leave()
    store.close()
    log.info("stopped")
    return code


def _verify_batch_sizes(engines: Iterable[Engine]) -> None:
    for engine in engines:
        engine.verify_batch_sizes()
    startup.give_back()


def _consume(
    queue: Celery,
    settings: WorkerSettings,
    scheduler: Scheduler[Engine],
    dispatcher: Dispatcher,
    stopping: Event,
    stopper: Thread,
) -> int:
    """Run Celery's consumer in this thread until a signal ends it."""

    class OnlyWhatIsMadeSoon(sorted_cycle):
        """Takes no more jobs while there is work for some seconds, so that an urgent one finds room.

        Attention maps are taken all the same. kombu asks before each look into Redis.
        """

        def consume(self, n: int) -> list[str]:
            names: list[str] = super().consume(n)  # type: ignore[no-untyped-call]
            # Celery counts what is in hand as well, but forgets it when it loses the connection.
            if not dispatcher.room() or scheduler.backlog() > settings.backlog:
                return [name for name in names if name == ATTENTION_QUEUE]
            return names

    queue.conf.broker_transport_options = {
        **queue.conf.broker_transport_options,
        "queue_order_strategy": OnlyWhatIsMadeSoon,
        "room": dispatcher.room,
    }

    class AllIsStored(bootsteps.StartStopStep):  # type: ignore[misc]
        """Keeps the connection until all is stored that will be: then what is not done goes back to Redis."""

        requires = ("celery.worker.components:Pool",)

        def stop(self, worker: object) -> None:
            stopping.set()
            stopper.join(45)

        terminate = stop

    queue.steps["worker"].add(AllIsStored)

    def on_shutdown(**_: object) -> None:
        stopping.set()  # in a signal handler: no locks, no logging

    def keep_our_logging(**_: object) -> None:
        logging.getLogger("celery").setLevel(logging.WARNING)
        # it tells of each job handed back with a traceback; that one was handed back is in the job's events
        logging.getLogger("celery.app.trace").setLevel(logging.ERROR)
        # It tells in one line, as an error, when it cannot connect; the traceback before that says no more.
        logging.getLogger("celery.worker.consumer.consumer").setLevel(logging.ERROR)

    # Celery warns root because of pickles, and this worker reads JSON alone.
    warnings.filterwarnings("ignore", category=SecurityWarning)
    celery.signals.worker_shutting_down.connect(on_shutdown, weak=False)
    celery.signals.setup_logging.connect(keep_our_logging, weak=False)
    worker = queue.Worker(
        pool="threads",
        concurrency=settings.concurrency,
        hostname=f"sagan@{socket.gethostname()}",
        loglevel="WARNING",
        without_mingle=True,  # nothing to ask other workers, and no need to wait a second for their answer
        without_gossip=True,
        without_heartbeat=True,  # ours carries the models
        quiet=True,
    )
    try:
        worker.start()
    except SystemExit as end:
        return int(end.code or 0)
    return int(worker.exitcode or 0)
