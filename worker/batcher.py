"""Many waiting jobs, one forward: a single thread owns the device and takes what is there.

No waiting window: while a forward runs, the next batch gathers by itself. Jobs of one priority take turns,
image by image, so that a long one does not hold up the short ones behind it.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from threading import Condition, Thread
from time import monotonic
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from worker.jobs import ModelStats, Recipe
from worker.worker_store import Stopping

log = logging.getLogger(__name__)

Pixels = NDArray[np.uint8]


class Sampler(Protocol):
    """What the batcher asks of an engine."""

    rows: int  # images in one forward at most

    def sample(self, recipes: Sequence[Recipe]) -> Pixels:
        """uint8 [N, R, R, 3], one image a recipe, the same whatever the others are."""


class Dropped(Exception):
    """The job was cancelled, or another worker has it: its images are not wanted from here."""


@dataclass(eq=False)
class Ticket:
    """The images of one job that are still to be made; each is a future."""

    job_id: str
    model: str
    priority: int  # 0 to 9, 9 is most urgent
    recipes: Sequence[Recipe]
    alone: bool = False  # its last forward killed the worker: let it take nobody along again
    futures: list[Future[Pixels]] = field(default_factory=list)
    entered: int = 0  # recipes that are in a forward or through it

    def __post_init__(self) -> None:
        self.futures = [Future() for _ in self.recipes]


S = TypeVar("S", bound=Sampler)
T = TypeVar("T")


@dataclass
class _Tally:
    images: int = 0
    busy_seconds: float = 0.0
    batch_sizes: Counter[int] = field(default_factory=Counter)
    calls: int = 0


class Batcher(Generic[S]):
    """Runs forwards on its own thread, in which it also loads the models.

    A network loaded in one thread and run from others was measured to be much slower.
    """

    def __init__(
        self,
        load: Callable[[], Mapping[str, S]],
        begin: Callable[[Sequence[str], Sequence[str]], set[str]],
    ) -> None:
        """load: the models, by name; it runs in the device's thread.

        begin(entering, survived): tells that jobs enter a forward and that others came out of the one before;
        answers with those that may run.
        """
        self._load = load
        self._begin = begin
        self._changed = Condition()
        self._rings: dict[int, deque[Ticket]] = {}
        self._calls: deque[tuple[str, Callable[[S], Any], Future[Any]]] = deque()
        self._stopping = False
        self._survived: list[str] = []
        self._tallies: dict[str, _Tally] = {}
        self._pace = 0.0  # seconds an image, of the last forwards
        self._loaded: Future[Mapping[str, S]] = Future()
        self._thread = Thread(target=self._run, name="device", daemon=True)

    def start(self) -> Mapping[str, S]:
        """Start the thread and return the models when they are loaded; raises what loading them raised."""
        self._thread.start()
        return self._loaded.result()

    def submit(self, ticket: Ticket) -> None:
        """Queue a job's images; its futures resolve in order, or end with Dropped, Stopping, or an error."""
        with self._changed:
            if not self._stopping:
                self._rings.setdefault(ticket.priority, deque()).append(ticket)
                self._changed.notify()
                return
        _end([ticket], Stopping("the worker is being stopped"))

    def call(self, model: str, function: Callable[[S], T]) -> Future[T]:
        """Run function with one model on the device's thread, before the next forward: somebody waits."""
        future: Future[T] = Future()
        with self._changed:
            if not self._stopping:
                self._calls.append((model, function, future))
                self._changed.notify()
                return future
        future.set_exception(Stopping("the worker is being stopped"))
        return future

    def drop(self, ticket: Ticket) -> None:
        """Forget what of a ticket is not yet in a forward."""
        with self._changed:
            ring = self._rings.get(ticket.priority, deque())
            if ticket in ring:
                ring.remove(ticket)
        _end([ticket], Dropped())

    def backlog(self) -> float:
        """Seconds of work that wait here, at the pace of the last forwards."""
        with self._changed:
            images = sum(len(t.recipes) - t.entered for ring in self._rings.values() for t in ring)
            return images * self._pace

    def stats(self) -> dict[str, ModelStats]:
        """What was done so far, by model."""
        with self._changed:
            return {
                name: ModelStats(
                    images=tally.images,
                    forwards=tally.batch_sizes.total(),
                    busy_seconds=tally.busy_seconds,
                    batch_sizes=dict(tally.batch_sizes),
                    attention_maps=tally.calls,
                )
                for name, tally in self._tallies.items()
            }

    def stop(self) -> None:
        """Let the forward that runs end; everything else ends with Stopping."""
        with self._changed:
            self._stopping = True
            tickets = [ticket for ring in self._rings.values() for ticket in ring]
            calls = list(self._calls)
            self._rings.clear()
            self._calls.clear()
            self._changed.notify()
        _end(tickets, Stopping("the worker is being stopped"))
        for _, _, future in calls:
            future.set_exception(Stopping("the worker is being stopped"))

    def join(self, seconds: float) -> None:
        """Wait for the device's thread to end, after stop()."""
        if self._thread.is_alive():
            self._thread.join(seconds)

    def _run(self) -> None:
        try:
            models = self._load()
        except BaseException as error:  # handed on to whoever called start()  # noqa: BLE001
            self._loaded.set_exception(error)
            return
        self._tallies = {name: _Tally() for name in models}
        self._loaded.set_result(models)
        while True:
            with self._changed:
                while not self._stopping and not self._calls and not any(self._rings.values()):
                    self._changed.wait()
                if self._stopping:
                    break
                calls, batch = list(self._calls), []
                self._calls.clear()
                if not calls:
                    batch = self._gather(models)
            for model, function, future in calls:
                self._serve(models[model], model, function, future)
            if batch:
                self._make(models[batch[0][0].model], batch)
        try:
            self._begin([], self._survived)
        except Stopping:
            log.warning("Redis is away: jobs in hand keep one attempt on their account.")

    def _gather(self, models: Mapping[str, S]) -> list[tuple[Ticket, int]]:
        """The next forward, of one model: in order of priority, and within one each job in turn."""
        rings = [
            self._rings[priority] for priority in sorted(self._rings, reverse=True) if self._rings[priority]
        ]
        first = rings[0][0]
        room = models[first.model].rows
        batch: list[tuple[Ticket, int]] = []
        for ring in rings:
            left_out = []
            while ring and len(batch) < room:
                ticket = ring.popleft()
                apart = ticket is not first and (ticket.alone or first.alone)
                if apart or ticket.model != first.model:
                    left_out.append(ticket)
                    continue
                batch.append((ticket, ticket.entered))
                ticket.entered += 1
                if ticket.entered < len(ticket.recipes):
                    ring.append(ticket)
            ring.extendleft(reversed(left_out))  # at the head: their turn is next
        return batch

    def _make(self, model: S, batch: list[tuple[Ticket, int]]) -> None:
        tickets = {ticket.job_id: ticket for ticket, _ in batch}
        try:
            allowed = self._begin(list(tickets), self._survived)
        except Stopping as stopping:
            _end(tickets.values(), stopping)
            return
        except Exception as error:  # the thread must go on for the others
            log.exception("jobs could not begin")
            _end(tickets.values(), error)
            return
        self._survived = []
        for job_id in tickets.keys() - allowed:
            self.drop(tickets[job_id])
        batch = [(ticket, position) for ticket, position in batch if ticket.job_id in allowed]
        if not batch:
            return
        self._survived = sorted(allowed)
        try:
            self._forward(model, batch)
        except Exception as error:  # any error of the network is the job's, not the worker's  # noqa: BLE001
            self._one_by_one(model, batch, error)

    def _forward(self, model: S, batch: list[tuple[Ticket, int]]) -> None:
        began = monotonic()
        pixels = model.sample([ticket.recipes[position] for ticket, position in batch])
        took = monotonic() - began
        with self._changed:
            tally = self._tallies[batch[0][0].model]
            tally.images += len(batch)
            tally.busy_seconds += took
            tally.batch_sizes[len(batch)] += 1
            pace = took / len(batch)
            self._pace = pace if self._pace == 0.0 else 0.8 * self._pace + 0.2 * pace
        for (ticket, position), image in zip(batch, pixels, strict=True):
            with suppress(InvalidStateError):  # dropped in the meantime
                ticket.futures[position].set_result(image)

    def _one_by_one(self, model: S, batch: list[tuple[Ticket, int]], error: Exception) -> None:
        """A forward failed: whose fault was it?"""
        jobs = list(dict.fromkeys(ticket for ticket, _ in batch))
        if len(jobs) == 1:
            log.error("job %s: %s", jobs[0].job_id, error)
            with self._changed:
                ring = self._rings.get(jobs[0].priority, deque())
                if jobs[0] in ring:
                    ring.remove(jobs[0])
            _end(jobs, error)
            return
        for job in jobs:
            part = [(ticket, position) for ticket, position in batch if ticket is job]
            try:
                self._forward(model, part)
            except Exception as own:  # noqa: BLE001
                self._one_by_one(model, part, own)

    def _serve(self, model: S, name: str, function: Callable[[S], T], future: Future[T]) -> None:
        began = monotonic()
        try:
            result = function(model)
        except Exception as error:  # it belongs to whoever waits for it  # noqa: BLE001
            future.set_exception(error)
        else:
            future.set_result(result)
        with self._changed:
            self._tallies[name].busy_seconds += monotonic() - began
            self._tallies[name].calls += 1


def _end(tickets: Iterable[Ticket], error: Exception) -> None:
    for ticket in tickets:
        for future in ticket.futures:
            with suppress(InvalidStateError):  # made already
                future.set_exception(error)
