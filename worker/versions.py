"""Which versions of models a worker serves, and when it drops one: after the jobs that wait for it."""

from __future__ import annotations

from threading import Event
from time import monotonic
from typing import Final

from jobs.settings import QueueSettings
from jobs.wire import OLD_ATTENTION_QUEUE, OLD_GENERATE_QUEUE, map_queues_of, queues_of
from jobs.worker_store import WorkerStore
from worker.dispatcher import Dispatcher
from worker.engine import Engine
from worker.models import ModelFolder
from worker.scheduler import Scheduler

QUIET: Final = 4.0  # heartbeats after which every API has heard that a version gets no more jobs


class Versions:
    """The versions of one worker. One thread calls `look`, another one `drain`, once."""

    def __init__(
        self,
        settings: QueueSettings,
        worker_id: str,
        folder: ModelFolder,
        store: WorkerStore,
        scheduler: Scheduler[Engine],
        dispatcher: Dispatcher,
    ) -> None:
        self._quiet = QUIET * settings.heartbeat_period
        self._worker = worker_id
        self._folder = folder
        self._store = store
        self._scheduler = scheduler
        self._dispatcher = dispatcher
        self._leaving: set[str] = set()  # no more taken from their queues, and unloaded at the next look

    def queues(self) -> list[str]:
        """The queues to take from; those of format 1 are everybody's."""
        versions = [version for version in self._folder.engines if version not in self._leaving]
        names = [name for version in versions for name in (*queues_of(version), *map_queues_of(version))]
        return [OLD_GENERATE_QUEUE, OLD_ATTENTION_QUEUE, *names]

    def look(self) -> bool:
        """Take up what changed in the folder; True: the models or the queues are others now.

        Raises EngineError where the process cannot go on.
        """
        changed = self._folder.look(self._prepare)
        if changed:
            self._scheduler.serve(self._folder.engines)
        return self._drop() or changed

    def drain(self, seconds: float) -> None:
        """Make what waits for a version that this worker alone has, where another has a newer one.

        Nobody else would make these jobs. Its consumer takes nothing any more, so they are taken here. Raises
        Stopping.
        """
        others = [model for info in self._store.workers() if info.id != self._worker for model in info.models]
        theirs, names = {model.version for model in others}, {model.name for model in others}
        infos = self._folder.infos()
        ours = {info.version for info in infos if info.name in names and info.version not in theirs}
        deadline, pause = monotonic() + seconds, Event()
        while ours and monotonic() < deadline:
            room = self._dispatcher.room()
            found = [job for version in ours for job in self._store.pop(version, room)] if room else []
            for job_id in found:
                self._dispatcher.take_over(job_id)
            if room and not found and not ours & self._dispatcher.versions_in_hand():
                return
            pause.wait(0.02)

    def _prepare(self, engine: Engine) -> None:
        if engine.verifies_alone:
            self._scheduler.alone(engine.verify_batch_sizes).result()
        else:
            engine.verify_batch_sizes()

    def _drop(self) -> bool:
        """Drop versions without jobs: their queues first, and a look later their engines."""
        before = set(self._leaving)
        for version, seconds in self._folder.dropped().items():
            if seconds < self._quiet or version in self._dispatcher.versions_in_hand():
                continue
            if self._needed(version):
                self._leaving.discard(version)
            elif version in self._leaving:
                self._folder.let_go(version)
                self._leaving.remove(version)
                self._scheduler.serve(self._folder.engines)
            else:
                self._leaving.add(version)
        self._leaving &= self._folder.dropped().keys()  # its file may have come back
        return self._leaving != before

    def _needed(self, version: str) -> bool:
        """Whether jobs wait for a version and no other worker serves it."""
        others = [info for info in self._store.workers() if info.id != self._worker]
        served = {model.version for info in others for model in info.models if not model.draining}
        return version not in served and self._store.waits(version)
