"""A worker's files in an object store: written with patience, and deleted when their jobs expire."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import inf
from threading import Lock
from time import monotonic, sleep
from typing import Final

from redis.backoff import ExponentialWithJitterBackoff

from jobs.errors import StoreUnavailable
from jobs.results import Objects, Stores, image_name
from jobs.stopping import Stopping

log = logging.getLogger(__name__)

REFUSED: Final = "the result store has taken nothing for"
PROBE: Final = "probe.map"
LONG: Final = 10.0  # seconds without a written file, after which the worker is told to be stuck


class StoreFailed(Exception):
    """The store has refused for too long: the job must fail."""


class Keeper:
    """Writes to a store from several threads, again and again while it refuses."""

    def __init__(self, store: Objects, stopping: Callable[[], bool], patience: float) -> None:
        """patience: seconds without a success after which a write is given up."""
        self._store = store
        self._stopping = stopping
        self._patience = patience
        self._pauses = ExponentialWithJitterBackoff(cap=2.0, base=0.1)
        self._lock = Lock()
        self._away_since = inf  # monotonic() of the first failure since the last success
        self._probed = False

    @property
    def url(self) -> str:
        return self._store.url

    def put(self, files: Sequence[tuple[str, bytes]]) -> None:
        """Write files. Raises Stopping, StoreFailed."""
        failures = 0
        while True:
            try:
                self._store.put(files)
            except StoreUnavailable as error:
                failures += 1
                with self._lock:
                    self._away_since = min(self._away_since, monotonic())
                    away = monotonic() - self._away_since
                if self._stopping():
                    raise Stopping("the result store refuses and the worker is being stopped") from error
                if away > self._patience:
                    raise StoreFailed(
                        f"The store of the results has taken nothing for {away:.0f} s. Ask again later."
                    ) from error
                sleep(self._pauses.compute(min(failures, 10)))
            else:
                self._away_since = inf
                return

    def drop(self, names: Sequence[str]) -> None:
        """Delete files that are nobody's: their job was purged or cancelled while they were written."""
        if not names:
            return
        try:
            self._store.delete(names)
        except StoreUnavailable:
            log.warning(
                "%d files of ended jobs could not be deleted; they go when their job expires", len(names)
            )

    def probe(self) -> None:
        """Try the store with a small file: at first, and while it refuses, so that its return is seen."""
        if self._probed and self._away_since == inf:
            return
        self._probed = True
        try:
            self._store.put([(PROBE, b"")])
            self._store.delete([PROBE])
        except StoreUnavailable:  # which told the log why
            self._away_since = min(self._away_since, monotonic())
        else:
            self._away_since = inf

    @property
    def trouble(self) -> str | None:
        """Why no image can be stored; None: one can."""
        away = monotonic() - self._away_since
        return f"{REFUSED} {away:.0f} s" if away > LONG else None


class Due:
    """The files to be deleted, by the members of Keys.expiring."""

    def __init__(self, members: Iterable[str]) -> None:
        self.by_store: Mapping[str, list[str]] = defaultdict(list)  # URL -> members
        for member in members:
            self.by_store[member.rpartition(" ")[2]].append(member)

    @staticmethod
    def names(member: str) -> list[str]:
        """The files of a member: all images of a job, or one map."""
        name, *count = member.split(" ")[:-1]
        return [image_name(name, index) for index in range(int(count[0]))] if count else [name]

    def delete(self, stores: Stores) -> tuple[list[str], list[str]]:
        """The members whose files are deleted, and those of stores that are not ours or do not answer."""
        gone: list[str] = []
        left: list[str] = []
        for url, members in self.by_store.items():
            store = stores.get(url)
            try:
                if store is None:
                    raise StoreUnavailable(f"{url} is not in SAGAN_RESULT_STORE of this worker")
                jobs = {member.partition(" ")[0] for member in members if member.count(" ") == 2}
                store.delete([name for member in members for name in self.names(member)], jobs)
                gone += members
            except StoreUnavailable as error:
                log.warning("results of %d ended jobs wait to be deleted: %s", len(members), error)
                left += members
        return gone, left
